"""Passes over the graph that fail, are killed or interrupted, and what the next one does."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES

from orchestration.causes import CheckFailedError
from orchestration.instance import driver_instance
from orchestration.plan import Step
from tests.orchestration.conftest import Graph, RecordingProgress
from tests.orchestration.driving import InterruptingProgress, press_ctrl_c, pull_the_plug
from yt8m_assets.errors import MissingArtifactError, Yt8mError
from yt8m_assets.stages.lineage import resolve_inputs
from yt8m_assets.stages.nodes import Node
from yt8m_assets.training.interruption import TrainingPreempted

ROOT = Path(__file__).parents[2]


def test_a_stage_that_fails_raises_its_own_error_and_publishes_nothing(own_graph: Graph) -> None:
    own_graph.store.delete("finetuned_model/one")
    with own_graph.open() as driver, pytest.raises(MissingArtifactError, match="finetuned_model/one"):
        driver.run(Step(assets=("oof_optional_predictions",), first="one|2", last="one|2"))
    assert own_graph.store.manifest("oof_predictions/one/shift+2") is None


def test_a_failed_check_stops_the_pass_and_is_not_forgotten(own_graph: Graph) -> None:
    """RELIABILITY F28-like: what fails its check is not built upon, in this pass and in the next."""
    manifest = own_graph.store.require("holdout_ratings")
    path = own_graph.store.fetch(manifest) / "ratings.csv"
    lines = [line.rsplit(",", 1)[0] + ",1\n" for line in path.read_text().splitlines()]
    arguments = {"fingerprint": manifest.fingerprint, "parents": manifest.parents, "config": manifest.config}
    with own_graph.store.publish("holdout_ratings", **arguments) as publication:  # type: ignore[arg-type]
        (publication.path / "ratings.csv").write_text("".join(lines))
    for _ in range(2):
        progress = RecordingProgress()
        with own_graph.open(progress=progress) as driver, pytest.raises(CheckFailedError, match="both_verdicts"):
            driver.materialize()
        assert progress.steps[-1].endswith("holdout_ratings")


KILLED = """
import os, pathlib, signal, sys
from contextlib import contextmanager
from tests.tiny import tiny_recipe
from orchestration.driver import materialize
from orchestration.state import prepare_state
from yt8m_assets.progress import NullProgress

class Deadly(NullProgress):
    "Kills the process at the third step of a training."
    @contextmanager
    def task(self, title, total=None, unit="it"):
        with super().task(title, total, unit) as task:
            if title.startswith("finetuning"):
                count = iter(range(3))
                def advance(number=1):
                    if next(count) == 2:
                        os.kill(os.getpid(), signal.SIGKILL)
                task.advance = advance
            yield task

materialize(tiny_recipe(), prepare_state(pathlib.Path(sys.argv[1])), Deadly(), until="finetuned_model")
"""


def test_a_killed_pass_continues(own_graph: Graph) -> None:
    """Killed in the middle of fine-tuning: its run is ended, its pool slot freed, its checkpoint used."""
    own_graph.store.delete("finetuned_model/two")
    kept = own_graph.store.require("finetuned_model/one")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(own_graph.state.root)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -9, killed.stderr.decode()
    assert own_graph.store.manifest("finetuned_model/two") is None
    with driver_instance(own_graph.state) as instance:
        (dead,) = instance.get_runs(filters=dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
        assert instance.event_log_storage.get_concurrency_info("gpu").active_slot_count == 1
    progress = RecordingProgress()
    with own_graph.open(progress=progress) as driver:
        driver.materialize(until="finetuned_model")
        ended = driver.instance.get_run_by_id(dead.run_id)
        assert ended is not None
        assert ended.status == dg.DagsterRunStatus.FAILURE
        assert driver.instance.event_log_storage.get_concurrency_info("gpu").active_slot_count == 0
    assert progress.steps == ["finetuned_model  two"]
    resumed = own_graph.store.require("finetuned_model/two").metadata["resumed_from_step"]
    lost = 3 - resumed  # killed at its third step, perhaps while the checkpoint of the second was written behind it
    assert 1 <= lost <= own_graph.recipe.model("two").finetuning.checkpoint_every
    assert own_graph.store.require("finetuned_model/one") == kept


def test_ctrl_c_ends_a_pass_and_the_next_one_goes_on(own_graph: Graph) -> None:
    own_graph.store.delete("oof_predictions/two/shift+1")
    with own_graph.open(progress=InterruptingProgress("scoring", 1, press_ctrl_c)) as driver:
        with pytest.raises(KeyboardInterrupt):
            driver.materialize(until="oof_predictions")
        assert own_graph.store.manifest("oof_predictions/two/shift+1") is None
        assert driver.instance.get_runs_count(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES)) == 0
    with own_graph.open() as driver:
        assert driver.materialize(until="oof_predictions").runs
    assert own_graph.store.manifest("oof_predictions/two/shift+1") is not None


def test_ctrl_c_in_training_saves_a_checkpoint(own_graph: Graph) -> None:
    own_graph.store.delete("finetuned_model/two")
    shutil.rmtree(own_graph.state.artifacts / "checkpoints", ignore_errors=True)
    progress = InterruptingProgress("finetuning", 1, press_ctrl_c)
    with own_graph.open(progress=progress) as driver, pytest.raises(TrainingPreempted, match="after step 1"):
        driver.materialize(until="finetuned_model")
    with own_graph.open() as driver:
        driver.materialize(until="finetuned_model")
    assert own_graph.store.require("finetuned_model/two").metadata["resumed_from_step"] == 1


@pytest.mark.slow
def test_f08_a_damaged_newest_checkpoint_is_passed_over_only_when_asked(own_graph: Graph) -> None:
    own_graph.store.delete("finetuned_model/two")
    first, second = own_graph.recipe.models
    finetuning = replace(second.finetuning, checkpoint_every=1)
    often = replace(own_graph.recipe, models=(first, replace(second, finetuning=finetuning)))
    with (
        own_graph.open(often, InterruptingProgress("finetuning", 3, pull_the_plug)) as driver,
        pytest.raises(Yt8mError, match="pulled the plug"),
    ):
        driver.materialize(until="finetuned_model")
    keys = own_graph.store.list_keys("checkpoints/finetuned_model/two")
    newest = own_graph.store.require(max(key for key in keys if "step-" in key))
    weights = own_graph.store.fetch(newest) / next(name for name in newest.files if name.endswith(".safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with own_graph.open(often) as driver:
        with pytest.raises(Yt8mError, match="--allow-fallback"):
            driver.materialize(until="finetuned_model")
        driver.materialize(until="finetuned_model", allow_fallback=True)
    assert own_graph.store.require("finetuned_model/two").metadata["resumed_from_step"] == 1


def test_an_unknown_fault_is_one_message(own_graph: Graph) -> None:
    """An error that nobody foresaw still comes out as one of the project's own, naming the step."""
    inputs = resolve_inputs(own_graph.recipe, own_graph.store, Node("oof_predictions", "one", 0))
    assert inputs.published is not None
    with own_graph.store.publish(inputs.node.key, **inputs.publish_arguments()) as publication:
        shutil.copytree(own_graph.store.fetch(inputs.published), publication.path, dirs_exist_ok=True)
        (publication.path / "ranking.parquet").write_bytes(b"")
    own_graph.store.delete("oof_ranking/one")
    with own_graph.open() as driver, pytest.raises(Yt8mError, match=r"oof_predictions/one/.*: not a ranking"):
        driver.materialize(until="oof_ranking")
    assert own_graph.store.manifest(Node("oof_ranking", "one").key) is None
