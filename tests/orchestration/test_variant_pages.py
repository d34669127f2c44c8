"""Variants and studies as the pages launch them: a filled form, and *Materialize all* without one."""

import json

import pytest

from orchestration.instance import driver_instance
from tests.orchestration.conftest import Graph
from tests.orchestration.servers import LAUNCH_RUN, Dagster
from tests.orchestration.test_pages import SELECTOR, dagster  # noqa: F401 - the fixture
from yt8m_assets.assets.study import STUDY
from yt8m_assets.assets.variants import VARIANT

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]


def launch(dagster: Dagster, form: dict[str, object], asset: str = VARIANT) -> str:  # noqa: F811
    """What *Launch run* in the launchpad of a partition launches; the run's id."""
    params = {
        "selector": {**SELECTOR, "assetSelection": [{"path": [asset]}]},
        "executionMetadata": {"tags": [{"key": "dagster/partition", "value": "one"}]},
        "runConfigData": json.dumps({"ops": {asset: {"config": form}}}),
    }
    answer = dagster.ask(LAUNCH_RUN, params=params)["launchRun"]
    assert answer["__typename"] == "LaunchRunSuccess", answer
    return str(answer["run"]["id"])


def test_a_filled_form_and_an_empty_one(own_graph: Graph, dagster: Dagster) -> None:  # noqa: F811
    own = own_graph.store.require("finetuned_model/one")
    made = launch(dagster, {"name": "fast", "finetuning": {"learning_rate": 0.005}})
    assert dagster.wait_for_run(made, 180) == "SUCCESS"
    assert own_graph.store.require("finetuned_model/one_fast").parents["pretrained_model/one_fast"]
    assert own_graph.store.require("finetuned_model/one") == own
    wrong = launch(dagster, {"name": "slow", "finetuning": {"learning_rate": -1.0}})
    assert dagster.wait_for_run(wrong, 180) == "FAILURE"
    with driver_instance(own_graph.state) as instance:
        logged = "".join(str(entry) for entry in instance.all_logs(wrong))
    assert "training.learning_rate = -1.0: must be above zero" in logged
    study = launch(dagster, {"steps": 6, "space": {"finetuning.learning_rate": [0.0001, 0.01]}}, STUDY)
    assert dagster.wait_for_run(study, 180) == "SUCCESS"
    best = own_graph.store.require("study/one/study").metadata["variant"]
    state = dagster.wait(dagster.backfill_all([VARIANT, STUDY]), 240)
    assert [run["status"] for run in state["runs"]] == ["SUCCESS"] * len(state["runs"])
    assert state["status"] == "COMPLETED_SUCCESS"
    assert own_graph.store.list_keys("variants") == ["variants/one_fast", f"variants/{best}"]
