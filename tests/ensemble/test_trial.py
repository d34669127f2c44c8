"""The trial log: our lines, the original's, and what a killed writer leaves."""

import json

import pytest

from yt8m_assets.ensemble.trial import Trial, TrialLog, read_trials
from yt8m_assets.errors import DataError


def trial(number: int) -> Trial:
    return Trial(number=number, target=0.5 + number / 100, params={"w0": 1.5, "a": 0.25, "b": 0.75}, phase="random")


def test_what_is_appended_is_read_again(tmp_path):
    log = TrialLog(tmp_path / "deep" / "trials.jsonl")
    written = [log.append(trial(number)) for number in range(3)]
    assert read_trials(tmp_path / "deep" / "trials.jsonl") == written
    assert TrialLog(tmp_path / "deep" / "trials.jsonl").past == written
    assert written[1].w0 == 1.5
    assert written[1].weights == {"a": 0.25, "b": 0.75}


def test_a_line_has_the_fields_of_the_original_s_log(tmp_path):
    TrialLog(tmp_path / "trials.jsonl").append(trial(0))
    row = json.loads((tmp_path / "trials.jsonl").read_text())
    assert row["target"] == 0.5
    assert row["params"] == {"w0": 1.5, "a": 0.25, "b": 0.75}
    assert set(row["datetime"]) == {"datetime", "elapsed", "delta"}


def test_a_log_as_the_original_wrote_it_is_read(tmp_path):
    path = tmp_path / "log.json"
    path.write_text(
        '{"target": 0.5625, "params": {"w0": 0.75, "w1": 80.5, "w8": 3.25}, '
        '"datetime": {"datetime": "2019-10-01 20:00:00", "elapsed": 0.0, "delta": 0.0}}\n'
        '{"target": 0.625, "params": {"w0": 2.5, "w1": 54.0, "w8": 45.5}, '
        '"datetime": {"datetime": "2019-10-01 20:12:00", "elapsed": 720.5, "delta": 720.5}}\n'
    )
    first, second = read_trials(path)
    assert (first.number, first.target, first.time, first.phase) == (0, 0.5625, "2019-10-01 20:00:00", "")
    assert list(first.params) == ["w0", "w1", "w8"]
    assert (second.number, second.w0, second.weights) == (1, 2.5, {"w1": 54.0, "w8": 45.5})


def test_a_torn_last_line_is_dropped_and_the_log_goes_on(tmp_path):
    path = tmp_path / "trials.jsonl"
    first = TrialLog(path)
    first.append(trial(0))
    first.append(trial(1))
    whole = path.read_bytes()
    for cut in range(len(whole) // 2 + 2, len(whole)):
        path.write_bytes(whole[:cut])
        log = TrialLog(path)
        assert len(log.past) == (2 if cut == len(whole) - 1 else 1)
        log.append(trial(len(log.past)))
        assert [t.number for t in read_trials(path)] == list(range(len(log.past) + 1))


@pytest.mark.parametrize(
    "line", ["{}", "nonsense", '{"target": NaN, "params": {"w0": 1}}', '{"target": 1, "params": {"w0": "1"}}', "[1]"]
)
def test_a_line_that_is_no_trial_is_named(tmp_path, line):
    path = tmp_path / "trials.jsonl"
    TrialLog(path).append(trial(0))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match=r"trials\.jsonl, line 2"):
        read_trials(path)


def test_no_path_keeps_no_file(tmp_path):
    log = TrialLog(None)
    assert log.append(trial(0)).time
    assert log.past == []
