"""Checkpoints as artifacts of the store: whole and verified, or not there; safetensors and JSON only.

<key>/step-00000100/   model.safetensors optimizer.safetensors ... state.json      the newest two are kept
<key>/best/            the weights with the best hold-out score, kept apart
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from yt8m_assets.errors import CheckpointMismatchError, CorruptArtifactError, MissingArtifactError, StorageError
from yt8m_assets.storage import ArtifactStore, Manifest, canonical_json, sha256_text
from yt8m_assets.training.tensors import read_tensors, write_tensors

logger = logging.getLogger(__name__)

SCHEMA = 1
"""Version of what a checkpoint holds; raised when a newer program writes something an older one cannot read."""
STATE_FILE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """One moment of training: a JSON state and named groups of tensors ("model", "optimizer", "ema", ...)."""

    state: dict[str, Any]
    groups: dict[str, dict[str, Tensor]] = field(default_factory=dict)


def describe_difference(expected: Mapping[str, Any], found: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lines `field: checkpoint has x, this run has y` for every differing field, nested ones with dots."""
    lines = []
    for name in sorted(set(expected) | set(found)):
        left, right = expected.get(name), found.get(name)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            lines += describe_difference(left, right, f"{prefix}{name}.")
        elif left != right:
            lines.append(f"{prefix}{name}: the checkpoint has {right!r}, this run has {left!r}")
    return lines


class CheckpointStore:
    """The checkpoints of one training run below a key of the store.

    `identity` holds every value that must be equal for a checkpoint to be continued: recipe slice, parents, code.
    """

    def __init__(self, store: ArtifactStore, key: str, identity: Mapping[str, Any], keep: int = 2) -> None:
        self.store, self.key, self.keep = store, key, max(keep, 2)
        self.identity = json.loads(canonical_json({"schema": SCHEMA, **identity}))
        self.fingerprint = sha256_text(canonical_json(self.identity))

    def _step_keys(self) -> list[str]:
        return [key for key in self.store.list_keys(self.key) if key.rsplit("/", 1)[-1].startswith("step-")]

    def _write(self, name: str, checkpoint: Checkpoint) -> Manifest:
        arguments: Any = {"fingerprint": self.fingerprint, "config": self.identity, "scratch": True}
        with self.store.publish(f"{self.key}/{name}", **arguments) as publication:
            for group, tensors in checkpoint.groups.items():
                write_tensors(publication.path / f"{group}.safetensors", tensors)
            (publication.path / STATE_FILE).write_text(canonical_json(checkpoint.state))
        assert publication.manifest is not None
        return publication.manifest

    def _read(self, key: str) -> Checkpoint:
        manifest = self.store.require(key)
        self.check_identity(manifest)
        foreign = [n for n in manifest.files if not n.endswith(".safetensors") and n != STATE_FILE]
        if foreign:
            raise CorruptArtifactError(f"{key}: holds {foreign}; a checkpoint is safetensors and {STATE_FILE} only")
        folder = self.store.fetch(manifest)
        try:
            state = json.loads((folder / STATE_FILE).read_text())
        except (OSError, ValueError) as error:
            raise CorruptArtifactError(f"{key}/{STATE_FILE}: not readable ({error})") from error
        groups = {Path(n).stem: read_tensors(folder / n) for n in manifest.files if n != STATE_FILE}
        return Checkpoint(state, groups)

    def check_identity(self, manifest: Manifest) -> None:
        """Raise CheckpointMismatchError with a field-by-field difference if a checkpoint is of another run."""
        if manifest.fingerprint == self.fingerprint:
            return
        lines = describe_difference(self.identity, manifest.config) or ["its fingerprint differs"]
        raise CheckpointMismatchError(f"{manifest.key} does not belong to this run:\n  " + "\n  ".join(lines))

    def save(self, step: int, checkpoint: Checkpoint) -> None:
        """Write the checkpoint of a step, then drop all but the newest ones; a failed clean-up is only logged."""
        self._write(f"step-{step:08d}", checkpoint)
        for key in self._step_keys()[: -self.keep]:
            self._delete(key)

    def save_best(self, checkpoint: Checkpoint) -> None:
        """Replace the best weights."""
        self._write("best", checkpoint)

    def best(self, allow_fallback: bool = False) -> Checkpoint | None:
        """The best weights so far, or None. Raises CorruptArtifactError, with the ways out, when they are damaged.

        `allow_fallback` drops damaged ones, and logs it.
        """
        key = f"{self.key}/best"
        try:
            return self._read(key) if self.store.manifest(key) else None
        except CorruptArtifactError as error:
            if not allow_fallback:
                way_out = (
                    "allow_fallback (--allow-fallback) goes on without them; "
                    f"delete {self.store.root_uri}/{self.key} to start this training again"
                )
                raise CorruptArtifactError(f"best weights {key}: {error}; {way_out}") from error
            logger.warning("best weights %s are damaged (%s) and dropped", key, error)
            self._delete(key)
            return None

    def latest(self, allow_fallback: bool = False) -> Checkpoint | None:
        """The newest checkpoint, or None where there is none.

        Raises CorruptArtifactError naming the damaged newest one and the older one to fall back to;
        `allow_fallback` takes the older one instead, and logs it. Raises CheckpointMismatchError for one of another
        configuration.
        """
        keys = self._step_keys()
        for position in range(len(keys) - 1, -1, -1):
            try:
                return self._read(keys[position])
            except CorruptArtifactError as error:
                older = keys[position - 1] if position else None
                if not allow_fallback or older is None:
                    way_out = (
                        f"{older} is older: allow_fallback (--allow-fallback) resumes from it"
                        if older
                        else f"there is no older one: delete {self.store.root_uri}/{self.key} to start again"
                    )
                    raise CorruptArtifactError(f"newest checkpoint {keys[position]}: {error}; {way_out}") from error
                logger.warning("checkpoint %s is damaged (%s); falling back to %s", keys[position], error, older)
                self._delete(keys[position])
        return None

    def peek(self) -> dict[str, Any] | None:
        """The JSON state of the newest checkpoint that is whole and of this run, without its tensors; else None."""
        for key in reversed(self._step_keys()):
            try:
                manifest = self.store.require(key)
                self.check_identity(manifest)
                return json.loads((self.store.fetch(manifest, only=(STATE_FILE,)) / STATE_FILE).read_text())
            except (CorruptArtifactError, CheckpointMismatchError):
                continue
        return None

    def refuse_others(self, start_afresh: bool = False) -> None:
        """Raise CheckpointMismatchError, field by field, if a checkpoint lying here is of another run.

        Hours of training may be in it, so it is not for a changed recipe to throw it away: `start_afresh` does.
        """
        for key in reversed(self.store.list_keys(self.key)):
            try:
                self.check_identity(self.store.require(key))
            except CheckpointMismatchError as error:
                if start_afresh:
                    logger.warning("%s is of another configuration, and removed as asked", key)
                    self.discard(others=True)
                    return
                way_out = "restore them to continue it, or start afresh without it (--start-afresh)"
                raise CheckpointMismatchError(f"{error}\n{way_out}") from error
            except CorruptArtifactError:
                continue

    def sweep(self) -> None:
        """Remove what killed writers left: folders without a manifest. Only while no other run writes here."""
        whole = {key.rsplit("/", 1)[-1] for key in self.store.list_keys(self.key)}
        for name in self.store.backend.names(self.key):
            if name not in whole and not name.startswith("."):
                self._delete(f"{self.key}/{name}")

    def discard(self, *, others: bool = False) -> None:
        """Remove this run's checkpoints and unreadable ones, with `others` those of every run; failures are logged."""
        try:
            for key in self.store.list_keys(self.key):
                if others or not self._is_of_another_run(key):
                    self._delete(key)
            if not self.store.list_keys(self.key):
                self.store.delete(self.key)
        except (OSError, StorageError) as error:
            logger.warning("cannot remove old checkpoints %s: %s", self.key, error)

    def _is_of_another_run(self, key: str) -> bool:
        try:
            return self.store.require(key).fingerprint != self.fingerprint
        except (CorruptArtifactError, MissingArtifactError):
            return False

    def _delete(self, key: str) -> None:
        try:
            self.store.delete(key)
        except (OSError, StorageError) as error:
            logger.warning("cannot remove old checkpoint %s: %s", key, error)
