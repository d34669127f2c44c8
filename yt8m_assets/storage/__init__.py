"""Bytes at rest: the artifact store, and files in folders and buckets. The face of the package."""

from yt8m_assets.storage.files import atomic_write
from yt8m_assets.storage.generations import KEEP_GENERATIONS
from yt8m_assets.storage.manifest import REPORT_FOLDER, Manifest, canonical_json, safe_join, sha256_text
from yt8m_assets.storage.store import ArtifactStore, Publication, StageResult

__all__ = [
    "KEEP_GENERATIONS",
    "REPORT_FOLDER",
    "ArtifactStore",
    "Manifest",
    "Publication",
    "StageResult",
    "atomic_write",
    "canonical_json",
    "safe_join",
    "sha256_text",
]
