"""The command line as a person meets it: one clear message for each mistake, and nothing half-published."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from orchestration.cli import COMMANDS, main, report
from orchestration.plan import required_nodes
from tests.orchestration.conftest import Graph
from yt8m_assets.errors import ConfigError
from yt8m_assets.recipes import load_recipe
from yt8m_assets.stages.lineage import Node, current_manifest
from yt8m_assets.storage import ArtifactStore
from yt8m_assets.training.interruption import PREEMPTED_EXIT_CODE, TrainingPreempted

Run = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parents[2]
RECIPE = "from tests.tiny import tiny_recipe\nRECIPE = tiny_recipe()\n"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs `yt8m ...` in this process: exit code, stdout, stderr. COLUMNS is wide, so that tables are not cut."""
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setenv("DAGSTER_HOME", "")
    recipe = tmp_path / "tiny.py"
    recipe.write_text(RECIPE)

    def call(*arguments: object, recipe: str = str(recipe)) -> tuple[int, str, str]:
        texts = [str(argument) for argument in arguments]
        if recipe:
            texts += ["--recipe", recipe]
        code = main(texts)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


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
        (RuntimeError(), "yt8m: unexpected RuntimeError: without a message (--debug shows where)\n"),
    ):
        assert report(error) == 1
        assert capsys.readouterr().err == line


def test_exit_codes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert report(TrainingPreempted(3)) == PREEMPTED_EXIT_CODE == 75
    assert report(KeyboardInterrupt()) == 130
    assert report(ConfigError("wrong")) == 1
    assert report(RuntimeError("odd")) == 1
    assert "unexpected RuntimeError: odd (--debug shows where)" in capsys.readouterr().err
    with pytest.raises(ConfigError):
        main(["status", "--debug", "--state", str(tmp_path), "--recipe", "nobody"])


def test_status_shows_current_stale_and_missing(run: Run, own_graph: Graph, tmp_path: Path) -> None:
    state = own_graph.state.root
    code, out, error = run("status", "--state", state)
    assert (code, error) == (0, "")
    assert "stale" not in out
    assert "missing" not in out
    best = {key: f"{own_graph.store.require(f'finetuned_model/{key}').metadata['map']:.4f}" for key in ("one", "two")}
    ensemble = f"{own_graph.store.require('ensemble_weights').metadata['map_at_100000']:.4f}"
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.split()}
    assert rows["one"] == ["current", "current", "2/2", "2/2", "2/2", best["one"]]
    assert rows["two"] == ["current", "current", "3/3", "3/3", "2/2", best["two"]]
    assert rows["segment_shards"] == rows["submission"] == ["current"]
    assert rows["ensemble_weights"] == ["current", ensemble]
    assert set(rows) - {"recipe"} == {
        "one",
        "two",
        *(node.asset for node in required_nodes(own_graph.recipe) if not node.model),
    }
    own_graph.store.delete("test_predictions/two/shift+1")
    (tmp_path / "tiny.py").write_text(
        "from dataclasses import replace\nfrom tests.tiny import tiny_recipe\nRECIPE = tiny_recipe()\n"
        "fine = replace(RECIPE.models[0].finetuning, learning_rate=1e-4)\n"
        "RECIPE = replace(RECIPE, models=(replace(RECIPE.models[0], finetuning=fine), RECIPE.models[1]))\n"
    )
    out = run("status", "--state", state)[1]
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.split()}
    assert rows["one"] == ["current", "stale", *("stale", "0/2") * 3], "its MAP is that of another recipe"
    assert rows["two"] == ["current", "current", "3/3", "missing", "2/3", "stale", "1/2", best["two"]]
    assert rows["submission"] == ["stale"]
    assert "stale  finetuned_model/one: training.learning_rate: 0.001 -> 0.0001\n" in out
    assert "stale  test_predictions/two/shift+1: not materialised\n" in out


def test_ablate_prints_a_table_or_json(run: Run, graph: Graph, tmp_path: Path) -> None:
    code, out, _ = run("ablate", "--state", graph.state.root, "--no-tracking")
    assert code == 0
    assert "What each switch is worth, recipe tiny" in out
    assert "each model's own *" in out
    code, out, _ = run("ablate", "--state", graph.state.root, "--no-tracking", "--json")
    figures = json.loads(out)
    assert code == 0
    assert {row["stage"] for row in figures["effects"]} >= {"shifts", "trimming", "fusion", "weights", "loss"}
    assert "mlflow_run_id" not in figures
    code, out, error = run("ablate", "--state", tmp_path / "empty", "--no-tracking")
    assert (code, out) == (1, "")
    assert "holdout_ratings" in error


def test_materialize_again_says_that_nothing_was_to_do_and_shows_the_result(run: Run, graph: Graph) -> None:
    code, out, error = run("materialize", "--state", graph.state.root)
    assert code == 0
    assert "0 made" in error
    assert all(name in out for name in ("Tiny one", "Tiny two", "ensemble"))
    (submission,) = [line.split()[1] for line in out.splitlines() if line.startswith("submission")]
    (report,) = [line.split()[1] for line in out.splitlines() if line.startswith("report")]
    assert Path(submission).read_text().startswith("Class,Segments")
    assert Path(report).read_text().lower().startswith("<!doctype html")


def test_a_choice_of_models_says_where_it_stops(run: Run, own_graph: Graph, tmp_path: Path) -> None:
    code, out, error = run("materialize", "--models", "two", "--state", own_graph.state.root)
    assert (code, out) == (0, "")
    assert "stopped after test_ranking: weights, submission and leaderboard are made of all models" in error
    assert f'{{"base": "{tmp_path}/tiny.py", "model_keys": ["two"]}}' in error
    own = tmp_path / "own.json"
    own.write_text(json.dumps({"base": "tiny.py", "model_keys": ["two"]}))
    code, _, error = run("materialize", "--until", "test_ranking", "--state", own_graph.state.root, recipe=str(own))
    assert code == 0
    assert "0 made" in error


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


def test_a_recipe_for_data_of_ones_own(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    code, out, _ = run("init-recipe", path, "--data", "gs://bucket/yt8m/", recipe="")
    assert code == 0
    assert f"yt8m materialize --recipe {path}" in out
    recipe = load_recipe(path)
    assert recipe.data.simulation is None
    assert recipe.data.test == ("gs://bucket/yt8m/3/frame/test/test*.tfrecord",)
    assert recipe.models == load_recipe("demo").models
    code, _, error = run("init-recipe", path, recipe="")
    assert code == 1
    assert "mine.json: exists" in error
    assert "ends in .json" in run("init-recipe", tmp_path / "mine.txt", recipe="")[2]
    code, _, error = run("init-recipe", tmp_path / "no" / "mine.json", recipe="")
    assert (code, error) == (1, f"yt8m: {tmp_path}/no/mine.json: cannot be written: No such file or directory\n")


@pytest.mark.parametrize("layout", ["{release}/frame/{split}", "{release}"])
def test_init_recipe_finds_shards_and_counts_classes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    data, recipes = tmp_path / "data", tmp_path / "recipes"
    for release, split in (("2", "train"), ("2", "validate"), ("3", "validate"), ("3", "test")):
        folder = data / layout.format(release=release, split=split)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{split}00.tfrecord").touch()
    (data / "vocabulary.csv").write_text("Index,Name\n0,A\n6,B\n")
    recipes.mkdir()
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("init-recipe", "recipes/mine.json", "--data", "data", recipe="tiny.py")
    assert code == 0
    assert [line for line in out.splitlines() if "nothing there" in line] == [
        f"nothing there yet: {data}/segment_label_ids.csv"
    ]
    monkeypatch.chdir(recipes)
    found = load_recipe("mine.json").data
    assert found.num_classes == 7
    for pattern in (*found.pretraining, *found.segments, *found.test):
        assert list(Path("/").glob(pattern.removeprefix("/"))), pattern


def test_submission_commands(run: Run, graph: Graph, tmp_path: Path) -> None:
    source = graph.store.fetch(graph.store.require("submission")) / "submission.csv"
    state = graph.state.root
    code, out, _ = run("validate-submission", source, "--state", state)
    assert code == 0
    assert "valid, 4 classes" in out
    broken = tmp_path / "broken.csv"
    broken.write_text("".join(source.read_text().splitlines(keepends=True)[:-1]))
    code, out, _ = run("validate-submission", broken, "--state", state)
    assert code == 1
    assert "1 problems" in out
    code, _, error = run("validate-submission", tmp_path / "none.csv", "--state", state)
    assert code == 1
    assert "none.csv: no such file" in error


def test_score_submission(run: Run, graph: Graph, tmp_path: Path) -> None:
    """Of each class the first and third segment are right and the second is wrong: an AP of (1/1 + 2/3) / 2."""
    from yt8m_assets.stages.data import read_shards

    source = graph.store.fetch(graph.store.require("submission")) / "submission.csv"
    ranked = dict(line.split(",") for line in source.read_text().splitlines()[1:])
    rows = [
        f"{name},{class_id},{verdict}\n"
        for class_id, names in ranked.items()
        for name, verdict in zip(names.split(" ")[:3], (1, 0, 1), strict=True)
    ]
    ratings = tmp_path / "ratings.csv"
    ratings.write_text("".join(rows))
    code, out, error = run("score-submission", source, "--ratings", ratings, "--state", graph.state.root)
    assert (code, error) == (0, "")
    assert out.startswith("MAP@100000 0.833333 over 4 classes (95 % interval over videos 0.")
    assert out.count("\n") == 1
    truth = tmp_path / "truth.csv"
    truth.write_text("video_id,start,class_id,score\n" + "".join(row.replace(":", ",", 1) for row in rows))
    assert run("score-submission", source, "--ratings", truth, "--state", graph.state.root)[1] == out
    code, report_out, error = run("report", "--ratings", truth, "--state", graph.state.root)
    assert (code, error) == (0, "")
    assert "given MAP" in report_out
    assert "0.8333" in report_out
    page = graph.state.root / "reports" / graph.recipe.name / "leaderboard.html"
    assert str(page) in report_out
    assert "12 of truth.csv" in page.read_text()
    shard = read_shards(graph.recipe, graph.store, "segment_shards").uris(held_out=True)[0]
    code, _, error = run("score-submission", source, "--ratings", shard, "--state", graph.state.root)
    assert code == 1
    assert "the ratings are of other videos" in error
    short = tmp_path / "short.csv"
    short.write_text("".join(source.read_text().splitlines(keepends=True)[:-1]))
    out = run("score-submission", short, "--ratings", ratings, "--state", graph.state.root)[1]
    assert out.startswith("MAP@100000 0.625000 over 4 classes")
    assert f"1 classes with positive ratings are not in the file and count 0: {list(ranked)[-1]}\n" in out
    ratings.write_text("".join(rows[:3]) + rows[3].replace(",1\n", ",0\n") + rows[4])
    out = run("score-submission", source, "--ratings", ratings, "--state", graph.state.root)[1]
    assert out.startswith("MAP@100000 0.833333 over 1 classes")
    code, out, error = run("score-submission", source, "--ratings", tmp_path / "none.csv", "--state", graph.state.root)
    assert (code, out) == (1, "")
    assert "none.csv: no such file" in error
    ratings.write_text(rows[0] + "nonsense\n")
    code, _, error = run("score-submission", source, "--ratings", ratings, "--state", graph.state.root)
    assert code == 1
    assert "ratings.csv, line 2" in error


def test_timeline(run: Run, own_graph: Graph) -> None:
    """A picture and its numbers under the state folder, for a video of the test shards as well."""
    from yt8m_assets.data import read_shard
    from yt8m_assets.stages.data import read_shards

    state = own_graph.state.root
    video_id = next(iter(read_shard(read_shards(own_graph.recipe, own_graph.store, "test_shards").uris()[0]))).video_id
    code, out, error = run("timeline", video_id, "--models", "two", "--state", state)
    assert (code, error) == (0, "")
    picture = Path(out.strip())
    assert picture == state / "timelines" / video_id / "timeline.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    content = json.loads(picture.with_name("timeline.json").read_text())
    assert (content["video_id"], content["models"]) == (video_id, ["two"])
    assert all(len(row["probabilities"]) == content["seconds"] for row in content["classes"])
    for arguments, message in {
        ("nowhere",): "video 'nowhere' is neither in the segment shards nor in the test shards",
        (video_id, "--models", "three"): "unknown model 'three'",
        ("../outside",): "unsafe artifact name",
    }.items():
        code, out, error = run("timeline", *arguments, "--state", state)
        assert (code, out) == (1, "")
        assert message in error
    assert [path.name for path in (state / "timelines").iterdir()] == [video_id]


def test_inspect(run: Run, graph: Graph, tmp_path: Path) -> None:
    from yt8m_assets.data.records.examples import encode_sequence_example
    from yt8m_assets.data.records.framing import frame_record
    from yt8m_assets.stages.data import read_shards

    uri = read_shards(graph.recipe, graph.store, "segment_shards").shards[0].uri
    code, out, _ = run("inspect", uri, "--state", tmp_path / "state")
    assert code == 0
    assert "rated segments" in out
    damaged = tmp_path / "damaged.tfrecord"
    shutil.copyfile(uri, damaged)
    content = bytearray(damaged.read_bytes())
    content[200] ^= 1
    damaged.write_bytes(content)
    code, out, _ = run("inspect", damaged, "--state", tmp_path / "state")
    assert code == 1
    assert "damaged.tfrecord: record 0" in out
    record = encode_sequence_example("abcd", np.zeros((3, 1152), np.uint8), [9999])
    (tmp_path / "outside.tfrecord").write_bytes(frame_record(record))
    code, out, _ = run("inspect", Path(uri).parent, tmp_path / "outside.tfrecord", "--state", tmp_path / "state")
    assert code == 1
    assert "labels of classes outside the vocabulary: 9999" in out


def test_import_checkpoint(run: Run, own_graph: Graph, tmp_path: Path) -> None:
    """Weights go out under the original's names and come back as a model of the recipe, bit for bit."""
    from models import export_tf_variables
    from yt8m_assets.stages.training import load_model

    store = own_graph.store
    variables = export_tf_variables(load_model(store, store.require("finetuned_model/one")))
    path = tmp_path / "weights.npz"
    np.savez(path, **variables)
    state = own_graph.state.root
    arguments = ("import-checkpoint", path, "--as", "finetuned", "--state", state)
    code, out, error = run(*arguments, "--model", "two")
    assert code == 0, error
    assert "finetuned_model/two" in out
    fresh = ArtifactStore(own_graph.settings.storage_uri)
    again = export_tf_variables(load_model(fresh, fresh.require("finetuned_model/two")))
    assert variables.keys() == again.keys()
    assert all(np.array_equal(variables[name], again[name]) for name in variables)
    np.savez(path, **dict(list(variables.items())[1:]))
    code, _, error = run(*arguments, "--model", "two")
    assert code == 1
    assert "weights.npz: " in error
    assert next(iter(variables)) in error
    path.write_bytes(b"not an archive")
    error = run(*arguments, "--model", "two")[2]
    assert "not an NPZ file" in error
    assert "allow_pickle" not in error
    index = tmp_path / "model.ckpt-9.index"
    index.write_bytes(b"not an archive")
    error = run("import-checkpoint", index, "--as", "finetuned", "--model", "two", "--state", state)[2]
    assert "model.ckpt-9.index: a part of a TensorFlow checkpoint; docs/import-checkpoint.md has the lines" in error
    np.savez(path, **variables)
    for asset in ("finetuned_model", "pretrained_model"):
        store.delete(f"{asset}/one")
    code, out, error = run(*arguments, "--model", "one")
    assert code == 0, error
    fresh = ArtifactStore(own_graph.settings.storage_uri)
    assert current_manifest(own_graph.recipe, fresh, Node("finetuned_model", "one")) is not None
    np.savez(path, x=np.array([object()], dtype=object), allow_pickle=True)
    assert "not an NPZ file" in run(*arguments, "--model", "two")[2]
