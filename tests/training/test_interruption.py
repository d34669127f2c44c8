import os
import pickle
import signal
import threading
from collections.abc import Iterator

import pytest

from yt8m_assets.training.interruption import PREEMPTED_EXIT_CODE, TrainingPreempted, stop_on_signals


@pytest.fixture(autouse=True)
def python_handles_ctrl_c() -> Iterator[None]:
    """A shell's background jobs start with SIGINT ignored, and so would these tests there."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_becomes_a_request_and_the_handler_is_restored(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_on_signals() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
    assert signal.getsignal(number) is before


def test_who_presses_ctrl_c_twice_does_not_wait() -> None:
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert stop.requested


def test_a_rank_hears_ctrl_c_from_the_terminal_and_from_its_parent() -> None:
    with stop_on_signals(second_interrupts=False) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert stop.requested


def test_another_thread_installs_nothing() -> None:
    before = signal.getsignal(signal.SIGTERM)
    inside = []

    def run() -> None:
        with stop_on_signals() as stop:
            inside.append((signal.getsignal(signal.SIGTERM), stop.requested))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert inside == [(before, False)]


def test_the_exception_crosses_processes_with_its_step() -> None:
    error = pickle.loads(pickle.dumps(TrainingPreempted(42)))
    assert (error.step, error.exit_code) == (42, PREEMPTED_EXIT_CODE) == (42, 75)
    assert "after step 42" in str(error)
