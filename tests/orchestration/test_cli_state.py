"""Why something is stale, what is damaged, what a command refuses to build on: `yt8m explain`, `verify`, `predict`."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import dagster as dg
import pytest

from orchestration.cli import main
from orchestration.cli_state import find_damage
from tests.orchestration.conftest import Graph, Run
from tests.storage.places import Memory
from tests.storage.suite import publish
from tests.tiny import SIMULATION, tiny_recipe
from yt8m_assets.errors import ParentMismatchError
from yt8m_assets.progress import NullProgress
from yt8m_assets.stages.lineage import current_manifest, require_current
from yt8m_assets.stages.locating import simulated_folder
from yt8m_assets.stages.nodes import Node, all_nodes
from yt8m_assets.stages.variants import Variant, keep_variant
from yt8m_assets.storage import ArtifactStore

ROOT = Path(__file__).parents[2]
CHANGED_MODEL = """from dataclasses import replace
from tests.tiny import tiny_recipe
RECIPE = tiny_recipe()
before = replace(RECIPE.models[0].pretraining, learning_rate=0.25)
RECIPE = replace(RECIPE, models=(replace(RECIPE.models[0], pretraining=before), RECIPE.models[1]))
"""


def test_what_rots_in_a_bucket_is_found_though_a_sound_copy_lies_here(tmp_path: Path) -> None:
    place = Memory(f"rot-{uuid4()}")
    manifest = publish(ArtifactStore(place.root_uri, tmp_path), "holdout_ratings")

    def found() -> list[str]:
        store = ArtifactStore(place.root_uri, tmp_path)
        return [problem for *_, problem in find_damage(tiny_recipe(), store, NullProgress())]

    assert found() == []
    name = f"holdout_ratings/{manifest.folder}/weights.bin"
    place.write(name, place.read(name)[:-1] + b"?")
    (problem,) = found()
    assert "weights.bin: twice" in problem


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, own_graph: Graph, tmp_path: Path) -> Run:
    """Runs `yt8m ...` over a copy of the finished graph: exit code, stdout, stderr."""
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setenv("DAGSTER_HOME", "")
    path = tmp_path / "recipe.py"

    def call(*arguments: str, recipe: str = "from tests.tiny import tiny_recipe\nRECIPE = tiny_recipe()\n"):
        path.write_text(recipe)
        code = main([*arguments, "--state", str(own_graph.state.root), "--recipe", str(path)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_status_takes_no_longer_where_the_history_is_long(own_graph: Graph, tmp_path: Path) -> None:
    """It imports nothing heavy, asks no history, and reads a manifest once, of the newest generations alone."""
    (tmp_path / "recipe.py").write_text("from tests.tiny import tiny_recipe\nRECIPE = tiny_recipe()\n")
    number = len(all_nodes(own_graph.recipe))
    command = ["status", "--state", str(own_graph.state.root), "--recipe", str(tmp_path / "recipe.py")]
    script = (
        "import sys\n"
        "opened = []\n"
        "hook = lambda name, what: opened.append(str(what[0])) if name in ('open', 'sqlite3.connect') else None\n"
        "sys.addaudithook(hook)\n"
        "from orchestration.cli import main\n"
        f"assert main({command!r}) == 0\n"
        "print(sum('manifest-' in name for name in opened), len({name for name in opened if 'manifest-' in name}))\n"
        "print({name.rpartition('/')[2] for name in opened if name.endswith('.db')})\n"
        "print([name for name in ('torch', 'dagster', 'mlflow', 'matplotlib') if name in sys.modules])\n"
    )
    answer = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines()[-3:] == [f"{number} {number}", "{'mlflow.db'}", "[]"]


def test_the_soak_s_recipe_imports_nothing_heavy(tmp_path: Path) -> None:
    """Or its figure of `yt8m status` would be the figure of that."""
    code = (
        "import sys, tests.soak.recipe; print([name for name in ('torch', 'dagster', 'mlflow') if name in sys.modules])"
    )
    environment = {**os.environ, "YT8M_STATE": str(tmp_path)}
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert answer.stdout == "[]\n"


def files_of(graph: Graph) -> dict[str, tuple[int, int]]:
    """Name -> size and time of every published file and manifest."""
    root = graph.state.root / "artifacts"
    found = {str(path.relative_to(root)): path.stat() for path in root.rglob("*") if path.is_file()}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in found.items()}


def test_explain_says_which_field_has_changed(run: Run, own_graph: Graph) -> None:
    assert run("explain")[:2] == (0, "recipe tiny: everything is up to date\n")
    assert run("explain", "finetuned_model/one")[:2] == (0, "finetuned_model/one: current\n")
    cause = "pretrained_model/one: training.learning_rate: 0.001 -> 0.25\n"
    assert run("explain", recipe=CHANGED_MODEL)[:2] == (1, cause)
    code, out, _ = run("explain", "oof_predictions/one", recipe=CHANGED_MODEL)
    assert code == 1
    assert out.startswith(f"oof_predictions/one/shift+0: stale\n  finetuned_model/one is stale\n  begins at {cause}")
    assert run("explain", "oof_predictions/two", recipe=CHANGED_MODEL)[0] == 0
    code, _, error = run("explain", "nonsense")
    assert code == 1
    assert "'nonsense' is nothing of recipe 'tiny'; known: pretraining_shards" in error


def test_predict_and_timeline_name_the_stale_model_and_build_on_nothing_old(run: Run, own_graph: Graph) -> None:
    before = files_of(own_graph)
    for command in (("predict", "--models", "one", "--shifts=0"), ("timeline", "nobody", "--models", "one")):
        code, _, error = run(*command, recipe=CHANGED_MODEL)
        assert code == 1
        if command[0] == "predict":
            assert "pretrained_model/one: training.learning_rate: 0.001 -> 0.25" in error
    assert files_of(own_graph) == before


def test_timeline_refuses_a_model_of_another_recipe(run: Run, own_graph: Graph) -> None:
    ratings = own_graph.store.fetch(own_graph.store.require("holdout_ratings")) / "ratings.csv"
    video_id = ratings.read_text().split(":")[0]
    assert run("timeline", video_id, "--models", "one")[0] == 0
    code, _, error = run("timeline", video_id, "--models", "one", recipe=CHANGED_MODEL)
    assert code == 1
    assert "finetuned_model/one is not up to date (pretrained_model/one: training.learning_rate" in error


ON_DISK = """from dataclasses import replace
from tests.tiny import tiny_recipe
RECIPE = tiny_recipe()
data = replace(RECIPE.data, simulation=None, segment_classes_uri="{folder}/segment_label_ids.csv",
    pretraining=("{folder}/2/frame/*/*.tfrecord",), segments=("{folder}/3/frame/validate/*",), test=("{test}",))
RECIPE = replace(RECIPE, data=data)
"""


def test_predict_brings_changed_test_shards_up_to_date(run: Run, own_graph: Graph) -> None:
    """It scored the old videos, without a word; and the same data under other names found no model."""
    folder = simulated_folder(own_graph.recipe, own_graph.store)
    shards = sorted((folder / "3/frame/test").iterdir())
    before = {key: own_graph.store.numbers(key) for key in ("pretrained_model/one", "finetuned_model/one")}
    recipe = ON_DISK.format(folder=folder, test=shards[0])
    assert run("predict", "--split", "test", "--models", "one", "--shifts=0", recipe=recipe)[0] == 0
    key = "test_predictions/one/shift+0"
    old, new = (own_graph.store.read_manifest(key, number) for number in (1, 2))
    assert 0 < new.metadata["num_segments"] < old.metadata["num_segments"]
    assert new.parents["test_shards"] == own_graph.store.read_manifest("test_shards", 2).digest
    assert {name: own_graph.store.numbers(name) for name in before} == before, "no model was trained for it"
    assert current_manifest(own_graph.recipe, own_graph.store, Node("test_predictions", "one", 0)) == old


def test_what_is_damaged_is_not_current_and_materialising_repairs_it(run: Run, own_graph: Graph) -> None:
    recipe, store = own_graph.recipe, own_graph.store
    node = Node("test_ranking", "two")
    manifest = store.require(node.key)
    (path,) = (Path(store.uri(manifest, name)) for name in manifest.files if name.endswith("ranking.parquet"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert current_manifest(recipe, store, node) is None
    code, out, _ = run("explain", node.key)
    assert code == 1
    assert "ranking.parquet: sha256" in out
    assert "ranking.parquet: sha256" in run("status")[1]
    code, out, _ = run("verify")
    assert code == 1
    assert f"{node.key} generation {manifest.generation}: " in out
    assert "1 damaged; --repair makes them again" in out
    assert run("materialize", "--until", "test_ranking")[0] == 0
    again = current_manifest(recipe, store, node)
    assert again is not None
    assert (again.generation, again.digest) == (manifest.generation + 1, manifest.digest)
    assert run("explain")[0] == 0, "the same content: nothing below had to be made again"
    code, out, _ = run("verify", "--repair")
    assert code == 0, "the damaged generation goes, the sound one stays"
    assert out.endswith("1 damaged removed, 0 made again\n")
    assert run("verify")[0] == 0


def test_verify_repairs_what_it_finds(run: Run, own_graph: Graph) -> None:
    store = own_graph.store
    manifest = store.require("holdout_ratings")
    Path(store.uri(manifest, "ratings.csv")).unlink()
    code, out, _ = run("verify", "--repair")
    assert code == 0, out
    assert "ratings.csv: is missing" in out
    assert out.endswith("1 damaged removed, 1 made again\n")
    assert run("verify")[:2] == (0, "0 damaged\n")
    again = store.require("holdout_ratings")
    assert again.digest == manifest.digest
    assert (store.fetch(again) / "ratings.csv").is_file()


def test_verify_reads_variants_too(run: Run, own_graph: Graph) -> None:
    recipe, store = own_graph.recipe, own_graph.store
    variant = Variant(base="one", name="fast", settings={"finetuning": {"learning_rate": 0.005}})
    keep_variant(recipe, store, variant)
    with store.publish("finetuned_model/one_fast", fingerprint="some") as publication:
        (publication.path / "weights").write_text("whole")
    assert run("verify")[:2] == (0, "0 damaged\n")
    Path(store.uri(store.require("finetuned_model/one_fast"), "weights")).write_text("other")
    code, out, _ = run("verify")
    assert (code, "finetuned_model/one_fast generation 1: " in out) == (1, True)
    code, out, _ = run("verify", "--repair")
    assert code == 0
    assert out.endswith("to make it again: yt8m variant one fast\n1 damaged removed, 0 made again\n")
    assert store.numbers("finetuned_model/one_fast") == []


def test_a_new_attempt_is_made_when_it_is_forced(run: Run, own_graph: Graph) -> None:
    store = own_graph.store
    before = {key: store.numbers(key) for key in ("test_ranking/one", "test_ranking/two", "ensemble_weights")}
    assert run("materialize", "--until", "test_ranking", "--models", "one")[0] == 0
    assert {key: store.numbers(key) for key in before} == before
    assert run("materialize", "--until", "test_ranking", "--models", "one", "--force")[0] == 0
    after = {key: store.numbers(key) for key in before}
    assert after == {**before, "test_ranking/one": [1, 2]}
    manifest = store.require("test_ranking/one")
    assert json.dumps(manifest.parents) == json.dumps(store.read_manifest("test_ranking/one", 1).parents)


def test_a_damaged_picture_is_named_and_no_reason_to_train_again(run: Run, own_graph: Graph) -> None:
    store = own_graph.store
    manifest = store.require("ensemble_weights")
    Path(store.uri(manifest, "report/weights.png")).write_bytes(b"no picture")
    code, out, _ = run("verify", "--repair")
    assert code == 0
    assert "ensemble_weights generation 1, only shown to people: " in out
    assert "weights.png" in out
    assert out.endswith("0 damaged\n")
    assert store.require("ensemble_weights") == manifest


def test_gc_shows_first_and_removes_what_no_submission_was_made_from(
    run: Run, own_graph: Graph, tmp_path: Path
) -> None:
    both = "from tests.tiny import tiny_recipe\nRECIPE = tiny_recipe()\n"
    one = both.replace("tiny_recipe()", "tiny_recipe(models=tiny_recipe().models[:1])")
    other = tmp_path / "both.py"
    other.write_text(both)
    root = own_graph.state.root / "artifacts"
    code, out, _ = run("gc", recipe=one)
    assert (code, out.startswith(f"nothing in {root} is of models that tiny dropped\n")) == (0, True)
    before = files_of(own_graph)
    with own_graph.store.publish("finetuned_model/two", fingerprint="another") as publication:
        (publication.path / "weights").write_bytes(bytes(1_000_000))
    after = files_of(own_graph)
    line = "finetuned_model/two: 1 generation, 1.0 MB\n"
    code, out, _ = run("gc", recipe=one)
    assert (code, out.startswith(f"{line}1.0 MB of models that are not in tiny; --delete")) == (0, True)
    assert "nothing" in run("gc", "--keep", str(other), recipe=one)[1]
    assert files_of(own_graph) == after
    code, out, _ = run("gc", "--delete", recipe=one)
    assert (code, out.startswith(f"{line}1.0 MB removed\n")) == (0, True)
    assert files_of(own_graph) == before


def test_gc_removes_generations_that_are_no_longer_kept(
    run: Run, own_graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    roomy = ArtifactStore(own_graph.store.root_uri, keep_generations=9)
    for number in range(4):
        with roomy.publish("leaderboard", fingerprint=str(number)) as publication:
            (publication.path / "page").write_bytes(bytes(1_000_000))
    assert run("gc", "--delete")[0] == 0
    assert roomy.numbers("leaderboard") == [3, 4, 5]
    monkeypatch.setenv("YT8M_KEEP_GENERATIONS", "2")
    assert "leaderboard: 1 generation, 1.0 MB\n1.0 MB of generations that are no longer kept; --delete" in run("gc")[1]
    assert roomy.numbers("leaderboard") == [3, 4, 5]
    assert "1.0 MB removed" in run("gc", "--delete")[1]
    assert roomy.numbers("leaderboard") == [4, 5]


def test_gc_removes_old_runs_of_dagster_but_those_that_made_what_is_newest(run: Run, own_graph: Graph) -> None:
    storage = own_graph.state.dagster_home / "storage"
    with own_graph.open() as driver:
        lost = dg.DagsterRun("ensemble", str(uuid4()), status=dg.DagsterRunStatus.FAILURE)
        driver.instance.add_run(lost)
        driver.instance.report_engine_event("failed", lost)
    (storage / lost.run_id / "compute_logs").mkdir(parents=True)
    (storage / lost.run_id / "compute_logs" / "step.out").write_bytes(bytes(2_000_000))
    known = {path.name for path in (storage / "history/runs").glob("*-*.db")}
    assert f"{lost.run_id}.db" in known
    assert "0.0 MB of 0 runs that ended more than 1 days ago; --delete" in run("gc", "--history", "1")[1]
    assert "MB of 1 runs that ended more than 0 days ago; --delete" in run("gc", "--history", "0")[1]
    assert {path.name for path in (storage / "history/runs").glob("*-*.db")} == known
    assert "2.1 MB removed: 1 runs" in run("gc", "--history", "0", "--delete")[1]
    assert {path.name for path in (storage / "history/runs").glob("*-*.db")} == known - {f"{lost.run_id}.db"}
    assert not (storage / lost.run_id).exists()
    with own_graph.open() as driver:
        outcome = driver.materialize()
        assert driver.instance.get_run_by_id(lost.run_id) is None
    assert outcome.num_current == outcome.num_nodes


def test_cells_are_also_named_as_dagster_names_them(run: Run) -> None:
    for name in ("oof_predictions/one|0", "oof_predictions/one/shift+0"):
        assert run("explain", name)[:2] == (0, "oof_predictions/one/shift+0: current\n")


def test_a_refusal_stays_short_and_says_where_the_rest_is(own_graph: Graph) -> None:
    data = replace(
        own_graph.recipe.data, simulation=replace(SIMULATION, **dict.fromkeys(("num_train_videos", "min_seconds"), 14))
    )
    many = {"max_seconds": 99, "num_validate_videos": 30, "num_test_videos": 9, "num_groups": 2, "seed": 5}
    data = replace(data, simulation=replace(data.simulation, **many))
    with pytest.raises(ParentMismatchError) as caught:
        require_current(replace(own_graph.recipe, data=data), own_graph.store, Node("leaderboard"))
    assert len(str(caught.value)) < 600
    assert "`yt8m explain leaderboard` says all" in str(caught.value)


def test_lineage_shows_the_way_from_the_submission_to_the_shards(run: Run, own_graph: Graph) -> None:
    code, out, _ = run("lineage")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("submission  ")
    found = {line.split()[0]: line for line in lines if "as above" not in line}
    above = {"submission", "ensemble_weights", "test_ranking/one", "finetuned_model/two", "pretraining_shards"}
    assert above <= set(found)
    for key, line in found.items():
        manifest = own_graph.store.require(key)
        assert line.split()[1:] == [manifest.digest[:16], own_graph.store.uri(manifest)]
        assert Path(line.split()[2]).is_dir()
    own_graph.store.delete("finetuned_model/two")
    code, out, _ = run("lineage", "test_ranking/two")
    assert code == 1
    assert "finetuned_model/two  missing" in out
