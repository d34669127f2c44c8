"""What `yt8m ui` does between its announcement and its end; test_processes.py has it whole."""

import argparse
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestration import ui
from orchestration.ui import serve
from tests.orchestration.conftest import ENVIRONMENT, RECIPE
from tests.ports import free_port
from yt8m_assets.errors import StorageError


class Reader:
    """A standard output whose reader presses Ctrl-C as soon as there is something to read."""

    def __init__(self) -> None:
        self.said = ""

    def write(self, text: str) -> None:
        self.said += text

    def flush(self) -> None:
        raise KeyboardInterrupt


def test_a_signal_right_after_the_announcement_ends_it_well(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reader = Reader()
    monkeypatch.setattr(sys, "stdout", reader)
    assert serve([], tmp_path, lambda: None, "Dagster  here\n") == 0
    assert reader.said == "Dagster  here\n"


class Ended:
    """A server that has ended by itself."""

    def poll(self) -> int:
        return 1

    def wait(self, seconds: float) -> int:
        return 1


@pytest.fixture
def own_signals() -> Iterator[None]:
    """What ends the process is afterwards what it was."""
    before = {sign: signal.getsignal(sign) for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for sign, handler in before.items():
        signal.signal(sign, handler)


@pytest.mark.usefixtures("own_signals")
def test_the_databases_are_there_before_several_servers_would_make_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Those that several processes make at once are unusable for good."""
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, "")
    (tmp_path / "recipe.py").write_text(RECIPE)
    state, started = tmp_path / "state", []

    def start(command: Any, environment: Any, log_path: Path) -> Ended:
        started.append(log_path.stem)
        if log_path.stem != "mlflow":
            assert (state / "dagster" / "storage" / "schedules" / "schedules.db").is_file()
        return Ended()

    monkeypatch.setattr(ui, "start", start)
    arguments = argparse.Namespace(
        state=state, recipe=str(tmp_path / "recipe.py"), port=free_port(), mlflow_port=free_port()
    )
    with pytest.raises(StorageError, match="the code server did not start"):
        ui.command_ui(arguments)
    assert started == ["mlflow", "code"]


def test_a_servers_log_is_bounded_and_its_newest_lines_are_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ui, "LOG_BYTES", 1000)
    ui.write_log((f"line {number}\n".encode() for number in range(3000)), tmp_path / "code.log")
    log, before = tmp_path / "code.log", tmp_path / "code.log.1"
    assert sorted(tmp_path.iterdir()) == [log, before]
    kept = (before.read_text() + log.read_text()).splitlines()
    assert kept == [f"line {number}" for number in range(3000 - len(kept), 3000)]
    assert 1000 <= before.stat().st_size < 1010
    assert log.stat().st_size < 1000
