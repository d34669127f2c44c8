"""Values on their way to the device and from it, for which the host does not wait."""

import numpy as np
import torch
from torch import Tensor


def send(values: np.ndarray, device: torch.device) -> Tensor:
    """An array on the device: for a copy from memory that is not page-locked a GPU could let the host wait."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


class Arriving:
    """A tensor that is copied to the host behind what the device computes: asking for it late costs no wait.

    The copy is queued where this is made. What the device is given to do afterwards does not hold it up, as it would
    hold up a copy that is asked for when the values are needed: a device does what it is given in turn.
    """

    def __init__(self, values: Tensor) -> None:
        self._event = None
        if values.device.type == "cuda":
            self._host = torch.empty_like(values, device="cpu", pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._host = values

    def get(self) -> Tensor:
        """The tensor in the host's memory; waits for the copy if it is not there yet."""
        if self._event is not None:
            self._event.synchronize()
        return self._host

    @property
    def is_here(self) -> bool:
        """Whether `get` would not wait."""
        return self._event is None or self._event.query()
