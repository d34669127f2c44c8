"""The ranks of a data-parallel run, as little of them as the loop needs; a team of one does nothing."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Team:
    """This process among the ranks. Rank 0 alone tracks, evaluates, saves and publishes."""

    rank: int = 0
    size: int = 1
    control: Any = None
    """Process group on the CPU for decisions, so that agreeing never makes a GPU wait."""

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def average(self, value: Tensor) -> None:
        """Average a tensor over the ranks in place, on its device."""
        if self.size > 1:
            torch.distributed.all_reduce(value)
            value /= self.size

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether any rank raised it; all ranks call this at the same step."""
        if self.size == 1:
            return flags
        votes = torch.tensor(flags, dtype=torch.int32)
        torch.distributed.all_reduce(votes, op=torch.distributed.ReduceOp.MAX, group=self.control)
        return tuple(bool(vote) for vote in votes)

    def wrap(self, module: nn.Module, device: torch.device) -> nn.Module:
        """The module with its gradients averaged over ranks."""
        if self.size == 1:
            return module
        devices = [device] if device.type == "cuda" else None
        wrapper: Any = nn.parallel.DistributedDataParallel
        # Statistics stay each rank's own between steps; torch is renaming the option that says so.
        known = inspect.signature(wrapper).parameters
        option = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        return wrapper(module, device_ids=devices, **{option: False})
