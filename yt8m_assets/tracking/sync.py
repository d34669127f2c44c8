"""Makes or completes on a server the run of every artifact and every half-trained model that a store holds."""

import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from yt8m_assets.errors import CorruptArtifactError
from yt8m_assets.storage import ArtifactStore, Manifest
from yt8m_assets.storage.backend import LocalBackend
from yt8m_assets.storage.retention import all_keys
from yt8m_assets.tracking.mirror import Mirror, end_dead_runs, find_run, is_alive
from yt8m_assets.tracking.record import PARENT_TAG, RECORD_FILE, Record
from yt8m_assets.tracking.server import Server

logger = logging.getLogger(__name__)

_CHECKPOINT_STATE = "state.json"


@dataclass(frozen=True)
class KeptRun:
    """A record, and the artifact that holds it."""

    record: Record
    manifest: Manifest


def kept_runs(store: ArtifactStore) -> Iterator[KeptRun]:
    """The runs of all artifacts that are kept, then those of half-trained models.

    Unreadable ones are logged, and so are artifacts of a time when none held a record: their runs are where they were
    first tracked, and nowhere else.
    """
    for key in all_keys(store):
        for manifest in store.generations(key):
            if RECORD_FILE in manifest.files:
                yield from _read(store, manifest, RECORD_FILE)
            elif run_id := manifest.metadata.get("mlflow_run_id"):
                text = "tracking: %s (generation %d) holds no record of its run %s, as artifacts once did not; left out"
                logger.warning(text, key, manifest.generation, run_id)
    for asset in store.backend.names("checkpoints"):
        for model in store.backend.names(f"checkpoints/{asset}"):
            keys = [key for key in store.list_keys(f"checkpoints/{asset}/{model}") if "/step-" in key]
            for manifest in (found for key in keys[-1:] for found in store.generations(key)):
                yield from _read(store, manifest, _CHECKPOINT_STATE)


def _read(store: ArtifactStore, manifest: Manifest, name: str) -> Iterator[KeptRun]:
    try:
        values = json.loads((store.fetch(manifest, (name,)) / name).read_bytes())
        values = values.get("run") if name == _CHECKPOINT_STATE else values
        if values is not None:
            yield KeptRun(Record.from_json(values), manifest)
    except (CorruptArtifactError, OSError, ValueError, TypeError, LookupError) as error:
        logger.warning("tracking: %s: its run cannot be read (%s); left out", manifest.key, error)


def sync(store: ArtifactStore, server: Server, *, restore: bool = False) -> Counter[str]:
    """Complete the server; how many runs were "made", "completed", "complete" before, "running", "deleted" there, and
    "damaged" here, which is logged.

    Runs that a person has deleted there stay deleted, unless `restore`. Raises what MLflow raises, and
    PartitionBusyError while another process of this machine does the same.
    """
    with LocalBackend(store.cache_path).lock("sync-mlflow"):  # two would both send what is missing
        return _sync(store, server, restore)


def _sync(store: ArtifactStore, server: Server, restore: bool) -> Counter[str]:
    end_dead_runs(server)
    by_token: dict[str, list[KeptRun]] = {}
    for run in sorted(
        kept_runs(store), key=lambda run: (PARENT_TAG in run.record.tags, run.manifest.created_unix_seconds)
    ):
        by_token.setdefault(run.record.token, []).append(run)
    found: Counter[str] = Counter()
    for runs in by_token.values():
        try:
            found[_sync_run(store, server, runs, restore)] += 1
        except CorruptArtifactError as error:
            logger.warning("tracking: %s", error)
            found["damaged"] += 1
    return found


def _sync_run(store: ArtifactStore, server: Server, runs: list[KeptRun], restore: bool) -> str:
    token = runs[0].record.token
    found = find_run(server, token)
    if found is not None and found.info.status == "RUNNING" and is_alive(found):
        return "running"
    changes = 0
    if found is None and (found := find_run(server, token, deleted=True)):
        if not restore:
            return "deleted"
        server.client().restore_run(found.info.run_id)
        changes = 1
    for run in runs:
        names = [name for name, _ in run.record.files]
        names += [name for name in run.manifest.files if "/" not in name] if run.record.model else []
        folder = store.fetch(run.manifest, tuple(names)) if names else Path()
        mirror = Mirror(server, run.record)
        mirror.push([(folder / name, below) for name, below in run.record.files], folder)
        done = run.record.ended is not None
        if done or mirror.status == "RUNNING":
            mirror.end("FINISHED" if done else "KILLED")
        changes += mirror.changes
    return "made" if found is None else "completed" if changes else "complete"
