"""Artifacts for tests of the shells."""

import base64
from typing import Any

from yt8m_assets.storage import ArtifactStore, Manifest

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
