"""The trial log: our lines, the original's, and what a killed writer leaves."""

import json
from pathlib import Path

import pytest

from yt8m_assets.ensemble.trial import Trial, TrialLog, read_trials
from yt8m_assets.errors import DataError

ORIGINAL = Path(__file__).parents[2].parent / "shared" / "realdata" / "search_log" / "original_search_log.json"


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


def test_the_original_s_own_log_is_read():
    if not ORIGINAL.is_file():
        pytest.skip(f"the original's search log is not beside this checkout ({ORIGINAL.name})")
    trials = read_trials(ORIGINAL)
    assert len(trials) == 73
    assert max(t.target for t in trials) == pytest.approx(0.827808, abs=5e-7)
    assert min(t.target for t in trials) == pytest.approx(0.824280, abs=5e-7)
    assert trials[0].time == "2019-10-12 20:46:52"
    assert list(trials[0].params) == ["w0", "w1", "w2", "w3", "w4", "w5", "w6", "w8"]


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
