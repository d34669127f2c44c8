"""Checkpoints written behind the training: copied between two steps, then hashed and written by a thread."""

import copy
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

from yt8m_assets.training.checkpoint import Checkpoint, CheckpointStore

logger = logging.getLogger(__name__)

Groups = Mapping[str, Mapping[str, Tensor]]


class HostCopy:
    """A copy of groups of tensors in this machine's memory; its memory is used again for the next copy.

    Page-locked for tensors of a GPU, from where they come several times as fast.
    """

    def __init__(self) -> None:
        self.groups: dict[str, dict[str, Tensor]] = {}

    @torch.no_grad()
    def take(self, groups: Groups) -> dict[str, dict[str, Tensor]]:
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
