"""`yt8m variant`, and the asset behind it: what a form and a command line make, and that the recipe's own stays."""

import json
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from mlflow import MlflowClient

from orchestration.cli_variants import settings_from
from orchestration.driver import Driver
from orchestration.jobs import job_of
from tests.orchestration.conftest import Graph, Run
from yt8m_assets.assets.forms import field_docs, form_of, settings_of
from yt8m_assets.assets.study import STUDY
from yt8m_assets.assets.variants import VARIANT
from yt8m_assets.errors import ConfigError
from yt8m_assets.recipes import load_recipe
from yt8m_assets.stages.nodes import Node, all_nodes
from yt8m_assets.stages.variants import Variant, keep_variant, kept_variants
from yt8m_assets.training.config import TrainingConfig


def launch(driver: Driver, form: dict[str, Any], asset: str = VARIANT) -> dg.ExecuteInProcessResult:
    """What the launchpad launches for a partition."""
    return driver.definitions.resolve_job_def(job_of([asset])).execute_in_process(
        instance=driver.instance,
        partition_key="one",
        run_config={"ops": {asset: {"config": form}}, "loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        raise_on_error=False,
    )


def test_the_form_mirrors_the_recipes_fields() -> None:
    form = form_of(TrainingConfig)
    assert list(form) == list(TrainingConfig.__dataclass_fields__)
    assert not any(field.is_required or field.default_provided for field in form.values())
    assert form["learning_rate"].description == "Base learning rate."
    assert str(form["schedule"].description).endswith("One of: staircase, cosine.")
    assert {name for name, field in form.items() if not field.description} == set()
    assert field_docs(TrainingConfig)["num_steps"].startswith("Optimiser steps of this stage;")
    assert settings_of({"name": "x", "finetuning": {"ema_decay": None}, "overrides": {}}) == {
        "finetuning": {"ema_decay": None}
    }


def test_a_form_makes_a_variant_and_nothing_else(own_graph: Graph) -> None:
    store = own_graph.store
    with own_graph.open() as driver:
        before = {node: driver.records.newest(node) for node in all_nodes(own_graph.recipe)}
        result = launch(driver, {"name": "fast", "finetuning": {"learning_rate": 0.005}})
        assert result.success
        ((event,),) = [result.asset_materializations_for_node(VARIANT)]
        own = store.require("finetuned_model/one_fast")
        assert event.partition == "one"
        assert event.tags is not None
        assert event.tags["dagster/data_version"] == own.digest
        assert event.metadata["variant"].value == "one_fast"
        assert "| fast | finetuning.learning\\_rate = 0.005 |".replace("\\", "") in str(
            event.metadata["variants"].value
        )
        assert {node: driver.records.newest(node) for node in before} == before
        assert all(driver.up_to_date(node) for node in before)


@pytest.mark.slow
def test_a_form_and_a_command_line_make_the_same(run: Run, own_graph: Graph) -> None:
    state, store = own_graph.state.root, own_graph.store
    with own_graph.open() as driver:
        assert launch(driver, {"name": "fast", "finetuning": {"learning_rate": 0.005}}).success
    own = store.require("finetuned_model/one_fast")
    words = ("--set", "finetuning.learning_rate=5e-3", "--state", state)
    code, out, error = run("variant", "one", "quick", *words)
    assert code == 0, error
    assert "finetuning.learning_rate" in out
    quick = store.require("finetuned_model/one_quick")
    assert quick.config == own.config
    assert quick.parents["pretrained_model/one_quick"] == own.parents["pretrained_model/one_fast"]
    assert run("variant", "one", "fast", *words)[0] == 0
    assert store.numbers("finetuned_model/one_fast") == [own.generation]
    runs = {str(manifest.metadata["mlflow_run_id"]) for manifest in (own, quick)}
    found = [MlflowClient(own_graph.settings.tracking_uri).get_run(run_id).data.tags for run_id in runs]
    assert {(tags["variant_of"], tags["variant"], tags["partition"]) for tags in found} == {
        ("one", "fast", "one_fast"),
        ("one", "quick", "one_quick"),
    }
    assert "up to date" in run("materialize", "--state", state)[2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"finetuning": {"learning_rate": -1.0}}, "training.learning_rate = -1.0: must be above zero"),
        ({"finetuning": {"schedule": "linear"}}, "schedule = 'linear': choose one of 'staircase', 'cosine'"),
        ({"overrides": {"drop": 1}}, "has no option 'drop'"),
    ],
)
def test_wrong_values_are_named(own_graph: Graph, run: Run, settings: dict[str, Any], message: str) -> None:
    with own_graph.open() as driver:
        result = launch(driver, {"name": "x", **settings})
        assert not result.success
        (failure,) = [event for event in result.all_events if event.event_type_value == "STEP_FAILURE"]
        failed = failure.step_failure_data.user_failure_data
        assert failed is not None
        assert message in str(failed.description)
    ((section, values),) = settings.items()
    words = [word for name, value in values.items() for word in ("--set", f"{section}.{name}={json.dumps(value)}")]
    code, out, error = run("variant", "one", "x", *words, "--state", own_graph.state.root)
    assert (code, out) == (1, "")
    assert message in error
    assert kept_variants(own_graph.store) == {}


@pytest.mark.slow
def test_a_variant_is_predicted_and_counted_in(run: Run, own_graph: Graph, tmp_path: Path) -> None:
    state = ("--state", own_graph.state.root)
    assert "no variants are kept" in run("variant", *state)[1]
    assert run("variant", "one", "fast", "--set", "finetuning.learning_rate=5e-3", *state)[0] == 0
    assert "fast" in run("variant", *state)[1]
    code, _, error = run("materialize", "--models", "one_fast", *state)
    assert code == 0
    assert own_graph.store.numbers("test_ranking/one_fast") == [1]
    values = json.loads(error[error.index('{"base"') : error.rindex("; nothing is made twice")])
    assert values["models"]["one_fast"]["starts_from"] == "one"
    (tmp_path / "both.json").write_text(json.dumps(values | {"base": "tiny.py"}))
    code, _, error = run("materialize", *state, recipe=str(tmp_path / "both.json"))
    assert code == 0, error
    made = [line for line in error.splitlines() if "made" in line][-1]
    assert "3 made" in made, made  # weights, submission, leaderboard
    assert "one_fast" in json.dumps(own_graph.store.require("ensemble_weights").metadata)


def test_a_variant_is_shown_saved_and_forgotten(run: Run, own_graph: Graph, tmp_path: Path) -> None:
    state = ("--state", own_graph.state.root)
    fast = Variant(base="one", name="fast", settings={"finetuning": {"learning_rate": 0.005}})
    keep_variant(own_graph.recipe, own_graph.store, fast)
    assert "finetuning.learning_rate" in run("variant", "one", *state)[1]
    saved = tmp_path / "better.json"
    assert run("variant", "one", "fast", "--save", saved, *state)[0] == 0
    assert load_recipe(saved).model("one").finetuning.learning_rate == 0.005
    assert load_recipe(saved).model_keys == ("one", "two")
    assert "exists; give another name" in run("variant", "one", "fast", "--save", saved, *state)[2]
    assert run("variant", "one", "fast", "--forget", *state)[0] == 0
    assert "unknown variant 'fast' of one; kept: none" in run("variant", "one", "fast", "--forget", *state)[2]


@pytest.mark.parametrize("asset", [VARIANT, STUDY])
def test_an_empty_form_makes_only_the_table(own_graph: Graph, asset: str) -> None:
    with own_graph.open() as driver:
        result = launch(driver, {}, asset)
        assert result.success
        (event,) = result.asset_materializations_for_node(asset)
        assert "| the recipe's |" in str(event.metadata["variants"].value)
    assert kept_variants(own_graph.store) == {}
    assert own_graph.store.backend.names("study") == []


@pytest.mark.slow
def test_a_study_from_a_form_and_a_command_line(run: Run, own_graph: Graph) -> None:
    space = {"finetuning.learning_rate": [0.0001, 0.01]}
    with own_graph.open() as driver:
        result = launch(driver, {"steps": 6, "space": space}, STUDY)
        assert result.success
        (event,) = result.asset_materializations_for_node(STUDY)
        assert event.partition == "one"
        assert event.metadata["trials"].value == 2
        assert "finetuning.learning_rate" in str(event.metadata["table"].value)
        assert any(name.startswith("plot") for name in event.metadata)
    client, found = MlflowClient(own_graph.settings.tracking_uri), own_graph.store.require("study/one/study")
    runs = client.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{found.metadata['mlflow_run_id']}'")
    trained = {each.data.tags["partition"] for each in runs if each.data.tags["kind"] == "finetuning"}
    assert trained == {"one_study_00", "one_study_01"}
    words = ("--steps", 6, "--space", "finetuning.learning_rate=[0.0001, 0.01]", "--state", own_graph.state.root)
    code, out, error = run("study", "one", *words)
    assert code == 0, error
    assert "2 trials: 2 completed; 6 steps" in out
    assert f"{own_graph.store.uri(found)}/best.json" in out
    assert own_graph.store.numbers("study/one/study") == [1]


def test_a_study_that_cannot_be_is_named(run: Run, graph: Graph) -> None:
    state = ("--state", graph.state.root)
    for words, message in [
        (("--steps", 6, "--space", "learning_rate=[0, 1]"), "give SECTION.FIELD=VALUE"),
        (("--steps", 6, "--space", "finetuning.learning_rate=[1]"), "nothing is searched"),
        (("--steps", 0), "study.steps = 0: must be at least 1"),
        (("--steps", 6, "--name", "a-b"), "study.name = 'a-b'"),
    ]:
        code, out, error = run("study", "one", *words, *state)
        assert (code, out) == (1, "")
        assert message in error


def test_words_that_set_nothing(run: Run, graph: Graph) -> None:
    assert settings_from(["overrides.pooling=last", "finetuning.ema_decay=null"]) == {
        "overrides": {"pooling": "last"},
        "finetuning": {"ema_decay": None},
    }
    for word in ("learning_rate=1", "finetuning.num_steps", "finetuning.=3"):
        with pytest.raises(ConfigError, match=r"give SECTION\.FIELD=VALUE"):
            settings_from([word])
    with pytest.raises(ConfigError, match="is given twice"):
        settings_from(["finetuning.num_steps=1", "finetuning.num_steps=2"])
    code, _, error = run("variant", "one", "--set", "finetuning.num_steps=1", "--state", graph.state.root)
    assert code == 1
    assert "say which: yt8m variant one NAME" in error


def test_the_graph_does_not_need_it(own_graph: Graph) -> None:
    with own_graph.open() as driver:
        assert driver.materialize().num_current == len(all_nodes(own_graph.recipe))
        assert dg.AssetKey(VARIANT) in driver.definitions.resolve_asset_graph().get_all_asset_keys()
    assert VARIANT not in {node.asset for node in all_nodes(own_graph.recipe)}
    assert Node(VARIANT) not in all_nodes(own_graph.recipe)
