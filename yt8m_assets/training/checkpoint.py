"""Checkpoints as artifacts of the store, written behind the training: whole and verified, or not there.

Copied between two steps, then hashed and written by a thread; safetensors and JSON only.

<key>/step-00000100/   model.safetensors optimizer.safetensors ... state.json      the newest two are kept
<key>/best/            the weights with the best hold-out score, kept apart
"""

import copy
import json
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yt8m_assets.errors import LATER, CheckpointMismatchError, CorruptArtifactError, MissingArtifactError, StorageError
from yt8m_assets.storage import ArtifactStore, Manifest, canonical_json, sha256_text
from yt8m_assets.storage.cache import Cache
from yt8m_assets.storage.manifest import ABSENT, differences
from yt8m_assets.training.model_files import read_tensors, write_tensors

logger = logging.getLogger(__name__)

SCHEMA = 1
"""Version of what a checkpoint holds; raised when a newer program writes something an older one cannot read."""
STATE_FILE = "state.json"
KEPT = 2
"""Checkpoints of steps that are kept."""
FALLBACK = "allow_fallback (--allow-fallback; on Dagster's pages the run tag yt8m/allow_fallback: true)"
AFRESH = "start afresh without it (--start-afresh; on Dagster's pages the run tag yt8m/start_afresh: true)"
"""Ways out that messages name, for whoever meets them at a command line or on a page."""


@dataclass(frozen=True)
class Checkpoint:
    """One moment of training: a JSON state and named groups of tensors ("model", "optimizer", "ema", ...)."""

    state: dict[str, Any]
    groups: dict[str, dict[str, Tensor]] = field(default_factory=dict)


class CheckpointStore:
    """The checkpoints of one training run below a key of the store.

    `identity` holds every value that must be equal for a checkpoint to be continued: recipe slice, parents, code.
    """

    def __init__(self, store: ArtifactStore, key: str, identity: Mapping[str, Any]) -> None:
        self.store, self.key = store, key
        self.identity = json.loads(canonical_json({"schema": SCHEMA, **identity}))
        self.fingerprint = sha256_text(canonical_json(self.identity))

    def __reduce__(self):  # for the ranks of a training: each opens the store anew
        return _reopened, (self.store.root_uri, self.store.cache, self.key, self.identity)

    def _step_keys(self) -> list[str]:
        return [key for key in self.store.list_keys(self.key) if key.rsplit("/", 1)[-1].startswith("step-")]

    def _write(self, name: str, checkpoint: Checkpoint) -> None:
        arguments: Any = {"fingerprint": self.fingerprint, "config": self.identity, "scratch": True}
        with self.store.publish(f"{self.key}/{name}", **arguments) as publication:
            for group, tensors in checkpoint.groups.items():
                write_tensors(publication.path / f"{group}.safetensors", tensors)
            (publication.path / STATE_FILE).write_text(canonical_json(checkpoint.state))

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
        lines = []
        for name, *values in differences(manifest.config, self.identity):
            found, wanted = (None if value is ABSENT else value for value in values)
            if found != wanted:
                lines.append(f"{name}: the checkpoint has {found!r}, this run has {wanted!r}")
                lines += [LATER] if name == "schema" and (found or 0) > SCHEMA else []
        lines = lines or ["its fingerprint differs"]
        raise CheckpointMismatchError(f"{manifest.key} does not belong to this run:\n  " + "\n  ".join(lines))

    def save(self, step: int, checkpoint: Checkpoint) -> None:
        """Write the checkpoint of a step, then drop all but the newest ones; a failed clean-up is only logged."""
        self._write(f"step-{step:08d}", checkpoint)
        for key in self._step_keys()[:-KEPT]:
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
                delete = f"delete {self.store.root_uri}/{self.key} to start this training again"
                way_out = f"{FALLBACK} goes on without them; {delete}"
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
                        f"{older} is older: {FALLBACK} resumes from it"
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

    def newest_step(self) -> int:
        """Steps done in that checkpoint; 0 where there is none."""
        state = self.peek()
        return state["loop"]["step"] if state else 0

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
                way_out = f"restore them to continue it, or {AFRESH}"
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


def _reopened(root_uri: str, cache: Cache, key: str, identity: Mapping[str, Any]) -> CheckpointStore:
    return CheckpointStore(ArtifactStore(root_uri, cache), key, identity)


class HostCopy:
    """A copy of groups of tensors in this machine's memory; its memory is used again for the next copy.

    Page-locked for tensors of a GPU, from where they come several times as fast.
    """

    def __init__(self) -> None:
        self.groups: dict[str, dict[str, Tensor]] = {}

    @torch.no_grad()
    def take(self, groups: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """Copy the tensors as they are after all work that is queued on their device; waits until they are here."""
        for name, tensors in groups.items():
            held = self.groups.setdefault(name, {})
            for key, value in tensors.items():
                if key not in held:
                    held[key] = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
                held[key].copy_(value, non_blocking=True)
        for device in {value.device for tensors in groups.values() for value in tensors.values() if value.is_cuda}:
            torch.cuda.current_stream(device).synchronize()
        return self.groups


class CheckpointWriter:
    """Writes checkpoints, one at a time and in the order in which they were begun, while the training goes on.

    So a checkpoint is there only when the best weights that it speaks of are. Memory: one copy of the state, and one of
    the best weights where they are kept. After a failed write no other is made; the error comes with the next call.
    """

    def __init__(self, checkpoints: CheckpointStore) -> None:
        self.checkpoints = checkpoints
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.copies = {"step": HostCopy(), "best": HostCopy()}
        self.writes: dict[str, Future[None]] = {}
        self.error: BaseException | None = None

    def save(self, step: int, checkpoint: Checkpoint) -> None:
        """Begin to write the checkpoint of a step; waits while the one before it is written."""
        self._begin("step", checkpoint, partial(self.checkpoints.save, step))

    def save_best(self, checkpoint: Checkpoint) -> None:
        """Begin to replace the best weights; waits while the ones before are written."""
        self._begin("best", checkpoint, self.checkpoints.save_best)

    def check(self) -> None:
        """Raise the error of a write that failed, if one did."""
        if self.error is not None:
            raise self.error

    def wait(self) -> None:
        """Wait until everything is written. Raises the error of a write that failed."""
        for write in self.writes.values():
            write.result()
        self.check()

    def close(self) -> None:
        """Let what has begun come to its end; an error is only logged, so that it hides none that is on its way."""
        self.thread.shutdown(wait=True)
        if self.error is not None:
            logger.warning("a checkpoint was not written: %s", self.error)

    def _begin(self, kind: str, checkpoint: Checkpoint, write: Callable[[Checkpoint], None]) -> None:
        if kind in self.writes:
            self.writes[kind].result()
        self.check()
        copied = Checkpoint(copy.deepcopy(checkpoint.state), self.copies[kind].take(checkpoint.groups))
        self.writes[kind] = self.thread.submit(self._write, write, copied)

    def _write(self, write: Callable[[Checkpoint], None], checkpoint: Checkpoint) -> None:
        if self.error is not None:
            return
        try:
            write(checkpoint)
        except BaseException as error:  # noqa: BLE001 - handed to the training, which raises it
            self.error = error
