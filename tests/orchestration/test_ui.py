"""What `yt8m ui` does between its announcement and its end; test_processes.py has it whole."""

import sys
from pathlib import Path

import pytest

from orchestration.ui import serve


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
