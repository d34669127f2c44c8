import os
import pickle
import signal
import threading

from yt8m_assets.training.interruption import PREEMPTED_EXIT_CODE, TrainingPreempted, stop_on_sigterm


def test_sigterm_becomes_a_request_and_the_handler_is_restored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_sigterm() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
    assert signal.getsignal(signal.SIGTERM) is before


def test_another_thread_installs_nothing() -> None:
    before = signal.getsignal(signal.SIGTERM)
    inside = []

    def run() -> None:
        with stop_on_sigterm() as stop:
            inside.append((signal.getsignal(signal.SIGTERM), stop.requested))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert inside == [(before, False)]


def test_the_exception_crosses_processes_with_its_step() -> None:
    error = pickle.loads(pickle.dumps(TrainingPreempted(42)))
    assert (error.step, error.exit_code) == (42, PREEMPTED_EXIT_CODE) == (42, 75)
    assert "after step 42" in str(error)
