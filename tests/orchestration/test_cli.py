"""The command line as a person meets it: one clear message for each mistake, and nothing half-published."""

import json
from pathlib import Path

import pytest

from orchestration.cli import COMMANDS, main, report, show_traceback
from tests.orchestration.conftest import Run
from yt8m_assets.errors import ConfigError
from yt8m_assets.recipes import load_recipe
from yt8m_assets.training.interruption import PREEMPTED_EXIT_CODE, TrainingPreempted


def json_recipe(folder: Path, **values: object) -> str:
    path = folder / "mine.json"
    path.write_text(json.dumps({"base": "challenge", **values}))
    return str(path)


def published(state: Path) -> list[str]:
    return [str(path) for path in (state / "artifacts").rglob("manifest-*.json")]


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        with pytest.raises(SystemExit) as caught:
            main([command, "--help"])
        assert caught.value.code == 0
        assert "--recipe" in capsys.readouterr().out


def test_no_command_shows_the_help(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(recipe="")
    assert code == 0
    assert "materialize" in out
    for arguments in (["--version"], ["materialize", "--help"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert not ended.value.code
    out = capsys.readouterr().out
    assert out.startswith("yt8m 0.")
    assert all(key in out for key in load_recipe("challenge").model_keys)


def test_mistakes_in_names(run: Run, tmp_path: Path) -> None:
    state = tmp_path / "state"
    for arguments, message in {
        ("materialize", "--models", "three"): "unknown model 'three'; recipe 'tiny' has one, two",
        ("materialize", "--until", "fame"): "unknown asset 'fame'; known: pretraining_shards",
        ("predict", "--shifts=-1,4"): "unknown shift 4; known: -2, -1, 0, 1, 2",
        ("predict", "--models", "one,three"): "unknown model 'three'",
    }.items():
        code, out, error = run(*arguments, "--state", state)
        assert (code, out) == (1, "")
        assert error.startswith(f"yt8m: {message}"), error
        assert error.count("\n") == 1
    assert not published(state)


def test_mistakes_in_recipes(run: Run, tmp_path: Path) -> None:
    for recipe, message in {
        "nobody": "unknown recipe 'nobody': choose demo, challenge",
        json_recipe(tmp_path, prediction={"topk": 3}): "unknown field 'prediction.topk'; known: batch_size",
    }.items():
        code, _, error = run("materialize", "--state", tmp_path / "state", recipe=recipe)
        assert code == 1
        assert message in error
        assert error.count("\n") == 1


def test_mistakes_in_data(run: Run, tmp_path: Path) -> None:
    """A pattern without a match, an empty folder, a damaged shard: named, and nothing published."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "segment_label_ids.csv").write_text("Index\n0\n1\n")
    patterns = {name: [f"{folder}/{name}*.tfrecord"] for name in ("pretraining", "segments", "test")}
    recipe = json_recipe(tmp_path, data={**patterns, "segment_classes_uri": f"{folder}/segment_label_ids.csv"})
    state = tmp_path / "state"
    code, _, error = run("materialize", "--until", "test_shards", "--state", state, recipe=recipe)
    assert code == 1
    assert f"{folder}/test*.tfrecord: matches no shard" in error
    assert "segment_label_ids.csv" in error
    (folder / "test00.tfrecord").write_bytes(b"\x07" * 64)
    code, _, error = run("materialize", "--until", "test_shards", "--state", state, recipe=recipe)
    assert code == 1
    assert "test00.tfrecord: record 0 at byte 0" in error
    assert not published(state)


def test_storage_that_cannot_be_written(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    code, _, error = run("status", "--state", tmp_path / "file" / "state")
    assert code == 1
    assert "cannot write" in error
    monkeypatch.setenv("YT8M_STORAGE", str(tmp_path / "file" / "artifacts"))
    code, _, error = run("materialize", "--until", "test_shards", "--state", tmp_path / "state")
    assert code == 1
    assert "cannot write" in error
    monkeypatch.setenv("YT8M_STORAGE", "ftp://host/x")
    assert "use a local path or a gs:// URI" in run("status", "--state", tmp_path / "state")[2]


def test_an_error_of_the_system_is_one_line_that_names_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    for error, line in (
        (OSError(30, "Read-only file system", "/x/timeline.json"), "yt8m: /x/timeline.json: Read-only file system\n"),
        (ValueError("first\n[SQL: second]"), "yt8m: unexpected ValueError: first (--debug shows where)\n"),
        (ValueError("x://me:secret@h/a@b"), "yt8m: unexpected ValueError: x://h/a@b (--debug shows where)\n"),
        (RuntimeError(), "yt8m: unexpected RuntimeError: without a message (--debug shows where)\n"),
    ):
        assert report(error) == 1
        assert capsys.readouterr().err == line


def test_a_traceback_shows_no_password(capsys: pytest.CaptureFixture[str]) -> None:
    error = ValueError("http://me:secret@host/x is away")
    show_traceback(ValueError, error, None)
    assert capsys.readouterr().err == "ValueError: http://host/x is away\n"


def test_exit_codes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert report(TrainingPreempted(3)) == PREEMPTED_EXIT_CODE == 75
    assert report(KeyboardInterrupt()) == 130
    assert report(ConfigError("wrong")) == 1
    assert report(RuntimeError("odd")) == 1
    assert "unexpected RuntimeError: odd (--debug shows where)" in capsys.readouterr().err
    with pytest.raises(ConfigError):
        main(["status", "--debug", "--state", str(tmp_path), "--recipe", "nobody"])
