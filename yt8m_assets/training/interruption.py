"""A signal to end as a request: finish the step, save, leave (RELIABILITY F03)."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from yt8m_assets.errors import TransientError

PREEMPTED_EXIT_CODE = 75
"""Exit code of a run that was asked to stop (EX_TEMPFAIL): run it again and it continues."""


class TrainingPreempted(TransientError):
    """Training was asked to stop; a checkpoint of `step` is saved, and the same call continues from it."""

    def __init__(self, step: int) -> None:
        super().__init__(f"asked to stop after step {step}; its checkpoint is saved, run again to continue")
        self.step = step
        self.exit_code = PREEMPTED_EXIT_CODE

    def __reduce__(self):  # rebuilt from its parts when it crosses a process boundary
        return type(self), (self.step,)


class EvaluationInterrupted(Exception):
    """An evaluation was left because training was asked to stop; there is no score, and the rerun makes it again."""


class StopRequest:
    """Whether somebody asked training to stop."""

    def __init__(self) -> None:
        self.requested = False
        self.signal_number = 0

    def set(self, signal_number: int = 0, frame: FrameType | None = None) -> None:
        """Ask; the signal handler."""
        self.requested, self.signal_number = True, signal_number

    def pass_on(self) -> None:
        """Send this process the signal again, when nothing is left that it could end and its old handler is back."""
        if self.signal_number:
            signal.raise_signal(signal.Signals(self.signal_number))


@contextmanager
def stop_on_signals(*, second_interrupts: bool = True) -> Iterator[StopRequest]:
    """Turn SIGTERM and SIGINT (Ctrl-C) into a StopRequest inside the block.

    A second Ctrl-C goes to the handler from before the block, which usually ends the work at once; not with
    `second_interrupts=False`, for a process that hears a Ctrl-C both from the terminal and from its parent. In
    another thread than the main one nothing is installed.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        if request.requested and second_interrupts and callable(previous[signal.SIGINT]):
            previous[signal.SIGINT](number, frame)
        request.set(number, frame)

    signal.signal(signal.SIGTERM, request.set)
    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
