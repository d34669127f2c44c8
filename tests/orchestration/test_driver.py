"""The whole graph with a real Dagster instance and a real MLflow: first pass, second pass, changes."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest

from orchestration.cli_commands import counts
from orchestration.instance import driver_instance
from orchestration.jobs import jobs
from orchestration.plan import Step, required_nodes
from tests.orchestration.conftest import Graph, RecordingProgress
from tests.orchestration.driving import InterruptingProgress, pull_the_plug, runs_of, stale_causes
from yt8m_assets.errors import CheckpointMismatchError, ConfigError, Yt8mError
from yt8m_assets.partitions import every_asset, partition_key
from yt8m_assets.reports.ablation_rankings import OofRankings
from yt8m_assets.stages.lineage import current_manifest
from yt8m_assets.stages.nodes import ASSETS, Node
from yt8m_assets.submission import validate_submission

ROOT = Path(__file__).parents[2]


def test_runs_of_the_command_line_are_those_of_named_jobs(graph: Graph) -> None:
    """As runs of the page: a job's name, its place, its limit, and no tag that nobody asked for."""
    runs = runs_of(graph)
    assert {run.job_name for run in runs} == set(jobs()) - {"predict_optional_cells", "train_folds", "refit_models"}
    for run in runs:
        assert run.remote_job_origin is not None
        assert run.remote_job_origin.job_name == run.job_name
        assert run.remote_job_origin.repository_origin.code_location_origin.location_name == "yt8m"
        assert run.tags["dagster/max_runtime"] == str(jobs()[run.job_name][1])
        assert {tag for tag in run.tags if tag.startswith("yt8m/")} == {"yt8m/recipe"}


def test_a_run_under_way_has_its_place(own_graph: Graph) -> None:
    """So that the page can lead to its job, and end it."""
    own_graph.store.delete("oof_predictions/two/shift+1")
    seen: list[dg.DagsterRun] = []
    with own_graph.open(progress=InterruptingProgress("scoring", 1, lambda: seen.extend(runs_of(own_graph)))) as driver:
        driver.run(Step(assets=("oof_predictions",), first="two|1", last="two|1"))
    assert seen[0].status == dg.DagsterRunStatus.STARTED
    assert seen[0].remote_job_origin is not None
    assert seen[0].remote_job_origin.job_name == "predict_cells"


@pytest.mark.slow
def test_what_nobody_asked_for_is_in_no_tag(own_graph: Graph) -> None:
    """The demo throws away a half-trained model of another configuration; that run alone says so."""
    first, second = own_graph.recipe.models
    other = replace(second, finetuning=replace(second.finetuning, checkpoint_every=1))
    half = replace(own_graph.recipe, models=(first, replace(other, finetuning=replace(other.finetuning, num_steps=9))))
    with (
        own_graph.open(half, InterruptingProgress("finetuning", 3, pull_the_plug)) as driver,
        pytest.raises(Yt8mError, match="pulled the plug"),
    ):
        driver.materialize(until="finetuned_model")
    before = len(runs_of(own_graph))
    changed = replace(
        own_graph.recipe, models=(first, replace(second, finetuning=replace(second.finetuning, num_steps=4)))
    )
    with own_graph.open(changed) as driver:
        with pytest.raises(CheckpointMismatchError):
            driver.materialize(until="finetuned_model")
        driver.materialize(until="finetuned_model", afresh_if_needed=True)
    runs = runs_of(own_graph)[:-before]
    assert [run.tags.get("yt8m/start_afresh") for run in runs if "finetuned_model" in str(run.asset_selection)] == [
        "true", None, None,
    ]  # fmt: skip
    assert own_graph.store.require("finetuned_model/two").config["training"]["num_steps"] == 4


def test_a_complete_graph_looks_complete(graph: Graph) -> None:
    """What the lineage page counts: no partition of what the recipe needs is missing."""
    with graph.open() as driver:
        assets = driver.definitions.resolve_asset_graph()
        for asset in [name for name in every_asset(graph.recipe) if name in ASSETS]:  # not the optional cells
            partitions = assets.get(dg.AssetKey(asset)).partitions_def
            if partitions is not None:
                made = driver.instance.get_materialized_partitions(dg.AssetKey(asset))
                assert made == set(partitions.get_partition_keys()), asset


def test_first_pass_makes_everything_and_dagster_knows(graph: Graph) -> None:
    required = required_nodes(graph.recipe)
    assert graph.first is not None
    assert (graph.first.num_nodes, graph.first.num_current) == (len(required), 0)
    with graph.open() as driver:
        for node in required:
            manifest = current_manifest(graph.recipe, graph.store, node)
            assert manifest is not None, node
            assert driver.records.digest(node) == manifest.digest
        runs = driver.instance.get_runs()
        assert {run.run_id for run in runs} == set(graph.first.runs)
        assert {run.status for run in runs} == {dg.DagsterRunStatus.SUCCESS}
        keys = [key for key in driver._blocking_checks() if key.asset_key.to_user_string() in ASSETS]
        latest = driver.instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
        assert set(latest) == set(keys)
        assert {record.status.value for record in latest.values()} == {"SUCCEEDED"}


def test_the_submission_is_valid(graph: Graph) -> None:
    from yt8m_assets.stages.data import read_segment_classes

    path = graph.store.fetch(graph.store.require("submission")) / "submission.csv"
    assert not validate_submission(path, read_segment_classes(graph.recipe, graph.store).tolist())


def test_mlflow_and_dagster_point_at_each_other(graph: Graph) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(graph.settings.tracking_uri)
    experiment = client.get_experiment_by_name("yt8m")
    assert experiment is not None
    assert experiment.artifact_location == graph.state.mlflow_artifacts.as_uri()
    runs = client.search_runs([experiment.experiment_id], "tags.kind = 'finetuning'")
    assert {run.data.tags["model"] for run in runs} == {"one", "two"}
    assert graph.first is not None
    for run in runs:
        assert run.data.tags["dagster_run_id"] in graph.first.runs
        assert run.data.tags["dagster_asset"] == "finetuned_model"
        assert run.data.tags["dagster_partition"] == run.data.tags["model"]
        manifest = graph.store.require(f"finetuned_model/{run.data.tags['model']}")
        assert manifest.metadata["mlflow_run_id"] == run.info.run_id


@pytest.mark.parametrize(
    ("node", "file", "columns"),
    [
        (Node("oof_predictions", "one", 0), "ranking.parquet", ["class_id", "segment", "score"]),
        (Node("test_ranking", "two"), "ranking.parquet", ["class_id", "segment", "score"]),
        (Node("holdout_ratings"), "ratings.csv", ["segment_id", "class_id", "score"]),
        (Node("submission"), "submission.csv", ["Class", "Segments"]),
    ],
)
def test_dagster_knows_the_tables(graph: Graph, node: Node, file: str, columns: list[str]) -> None:
    import pandas

    manifest = graph.store.require(node.key)
    path = graph.store.fetch(manifest) / file
    header = None if file == "ratings.csv" else 0
    table = pandas.read_parquet(path) if path.suffix == ".parquet" else pandas.read_csv(path, header=header)
    with graph.open() as driver:
        wanted = dg.AssetRecordsFilter(
            dg.AssetKey(node.asset), asset_partitions=[key] if (key := partition_key(node)) else None
        )
        (record,) = driver.instance.fetch_materializations(wanted, limit=1).records
    assert record.asset_materialization is not None
    metadata = record.asset_materialization.metadata
    assert metadata["dagster/row_count"].value == len(table) > 0
    schema = metadata["dagster/column_schema"].value
    assert isinstance(schema, dg.TableSchema)
    assert [column.name for column in schema.columns] == columns
    assert header is None or list(table.columns) == columns
    assert metadata["dagster/uri"].value == graph.store.uri(manifest)


def test_second_pass_starts_nothing_and_imports_nothing_heavy(graph: Graph) -> None:
    script = (
        "import pathlib, sys\n"
        "from tests.tiny import tiny_recipe\n"
        "from orchestration.driver import materialize\n"
        "from orchestration.state import prepare_state\n"
        "from yt8m_assets.progress import NullProgress\n"
        f"state = prepare_state(pathlib.Path({str(graph.state.root)!r}))\n"
        "outcome = materialize(tiny_recipe(), state, NullProgress())\n"
        "print(outcome.num_nodes - outcome.num_current, len(outcome.runs))\n"
        "print([name for name in ('torch', 'mlflow', 'matplotlib') if name in sys.modules])\n"
    )
    answer = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines() == ["0 0", "[]"]
    assert not answer.stderr


def test_nothing_is_stale_for_dagster(graph: Graph) -> None:
    for asset, partition in [
        ("holdout_ratings", None), ("finetuned_model", "one"), ("oof_predictions", "one|0"),
        ("test_predictions", "two|-1"),
        ("oof_ranking", "two"), ("ensemble_weights", None), ("submission", None), ("leaderboard", None),
    ]:  # fmt: skip
        assert not stale_causes(graph, asset, partition), asset


def test_making_the_same_again_changes_nothing(own_graph: Graph) -> None:
    """RELIABILITY F31: same content, same data version, nothing downstream becomes stale."""
    before = own_graph.store.require("finetuned_model/one")
    with own_graph.open() as driver:
        driver.run(Step(assets=("finetuned_model",), first="one", last="one"))
        own_graph.store.delete("oof_ranking/one")
        driver.run(Step(assets=("oof_ranking",), first="one", last="two"))
        driver.lineage.forget()
        assert all(driver.up_to_date(node) for node in required_nodes(own_graph.recipe))
    assert own_graph.store.require("finetuned_model/one") == before
    assert not stale_causes(own_graph, "oof_predictions", "one|0")
    assert not stale_causes(own_graph, "ensemble_weights", None)


def test_a_changed_recipe_redoes_what_depends_on_it(own_graph: Graph) -> None:
    recipe = own_graph.recipe
    changed = replace(recipe, search=replace(recipe.search, seed=recipe.search.seed + 1))
    progress = RecordingProgress()
    with own_graph.open(changed, progress) as driver:
        driver.materialize()
        assert progress.steps == ["ensemble_weights, submission, leaderboard"]
        assert not driver.materialize().runs
    progress = RecordingProgress()
    fused = replace(changed, prediction=replace(recipe.prediction, tta_w0=1.5))
    with own_graph.open(fused, progress) as driver:
        driver.materialize(until="test_ranking")
    assert progress.steps == ["test_ranking  one ... two"]


def test_what_dagster_has_not_recorded_is_recorded(own_graph: Graph) -> None:
    """A run killed between publishing and recording: the artifact is kept, the record made good."""
    before = own_graph.store.require("test_ranking/two")
    with driver_instance(own_graph.state) as instance:
        instance.wipe_assets([dg.AssetKey("test_ranking")])
    progress = RecordingProgress()
    with own_graph.open(progress=progress) as driver:
        outcome = driver.materialize(until="test_ranking")
    assert progress.steps == ["test_ranking  one ... two"]
    assert (outcome.num_found, outcome.num_made) == (2, 0)
    assert counts(outcome) == f"0 made, 2 found, made before, {outcome.num_current} were up to date"
    assert own_graph.store.require("test_ranking/two") == before


def test_shifts_that_no_ranking_fuses(own_graph: Graph) -> None:
    """One run, in an asset of their own; nothing else becomes stale, and the ablation finds them."""
    progress = RecordingProgress()
    before = [run.run_id for run in runs_of(own_graph)]
    with own_graph.open(progress=progress) as driver:
        outcome = driver.predict(["oof_predictions"], ["one", "two"], [-2, -1])
        assert (outcome.num_nodes, outcome.num_current, outcome.num_made) == (4, 1, 3)
        assert counts(outcome) == "3 made, 1 were up to date"
        assert progress.steps == ["oof_optional_predictions  one|-2 ... one|-1"]
        assert not driver.predict(["oof_predictions"], ["one", "two"], [-2, -1]).runs
        made = driver.instance.get_materialized_partitions(dg.AssetKey("oof_optional_predictions"))
    assert made == {"one|-2", "two|-2", "one|-1"}
    assert [run.run_id for run in runs_of(own_graph)][1:] == before
    assert OofRankings(own_graph.recipe, own_graph.store).shifts_made("one") == {-2, -1, 0, 1}
    for asset, partition in [("leaderboard", None), ("oof_ranking", "one"), ("oof_ranking", "two")]:
        assert not stale_causes(own_graph, asset, partition)
    with own_graph.open() as driver:
        assert not driver.materialize().runs
        with pytest.raises(ConfigError, match="one, two"):
            driver.predict(["oof_predictions"], ["three"], [0])
