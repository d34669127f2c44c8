"""What the pages say after a change of the recipe, and what a run there does with parents that are out of date."""

from dataclasses import replace

import dagster as dg
import pytest

from orchestration.driver import QUIET, Driver
from orchestration.plan import Step
from orchestration.sensors import build_sensors
from tests.orchestration.conftest import Graph, RecordingProgress
from tests.orchestration.driving import stale_causes_of
from yt8m_assets.assets.failures import OUTDATED_TAG
from yt8m_assets.errors import ParentMismatchError
from yt8m_assets.partitions import asset_of, every_node, partition_key
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.lineage import current_manifest
from yt8m_assets.stages.nodes import Node


def faster(recipe: Recipe, key: str) -> Recipe:
    """The recipe with another learning rate of a model's fine-tuning."""
    changed = replace(recipe.model(key).finetuning, learning_rate=0.01)
    models = tuple(replace(model, finetuning=changed) if model.key == key else model for model in recipe.models)
    return replace(recipe, models=models)


def marked(driver: Driver) -> dict[str, list[str]]:
    """What Dagster calls changed, of all that is materialised: `asset/partition` -> why."""
    found = {}
    for node in every_node(driver.recipe):
        asset, key = asset_of(driver.recipe, node), partition_key(node)
        if driver.records.newest(node) is not None and (causes := stale_causes_of(driver, asset, key)):
            found[f"{asset}/{key}"] = causes
    return found


def tick(driver: Driver, cursor: str | None = None) -> dg.SensorResult:
    """An evaluation of the sensor, and what the daemon does with its result."""
    (sensor,) = (found for found in build_sensors(driver.recipe) if found.name == "changed_recipe")
    assert sensor.default_status == dg.DefaultSensorStatus.RUNNING
    with dg.build_sensor_context(instance=driver.instance, cursor=cursor) as context:
        result = sensor(context, store=driver.store)
    assert isinstance(result, dg.SensorResult)
    assert not result.run_requests
    for event in result.asset_events:
        driver.instance.report_runless_asset_event(event)
    return result


def test_a_changed_model_is_marked_and_its_neighbour_is_not(own_graph: Graph) -> None:
    """Dagster has one code version for all models; those that are up to date are recorded anew under it."""
    with own_graph.open() as driver:
        assert marked(driver) == {}
        assert not tick(driver).asset_events
    with own_graph.open(faster(own_graph.recipe, "two")) as driver:
        assert set(marked(driver)) == {"finetuned_model/one", "finetuned_model/two"}
        before = driver.records.newest(Node("finetuned_model", "one"))
        result = tick(driver)
        assert [(event.asset_key.path, event.partition) for event in result.asset_events] == [
            (["finetuned_model"], "one")
        ]
        assert marked(driver) == {"finetuned_model/two": ["has a new code version"]}
        after = driver.records.newest(Node("finetuned_model", "one"))
        assert before is not None
        assert after is not None
        assert (after.tags or {})["dagster/data_version"] == (before.tags or {})["dagster/data_version"]
        assert after.metadata["digest"] == before.metadata["digest"]
        assert after.metadata["recipe"] != before.metadata["recipe"]
        assert not tick(driver, result.cursor).asset_events
    with own_graph.open() as driver:  # and back again
        tick(driver, result.cursor)
        assert marked(driver) == {}


@pytest.mark.slow
def test_a_pass_trains_the_changed_model_alone(own_graph: Graph) -> None:
    progress = RecordingProgress()
    with own_graph.open(faster(own_graph.recipe, "two"), progress) as driver:
        driver.materialize(until="finetuned_model")
        assert progress.steps == ["finetuned_model  two"]
        assert not [node for node in marked(driver) if node.startswith("finetuned_model")]


def run_of_cells(driver: Driver, **tags: str) -> dg.ExecuteInProcessResult:
    """A run of one cell, as the page launches it."""
    job = driver.definitions.resolve_job_def("predict_cells")
    return job.execute_in_process(
        instance=driver.instance,
        asset_selection=[dg.AssetKey("oof_predictions")],
        partition_key="two|0",
        tags=tags,
        run_config=QUIET,
        raise_on_error=False,
    )


def test_a_run_refuses_outdated_parents_unless_it_is_asked_to_take_them(own_graph: Graph) -> None:
    cell, model = Node("oof_predictions", "two", 0), own_graph.store.require("finetuned_model/two")
    own_graph.store.delete(cell.key)
    recipe = faster(own_graph.recipe, "two")
    with own_graph.open(recipe) as driver:
        with pytest.raises(ParentMismatchError, match=r"learning_rate: 0\.001 -> 0\.01"):
            driver.run(Step(assets=("oof_predictions",), first="two|0", last="two|0"))
        refused = run_of_cells(driver)
        (failure,) = (event for event in refused.all_events if event.is_step_failure)
        described = failure.step_failure_data.user_failure_data
        assert described is not None
        assert str(described.description).endswith(f"or run with the tag {OUTDATED_TAG}: true")
        assert "learning_rate: 0.001 -> 0.01" in str(described.description)
        assert own_graph.store.manifest(cell.key) is None
        assert run_of_cells(driver, **{OUTDATED_TAG: "true"}).success
        made = own_graph.store.require(cell.key)
        assert made.parents["finetuned_model/two"] == model.digest
        record = driver.records.newest(cell)
        assert record is not None
        assert "learning_rate: 0.001 -> 0.01" in str(record.metadata["not_up_to_date"].value)
        assert current_manifest(recipe, own_graph.store, cell) is None  # and so it counts as stale
        driver.lineage.forget()
        assert not driver.up_to_date(cell)
    assert current_manifest(own_graph.recipe, own_graph.store, cell) == made


def test_what_is_missing_is_not_made_up(own_graph: Graph) -> None:
    own_graph.store.delete("finetuned_model/two")
    own_graph.store.delete("oof_predictions/two/shift+0")
    with own_graph.open() as driver:
        assert not run_of_cells(driver, **{OUTDATED_TAG: "true"}).success
    assert own_graph.store.manifest("oof_predictions/two/shift+0") is None
