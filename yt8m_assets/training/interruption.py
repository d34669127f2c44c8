"""SIGTERM as a request: finish the step, save, leave (RELIABILITY F03)."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from yt8m_assets.errors import TransientError

PREEMPTED_EXIT_CODE = 75
"""Exit code of a preempted run (EX_TEMPFAIL): run it again and it continues."""


class TrainingPreempted(TransientError):
    """Training was asked to stop; a checkpoint of `step` is saved, and the same call continues from it."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped by SIGTERM after step {step}; its checkpoint is saved, run again to continue")
        self.step = step
        self.exit_code = PREEMPTED_EXIT_CODE

    def __reduce__(self):  # rebuilt from its parts when it crosses a process boundary
        return type(self), (self.step,)


class StopRequest:
    """Whether somebody asked training to stop."""

    def __init__(self) -> None:
        self.requested = False

    def set(self, signal_number: int = 0, frame: FrameType | None = None) -> None:
        """Ask; the signal handler."""
        self.requested = True


@contextmanager
def stop_on_sigterm() -> Iterator[StopRequest]:
    """Turn SIGTERM into a StopRequest inside the block; in another thread than the main one nothing is installed."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = signal.signal(signal.SIGTERM, request.set)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, previous)
