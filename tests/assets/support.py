"""Artifacts for tests of the shells."""

import base64
from typing import Any

import dagster as dg

from yt8m_assets.storage import ArtifactStore, Manifest

QUIET: dict[str, Any] = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
"""One pixel."""


def publish(store: ArtifactStore, key: str, files: dict[str, bytes], metadata: dict[str, Any]) -> Manifest:
    """An artifact with these files."""
    with store.publish(key, fingerprint="f") as publication:
        for name, content in files.items():
            path = publication.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        publication.metadata.update(metadata)
    assert publication.manifest is not None
    return publication.manifest


def run(asset: dg.AssetsDefinition, **options: Any) -> dg.ExecuteInProcessResult:
    """One quiet run of an asset; its failure is in the result."""
    return dg.materialize([asset], run_config=QUIET, raise_on_error=False, **options)
