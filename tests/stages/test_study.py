"""A study: which trials it makes, that a killed one goes on with the same, and what it leaves."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.graph import QUIET, make_lists, open_store
from tests.memory_tracking import MemoryTracking
from tests.orchestration.driving import InterruptingProgress, pull_the_plug
from tests.tiny import tiny_recipe
from yt8m_assets.errors import ConfigError
from yt8m_assets.recipes import load_recipe
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.recipes.study import StudyConfig
from yt8m_assets.stages.lineage import Lineage, resolve_inputs
from yt8m_assets.stages.nodes import ASSETS, Node, all_nodes
from yt8m_assets.stages.study import Study, Trial, run_study
from yt8m_assets.stages.study_table import columns_hold, flat
from yt8m_assets.stages.training import finetune, pretrain
from yt8m_assets.stages.variants import Variant, keep_variant, kept_variants
from yt8m_assets.storage import ArtifactStore, StageResult
from yt8m_assets.tracking import NullTracking

OPTIONS: dict[str, Any] = {"tracking": NullTracking(), "progress": QUIET, "run_tags": {}}
SPACE = {"finetuning.learning_rate": [1e-5, 1e-1]}
CURVED = {**SPACE, "finetuning.num_steps": [6], "finetuning.evaluate_every": [1]}
SMALL = StudyConfig(steps=11, space=SPACE, num_initial=2)


@pytest.fixture(scope="module")
def _pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    recipe, store = tiny_recipe(), open_store(folder)
    make_lists(recipe, store)
    pretrain(recipe, store, "one", **OPTIONS)
    return folder


@pytest.fixture(scope="module")
def _studied(_pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("studied")
    shutil.copytree(_pretrained, folder, dirs_exist_ok=True)
    study((tiny_recipe(), open_store(folder)))
    return folder


@pytest.fixture
def studied(_studied: Path, tmp_path: Path) -> tuple[Recipe, ArtifactStore]:
    """The same with a small study."""
    shutil.copytree(_studied, tmp_path / "studied")
    return tiny_recipe(), open_store(tmp_path / "studied")


@pytest.fixture
def graph(_pretrained: Path, tmp_path: Path) -> tuple[Recipe, ArtifactStore]:
    """The tiny recipe, and a store with what a study of its first model starts from."""
    shutil.copytree(_pretrained, tmp_path / "graph")
    return tiny_recipe(), open_store(tmp_path / "graph")


def trials_of(store: ArtifactStore, name: str = "study") -> list[dict[str, Any]]:
    manifest = store.require(f"checkpoints/study/one/{name}")
    return list(json.loads((store.fetch(manifest) / "trials.json").read_text())["trials"])


def pq_round_trip(table: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    pq.write_table(pa.Table.from_pylist(table), path)
    return list(pq.read_table(path).to_pylist())


def study(graph: tuple[Recipe, ArtifactStore], config: StudyConfig = SMALL, **options: Any) -> StageResult:
    return run_study(*graph, "one", config, **{**OPTIONS, **options})


def test_what_a_study_leaves(studied: tuple[Recipe, ArtifactStore]) -> None:
    store = studied[1]
    found, trials = store.require("study/one/study"), trials_of(store)
    assert [(trial["status"], trial["steps"]) for trial in trials] == [("completed", 3)] * 3  # the fourth does not fit
    assert found.metadata["steps"] == 9
    best = max(trials, key=lambda trial: trial["score"])
    assert found.metadata["best_map_in_training"] == best["score"]
    assert found.metadata["variant"] == f"one_study_{best['number']:02d}"
    assert list(kept_variants(store)) == [found.metadata["variant"]]
    assert store.numbers(f"oof_ranking/{found.metadata['variant']}") == [1]
    folder = store.fetch(found)
    with (folder / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["map"]) for row in rows] == [trial["score"] for trial in trials]
    assert [row["finetuning.learning_rate"] for row in pq.read_table(folder / "trials.parquet").to_pylist()] == [
        trial["point"]["finetuning.learning_rate"] for trial in trials
    ]
    assert "report/study.png" in found.files
    made = {"pretrained_model/one", "pretraining_shards", "segment_shards", "test_shards", "holdout_ratings"}
    lineage = Lineage(*studied)
    assert {node.key for node in all_nodes(studied[0]) if lineage.current(node)} == made
    assert study(studied).reused


@pytest.mark.slow
def test_the_best_settings_are_a_recipe_that_trains_the_same(studied: tuple[Recipe, ArtifactStore]) -> None:
    store, found = studied[1], studied[1].require("study/one/study")
    better = load_recipe(store.fetch(found) / "best.json")
    again = finetune(better, store, "one", **OPTIONS).manifest
    assert again.digest == store.require(f"finetuned_model/{found.metadata['variant']}").digest


def test_the_best_settings_are_a_recipe(studied: tuple[Recipe, ArtifactStore]) -> None:
    recipe, found = studied[0], studied[1].require("study/one/study")
    better = load_recipe(studied[1].fetch(found) / "best.json")
    rate = found.metadata["best_settings"]["finetuning.learning_rate"]
    row = replace(recipe.model("one"), finetuning=replace(recipe.model("one").finetuning, learning_rate=rate))
    assert better == replace(recipe, name="tiny_study", models=(row, recipe.models[1]))


@pytest.mark.slow
def test_a_larger_budget_goes_on(studied: tuple[Recipe, ArtifactStore]) -> None:
    first = trials_of(studied[1])
    study(studied, StudyConfig(steps=15, space=SPACE, num_initial=2))
    assert trials_of(studied[1])[:3] == first
    assert len(trials_of(studied[1])) == 5


def test_a_killed_study_goes_on_with_the_same_trials(
    graph: tuple[Recipe, ArtifactStore], studied: tuple[Recipe, ArtifactStore]
) -> None:
    store, whole, tracking = graph[1], studied[1], MemoryTracking()
    killed = InterruptingProgress("finetuning one_study_01", 2, pull_the_plug)
    with pytest.raises(RuntimeError, match="pulled the plug"):
        study(graph, progress=killed, tracking=tracking)
    assert len(trials_of(store)) == 1
    assert store.numbers("study/one/study") == []
    again, made = study(graph, tracking=tracking).manifest, whole.require("study/one/study")
    assert trials_of(store) == trials_of(whole)
    for name in ("trials.csv", "trials.parquet", "best.json", "report/study.png"):
        assert again.files[name] == made.files[name], name
    (parent,) = [run for run in tracking.runs if run.record.tags["kind"] == "study"]
    children = [run for run in tracking.runs if run.record.tags["kind"] == "finetuning"]
    assert {run.record.tags["parent_token"] for run in children} == {parent.record.token}
    assert [run.record.tags["partition"] for run in children] == [f"one_study_{number:02d}" for number in range(3)]
    points = [point for point in parent.record.points if point[0] == "study/map_at_100000"]
    assert [value for _, _, value, _ in points] == [trial["score"] for trial in trials_of(store)]


def test_the_score_is_of_the_weights_that_are_published(graph: tuple[Recipe, ArtifactStore]) -> None:
    recipe, store = graph
    config = StudyConfig(steps=60, space={**CURVED, "finetuning.keep_best": [False]})
    inputs = resolve_inputs(recipe, store, Node("finetuned_model", "one"))
    space = config.space_of(recipe, "one")
    looked_at = Study(recipe=recipe, store=store, base="one", config=config, space=space, inputs=inputs)
    trial = looked_at.run_trial([], {**space.fixed, "finetuning.learning_rate": 1e-1}, OPTIONS)  # type: ignore[arg-type]
    assert trial.score == store.require("finetuned_model/one_study_00").metadata["map"]
    assert trial.score < max(score for _, score in trial.curve)  # of weights that are gone


def test_a_hopeless_trial_ends_early(graph: tuple[Recipe, ArtifactStore]) -> None:
    recipe, store = graph
    config = StudyConfig(steps=60, space=CURVED)
    inputs = resolve_inputs(recipe, store, Node("finetuned_model", "one"))
    space = config.space_of(recipe, "one")
    good = [
        Trial(number=number, point={}, status="completed", score=0.99, steps=6, curve=((0.5, 0.99), (1.0, 0.99)))
        for number in range(4)
    ]
    point = {**space.fixed, "finetuning.learning_rate": 1e-5}
    looked_at = Study(recipe=recipe, store=store, base="one", config=config, space=space, inputs=inputs)
    tracking = MemoryTracking()
    trial = looked_at.run_trial(good, point, {**OPTIONS, "tracking": tracking})  # type: ignore[typeddict-item]
    assert (trial.status, trial.steps, len(trial.curve)) == ("pruned", 3, 3)
    assert trial.score == max(score for _, score in trial.curve)
    assert tracking.runs[-1].status == "KILLED"
    assert store.numbers("finetuned_model/one_study_04") == []
    assert store.backend.names("checkpoints/finetuned_model") == []


@pytest.mark.slow
def test_hopeless_trials_make_room_for_others(graph: tuple[Recipe, ArtifactStore]) -> None:
    found = study(graph, StudyConfig(steps=60, space=CURVED, num_initial=8, seed=1)).manifest
    trials = trials_of(graph[1])
    pruned = [trial for trial in trials if trial["status"] == "pruned"]
    assert found.metadata["pruned"] == len(pruned) > 0
    assert min(trial["number"] for trial in pruned) >= 4
    assert all(len(trial["curve"]) == trial["steps"] < 6 for trial in pruned)
    assert sum(trial["steps"] for trial in trials) <= 60
    assert len(trials) > 10


@pytest.mark.slow
def test_a_trial_without_a_number_is_a_bad_one(graph: tuple[Recipe, ArtifactStore]) -> None:
    space = {"finetuning.learning_rate": [1e-3, 2e-3, 1e38]}
    study(graph, StudyConfig(steps=9, space=space, num_initial=1))
    trials = trials_of(graph[1])
    failed = [trial for trial in trials if trial["status"] == "failed"]
    assert [(trial["point"]["finetuning.learning_rate"], trial["score"]) for trial in failed] == [(1e38, None)]
    assert len(trials) == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 2}, "study.steps = 2: the first trial alone takes 3"),
        ({"steps": 0}, "study.steps = 0: must be at least 1"),
        ({"name": "a b"}, "study.name = 'a b': use letters"),
        ({"name": "\u00e9"}, "use letters, digits and underscores"),
        ({"name": "a" * 99}, "106 characters; use at most 100"),
        ({"space": {"finetuning.label_smoothing": [0.0, 1.5]}}, "label_smoothing = 1.5: must lie in"),
        ({"space": {"overrides.dropout": [0.1, "x", 0.2]}}, "dropout': 'x'"),
        ({"space": {"finetuning.num_steps": [0, 3]}}, "num_steps = 0: a trial of no steps"),
        ({"space": {"learning_rate": [0, 1]}}, r"space: learning_rate: give SECTION\.FIELD"),
        ({"space": {"finetuning.rate": [0, 1]}}, "unknown field 'models.one_study_00.finetuning.rate'"),
        ({"space": {"finetuning.batch_size": [-2, -1]}}, "batch_size = -[12]: must be above zero"),
    ],
)
def test_what_is_refused(graph: tuple[Recipe, ArtifactStore], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        study(graph, StudyConfig(**{"steps": 9, "space": SPACE, **fields}))
    assert kept_variants(graph[1]) == {}


def test_a_name_is_one_study(studied: tuple[Recipe, ArtifactStore]) -> None:
    with pytest.raises(ConfigError, match="was of another space, seed, recipe or data: choose another name"):
        study(studied, replace(SMALL, seed=5))
    study(studied, replace(SMALL, seed=5, name="other", steps=3))
    assert len(trials_of(studied[1], "other")) == 1
    assert study(studied).manifest.metadata["study"] == "study"  # none takes the other's place
    assert studied[1].require("study/one/study").generation == 1


@pytest.mark.slow
def test_a_smaller_budget_counts_what_it_has_room_for(studied: tuple[Recipe, ArtifactStore]) -> None:
    before = trials_of(studied[1])
    found = study(studied, replace(SMALL, steps=7)).manifest
    assert (found.metadata["trials"], found.metadata["steps"]) == (2, 6)
    assert found.metadata["best_map_in_training"] == max(trial["score"] for trial in before[:2])
    assert trials_of(studied[1]) == before


def test_a_damaged_list_of_trials_costs_one(studied: tuple[Recipe, ArtifactStore]) -> None:
    store, before = studied[1], trials_of(studied[1])
    Path(store.uri(store.require("checkpoints/study/one/study"), "trials.json")).unlink()
    assert study(studied, replace(SMALL, steps=9)).manifest.metadata["trials"] == 3
    assert trials_of(store) == before


def test_a_variant_of_a_trials_name_is_let_be(studied: tuple[Recipe, ArtifactStore]) -> None:
    recipe, store = studied
    settings = {"finetuning": {"learning_rate": 0.5}}
    lost = next(number for number in range(3) if f"one_study_{number:02d}" not in kept_variants(store))
    mine = keep_variant(recipe, store, Variant(base="one", name=f"study_{lost:02d}", settings=settings))
    study(studied, replace(SMALL, steps=9))
    assert kept_variants(store)[mine.key] == mine
    keep_variant(recipe, store, Variant(base="one", name="study_07", settings=settings))
    with pytest.raises(ConfigError, match="the variant 'study_07' is kept and is none of its trials"):
        study(studied, replace(SMALL, steps=15))
    assert len(trials_of(store)) == 3


def test_another_code_of_training_is_another_study(
    studied: tuple[Recipe, ArtifactStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = replace(ASSETS["finetuned_model"], code_version="next")
    monkeypatch.setitem(ASSETS, "finetuned_model", newer)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="choose another name"):
        study(studied)


def test_choices_of_several_kinds_are_a_table(tmp_path: Path) -> None:
    values = [None, 0.5, "x"], [None, 0.5, 1], [True, None, False], [[1], [2, 3], None], [True, 1, "1"]
    rows = [
        {"number": number, "status": "completed", "score": 0.5, "steps": 3, "point": {"a": value}}
        for case in values
        for number, value in enumerate(case)
    ]
    for place, case in enumerate(values):
        table = columns_hold([flat(row) for row in rows[3 * place : 3 * place + 3]])
        read = pq_round_trip(table, tmp_path / "trials.parquet")
        assert [row["a"] for row in read] == [row["a"] for row in table], case
