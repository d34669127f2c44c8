"""Automation, ticked by hand: off by default, asks once for what has changed, and for nothing else."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
from dagster._utils.schedules import schedule_execution_time_iterator

from orchestration.definitions import build_definitions
from orchestration.driver import Driver
from orchestration.plan import Step, groups, required_nodes, steps
from orchestration.resources import FixedProgress
from orchestration.sensors import SHARDS_TAG, build_schedules, build_sensors
from tests.orchestration.conftest import Graph, report_verdict
from yt8m_assets.errors import MissingDataError
from yt8m_assets.partitions import nodes_of
from yt8m_assets.progress import NullProgress
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.nodes import ASSETS, Node
from yt8m_assets.storage import ArtifactStore
from yt8m_assets.tracking import NullTracking


def sensor(recipe: Recipe, name: str) -> dg.SensorDefinition:
    return next(sensor for sensor in build_sensors(recipe) if sensor.name == name)


def real_recipe(graph: Graph, folder: Path) -> Recipe:
    """The tiny recipe over shards that are simply there, as real ones are."""
    from yt8m_assets.stages.locating import simulated_folder

    source = simulated_folder(graph.recipe, graph.store)
    for path in source.rglob("*.tfrecord"):
        target = folder / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.hardlink_to(path)
    (classes,) = source.rglob("segment_label_ids.csv")
    patterns = {
        "pretraining": (f"{folder}/2/frame/train/*.tfrecord",),
        "segments": (f"{folder}/3/frame/validate/*.tfrecord",),
        "test": (f"{folder}/3/frame/test/*.tfrecord",),
    }
    data = replace(graph.recipe.data, simulation=None, segment_classes_uri=str(classes), **patterns)
    return replace(graph.recipe, data=data)


def tick(recipe: Recipe, store: ArtifactStore, instance: dg.DagsterInstance | None = None) -> list[list[str]]:
    """The assets of the runs that the sensor of changed shards asks for."""
    with dg.build_sensor_context(instance=instance or dg.DagsterInstance.ephemeral()) as context:
        result = sensor(recipe, "changed_shards")(context, store=store)
    assert isinstance(result, dg.SensorResult)
    requests = result.run_requests or []
    assert not any(request.run_key for request in requests)  # Dagster would not start a second run for it
    return [[key.to_user_string() for key in request.asset_selection or []] for request in requests]


def test_all_that_launches_runs_is_off(graph: Graph) -> None:
    assert {s.name for s in build_sensors(graph.recipe)} == {
        "changed_shards",
        "keep_up_to_date",
        "submission_freshness",
        "changed_recipe",
    }
    for item in build_sensors(graph.recipe):
        launches_nothing = item.name == "changed_recipe"
        assert (item.default_status == dg.DefaultSensorStatus.STOPPED) != launches_nothing
        assert len(str(item.description)) > 40
    assert [s.default_status for s in build_schedules()] == [dg.DefaultScheduleStatus.STOPPED]


def test_new_changed_and_removed_shards_are_noticed(graph: Graph, tmp_path: Path) -> None:
    from yt8m_assets.stages.data import make_shards

    recipe = real_recipe(graph, tmp_path / "data")
    store = ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache")
    every = [["pretraining_shards"], ["segment_shards", "holdout_ratings"], ["test_shards"]]
    assert tick(recipe, store) == every
    assert tick(recipe, store) == every  # as after a run that failed
    for asset in ("pretraining_shards", "segment_shards", "test_shards"):
        make_shards(recipe, store, asset, progress=NullProgress())
    assert tick(recipe, store) == []
    first, *_ = sorted((tmp_path / "data" / "3" / "frame" / "test").iterdir())
    aside = tmp_path / first.name
    first.rename(aside)
    assert tick(recipe, store) == [["test_shards"]]
    make_shards(recipe, store, "test_shards", progress=NullProgress())
    assert tick(recipe, store) == []
    aside.rename(first)
    store.delete("test_shards")  # the generations before are gone: the same files are asked for again
    assert tick(recipe, store) == [["test_shards"]]


def test_each_list_of_shards_is_asked_for_by_itself(graph: Graph, tmp_path: Path) -> None:
    recipe = real_recipe(graph, tmp_path / "data")
    store = ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache")
    for path in (tmp_path / "data" / "3" / "frame" / "test").iterdir():
        path.unlink()
    others = [["pretraining_shards"], ["segment_shards", "holdout_ratings"]]
    assert tick(recipe, store) == others
    instance = dg.DagsterInstance.ephemeral()
    run = dg.DagsterRun("job", run_id="0" * 32, tags={SHARDS_TAG: "pretraining_shards"})
    instance.add_run(run)
    assert tick(recipe, store, instance) == others[1:]  # the first is under way
    instance.report_run_failed(run)
    assert tick(recipe, store, instance) == others
    for path in (tmp_path / "data").rglob("*.tfrecord"):
        path.unlink()
    with pytest.raises(MissingDataError, match=r"test_shards: .*matches no shard"):
        tick(recipe, store)


def asked_for(result: dg.EvaluateAutomationConditionsResult) -> list[Node]:
    """The nodes that a tick of the automation conditions asks for."""
    keys = {asset: result.get_requested_partitions(dg.AssetKey(asset)) for asset in ASSETS}
    return [node for asset, found in keys.items() for node in nodes_of(asset, sorted(found, key=str))]


def publish_other_weights(store: ArtifactStore, key: str) -> None:
    """The model again, from the same inputs, with other weights: what a training of another outcome gives."""
    import torch
    from safetensors.torch import load, save

    generator = torch.Generator().manual_seed(5)
    manifest = store.require(key)
    folder = store.fetch(manifest)
    arguments = {"parents": manifest.parents, "config": manifest.config, "fingerprint": manifest.fingerprint}
    with store.publish(key, **arguments) as publication:  # type: ignore[arg-type]
        for name in manifest.files:
            content = (folder / name).read_bytes()
            if name.endswith(".safetensors"):
                tensors = load(content)
                noise = {name: torch.randn(value.shape, generator=generator) for name, value in tensors.items()}
                content = save({name: value + noise[name].to(value.dtype) for name, value in tensors.items()})
            (publication.path / name).parent.mkdir(exist_ok=True)
            (publication.path / name).write_bytes(content)
        publication.metadata.update(manifest.metadata)


def ticks(graph: Graph, driver: Driver) -> list[list[Node]]:
    """What automation asks for from when it is switched on, each tick's runs made before the next one."""
    resources = {"store": graph.store, "tracking": NullTracking(), "progress": None}
    definitions = build_definitions(graph.recipe, resources)
    asked: list[list[Node]] = []
    cursor = None
    for _ in range(10):
        result = dg.evaluate_automation_conditions(definitions, driver.instance, cursor=cursor)
        cursor, wanted = result.cursor, asked_for(result)
        if not wanted:
            return asked
        asked.append(wanted)
        for group in groups(graph.recipe, wanted):
            for step in steps(graph.recipe, group):
                driver.run(step)
    raise AssertionError(asked)


@pytest.mark.filterwarnings("ignore::dagster.BetaWarning")  # of Dagster's own evaluator
def test_a_new_model_brings_what_follows_up_to_date_in_order(own_graph: Graph) -> None:
    """Also what was out of date before automation was switched on; nothing is asked for before its turn."""
    with own_graph.open() as driver:
        assert ticks(own_graph, driver) == []
        driver.run(Step(assets=("finetuned_model",), first="one", last="one"))
        assert ticks(own_graph, driver) == []  # materialised again with the same content
        publish_other_weights(own_graph.store, "finetuned_model/one")
        driver.run(Step(assets=("finetuned_model",), first="one", last="one"))
        asked = ticks(own_graph, driver)
        cells = [Node(f"{split}_predictions", "one", shift) for split in ("oof", "test") for shift in (0, 1)]
        rankings = [Node("oof_ranking", "one"), Node("test_ranking", "one")]
        last = [[Node("ensemble_weights")], [Node("submission")], [Node("leaderboard")]]
        assert asked == [cells, rankings, *last]
        driver.lineage.forget()
        assert all(driver.up_to_date(node) for node in required_nodes(own_graph.recipe))


def searched_anew(graph: Graph) -> Graph:
    """The same state under a recipe that searches other weights: those are due, and what follows them."""
    search = replace(graph.recipe.search, seed=graph.recipe.search.seed + 1)
    return Graph(replace(graph.recipe, search=search), graph.state)


DUE = [[Node("ensemble_weights")], [Node("submission")], [Node("leaderboard")]]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::dagster.BetaWarning")
def test_automation_waits_for_what_failed_its_check(own_graph: Graph) -> None:
    graph = searched_anew(own_graph)
    with graph.open() as driver:
        instance = driver.instance
        report_verdict(instance, Node("oof_ranking", "two"), "coverage", passed=False)
        assert ticks(graph, driver) == []
        report_verdict(instance, Node("oof_ranking", "one"), "coverage", passed=True)
        assert ticks(graph, driver) == []  # a good verdict on another partition says nothing about this one
        driver.run(Step(assets=("oof_ranking",), first="two", last="two"))  # up to date, and checked again
        assert ticks(graph, driver) == DUE


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::dagster.BetaWarning")
@pytest.mark.parametrize(
    ("job", "asset", "tags"),
    [
        ("ensemble", "ensemble_weights", {}),
        ("rank_models", "oof_ranking", {"dagster/partition": "one"}),
    ],
)
def test_automation_waits_for_what_is_being_made(own_graph: Graph, job: str, asset: str, tags: dict[str, str]) -> None:
    """The asset itself, or one that it is made from."""
    graph = searched_anew(own_graph)
    with graph.open() as driver:
        run = driver.instance.create_run_for_job(
            driver.definitions.resolve_job_def(job),
            asset_selection={dg.AssetKey(asset)},
            status=dg.DagsterRunStatus.STARTED,
            tags=tags,
        )
        assert ticks(graph, driver) == []
        driver.instance.report_run_failed(run)
        assert ticks(graph, driver) == DUE


def test_the_schedule_runs_the_ensemble_on_mondays(own_graph: Graph) -> None:
    (schedule,) = build_schedules()
    monday = datetime(2026, 11, 23, 4, tzinfo=UTC)
    times = schedule_execution_time_iterator(monday.timestamp() - 1, str(schedule.cron_schedule), "UTC")
    assert next(times) == monday
    tick = schedule.evaluate_tick(dg.build_schedule_context(scheduled_execution_time=monday))
    (request,) = tick.run_requests or []
    assert schedule.job_name == "ensemble"
    with own_graph.open() as driver:
        resources = {"store": driver.store, "tracking": NullTracking(), "progress": FixedProgress(NullProgress())}
        job = build_definitions(own_graph.recipe, resources).resolve_job_def(schedule.job_name)
        result = job.execute_in_process(instance=driver.instance, run_config=request.run_config, tags=request.tags)
    assert result.success
    made = {event.asset_key.to_user_string() for event in result.get_asset_materialization_events() if event.asset_key}
    assert made == {"ensemble_weights", "submission", "leaderboard"}


def test_freshness_is_asked_for_and_says_what_is_old(own_graph: Graph) -> None:
    context = dg.build_sensor_context()
    request = sensor(own_graph.recipe, "submission_freshness")(context)
    assert isinstance(request, dg.RunRequest)
    assert [str(key.name) for key in request.asset_check_keys or []] == ["up_to_date"]
    with own_graph.open() as driver:
        for expected in (True, False):
            job = driver.definitions.resolve_implicit_global_asset_job_def().get_subset(
                asset_selection=set(), asset_check_selection=set(request.asset_check_keys or [])
            )
            result = job.execute_in_process(instance=driver.instance)
            (evaluation,) = result.get_asset_check_evaluations()
            assert evaluation.passed is expected
            assert evaluation.severity == dg.AssetCheckSeverity.WARN
            own_graph.store.delete(Node("test_ranking", "two").key)
    assert "test_ranking/two: not materialised" in str(evaluation.metadata["problems"].value)
