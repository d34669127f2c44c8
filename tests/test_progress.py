import io
import logging
import time

import pytest

from yt8m_assets.progress import (
    LiveProgress,
    LogProgress,
    NullProgress,
    PlainProgress,
    default_progress,
    format_seconds,
)


def test_plain_progress_ends_each_task_with_count_time_and_fields() -> None:
    stream = io.StringIO()
    with PlainProgress(stream).task("train bert", total=3, unit="steps") as task:
        for number in range(3):
            task.advance()
            task.update(loss=1 / (number + 1), best_map=0.8)
    assert stream.getvalue() == "train bert: 3 steps in 0 s  loss 0.3333  best map 0.8\n"


def test_plain_progress_writes_a_line_at_most_every_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock) * 1.0)
    stream = io.StringIO()
    with PlainProgress(stream, seconds=10).task("scan", total=40, unit="shards") as task:
        for _ in range(40):
            task.advance()
    lines = stream.getvalue().splitlines()
    assert 2 <= len(lines) <= 9
    assert "left" in lines[0]
    assert lines[-1].startswith("scan: 40 shards in")


def test_log_progress_goes_to_the_logger(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), LogProgress().task("fuse", total=1) as task:
        task.advance()
    assert caplog.messages == ["fuse: 1 it in 0 s"]


def test_null_progress_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    progress = NullProgress()
    progress.log("text")
    with progress.task("t") as task:
        task.advance(5)
        task.update(loss=1.0)
    assert capsys.readouterr() == ("", "")


def test_without_a_terminal_progress_is_plain() -> None:
    assert isinstance(default_progress(), PlainProgress)


@pytest.mark.parametrize(("seconds", "text"), [(4.4, "4 s"), (65, "1:05"), (3723, "1:02:03")])
def test_seconds_read_well(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds, that progress sees."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_steps_of_an_earlier_process_are_no_part_of_the_rate(clock: list[float]) -> None:
    """One step a second, continued at step 100,000 of 200,000."""
    stream = io.StringIO()
    with PlainProgress(stream, seconds=10).task("train", total=200_000, unit="steps") as task:
        clock[0] += 30  # reading the checkpoint
        task.resume(100_000)
        for _ in range(20):
            clock[0] += 1
            task.advance()
    assert stream.getvalue().splitlines() == [
        "train: 100010/200000 steps (1/s, 27:46:30 left)",
        "train: 100020/200000 steps (1/s, 27:46:20 left)",
        "train: 100020 steps, 20 of them in 20 s",
    ]


def live(clock: list[float]) -> LiveProgress:
    from rich.console import Console

    progress = LiveProgress()
    progress.bars.get_time = lambda: clock[0]
    progress.bars.live.console = Console(file=io.StringIO(), width=120)
    progress.bars.live.auto_refresh = False
    return progress


def test_nor_on_a_terminal(clock: list[float]) -> None:
    progress = live(clock)
    with progress.task("train", total=200_000) as task:
        clock[0] += 30
        task.resume(100_000)
        for _ in range(20):
            clock[0] += 1
            task.advance()
        [bar] = progress.bars.tasks
        assert (bar.completed, bar.speed) == (100_020, pytest.approx(1.0))
        assert bar.time_remaining == pytest.approx(99_980)
        assert bar.elapsed == 20


@pytest.mark.parametrize("text", ["[/x]", "fold [3/5] [red]done", ":smile:"])
def test_a_terminal_shows_text_as_it_is(text: str, clock: list[float]) -> None:
    progress = live(clock)
    with progress.task(text, total=1) as task:
        progress.log(text)
        task.update(note=text)
        progress.bars.refresh()
    shown = progress.bars.console.file.getvalue()  # type: ignore[attr-defined]
    assert text in shown.splitlines()
    assert shown.count(text) >= 3
