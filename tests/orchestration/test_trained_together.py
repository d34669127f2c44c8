"""Models that one Dagster run trains together: what is recorded when, and what a failing one leaves of the run."""

from dataclasses import replace

import dagster as dg
import pytest

from orchestration.driver import Driver
from orchestration.plan import Step
from tests.orchestration.conftest import Graph, RecordingProgress
from tests.orchestration.driving import InterruptingProgress, runs_of
from yt8m_assets.errors import NonFiniteError, Yt8mError
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.nodes import Node

BOTH = Step(assets=("pretrained_model",), first="one", last="two")


def longer(recipe: Recipe, key: str, num_steps: int = 9) -> Recipe:
    """The recipe with a longer pre-training of one model."""
    models = [
        replace(row, pretraining=replace(row.pretraining, num_steps=num_steps)) if row.key == key else row
        for row in recipe.models
    ]
    return replace(recipe, models=tuple(models))


def digest_of(driver: Driver, key: str) -> str | None:
    record = driver.records.newest(Node("pretrained_model", key))
    return None if record is None else str((record.tags or {})["dagster/data_version"])


@pytest.mark.slow
def test_each_model_is_recorded_as_soon_as_it_is_trained(own_graph: Graph) -> None:
    for key in ("one", "two"):
        own_graph.store.delete(f"pretrained_model/{key}")
    seen: list[tuple[str | None, str]] = []

    def look() -> None:
        published = own_graph.store.manifest("pretrained_model/one")
        seen.append((digest_of(driver, "one"), published.digest if published else "nothing"))
        assert own_graph.store.manifest("pretrained_model/two") is None

    progress = InterruptingProgress("pretraining two", 9, look)
    with own_graph.open(longer(own_graph.recipe, "two"), progress) as driver:
        driver.run(BOTH)
        assert digest_of(driver, "two") == own_graph.store.require("pretrained_model/two").digest
    assert len(seen) == 1
    assert seen[0][0] == seen[0][1] != "nothing"


def fail() -> None:
    raise NonFiniteError("poisoned")


def test_who_fails_is_named_and_trained_alone_by_the_next_pass(own_graph: Graph) -> None:
    recipe = longer(longer(own_graph.recipe, "one", 4), "two", 5)
    with own_graph.open(recipe, InterruptingProgress("pretraining one", 2, fail)) as driver:
        with pytest.raises(Yt8mError, match="poisoned") as raised:
            driver.materialize(until="pretrained_model")
        assert "this ended one; published: two" in str(getattr(raised.value, "__notes__", ""))
        driver.lineage.forget()
        assert driver.up_to_date(Node("pretrained_model", "two"))
        failure = runs_of(own_graph)[0]
        assert failure.status == dg.DagsterRunStatus.FAILURE
        events = driver.instance.all_logs(failure.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
        assert "published: two" in str(events[0].dagster_event.step_failure_data.user_failure_data.description)  # type: ignore[union-attr]
    progress = RecordingProgress()
    with own_graph.open(recipe, progress) as driver:
        driver.materialize(until="pretrained_model")
    assert progress.steps == ["pretrained_model  one"]


@pytest.mark.slow
def test_one_by_one_where_the_environment_says_so(own_graph: Graph) -> None:
    progress = RecordingProgress()
    recipe = longer(longer(own_graph.recipe, "one", 2), "two", 2)
    with own_graph.open(recipe, progress) as driver:
        driver.backfill = "per_partition"
        driver.materialize(until="pretrained_model")
    assert progress.steps == ["pretrained_model  one", "pretrained_model  two"]
    progress = RecordingProgress()
    with own_graph.open(longer(longer(recipe, "one", 1), "two", 1), progress) as driver:
        driver.materialize(until="pretrained_model")
    assert progress.steps == ["pretrained_model  one ... two"]
