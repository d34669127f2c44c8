"""A history of years, written through Dagster's and MLflow's own interfaces; a later call goes on where one stopped."""

import time
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import dagster as dg
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from orchestration.instance import LISTED, driver_instance
from orchestration.settings import Settings
from orchestration.state import find_state
from tests.golden.release import recipe
from yt8m_assets.partitions import asset_of, partition_key
from yt8m_assets.stages.nodes import all_nodes

NUM_RUNS, NUM_EVENTS, NUM_OF_ONE_RUN = 10_000, 50_000, 5_000
"""Runs in Dagster and in MLflow; events in Dagster, and how many of them are the log of one run."""
JOBS = ("train_one_model", "predict_cells", "rank_models", "prepare_data", "ensemble")
STATUSES = (*[dg.DagsterRunStatus.SUCCESS] * 8, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
HISTORY = "history"
"""Tag of what was filled in."""
Say = Callable[[str], None]


def long_run() -> str:
    """Id of the run with the long log."""
    return str(UUID(int=1))


def fill_dagster(state: Path, deadline: float, say: Say) -> bool:
    """Runs, the log of one of them, and materialisations of every partition; whether all are there."""
    nodes = all_nodes(recipe(state / "shards"))
    with driver_instance(find_state(state)) as instance:
        runs = instance.get_runs_count(dg.RunsFilter(tags={HISTORY: "run"}))
        for number in range(runs + 1, NUM_RUNS + 1):
            if time.monotonic() > deadline:
                return False
            job, status = JOBS[number % len(JOBS)], STATUSES[number % len(STATUSES)]
            tags = {HISTORY: "run", "dagster/partition": "mix", **LISTED}
            instance.add_run(dg.DagsterRun(job, str(UUID(int=number)), status=status, tags=tags))
        say(f"{NUM_RUNS} runs in Dagster")
        run = instance.get_run_by_id(long_run())
        assert run is not None
        written = len(instance.all_logs(run.run_id))
        done = state / "filled"
        made = int(done.read_text()) if done.is_file() else 0
        for number in range(written + made, NUM_EVENTS):
            if time.monotonic() > deadline:
                done.write_text(str(made))
                say(f"{number} events in Dagster")
                return False
            if number < NUM_OF_ONE_RUN:
                instance.report_engine_event(f"step {number}: loss {1 / (number + 1):.4f}", run)
                written += 1
            else:
                node = nodes[number % len(nodes)]
                asset = asset_of(recipe(state / "shards"), node)
                metadata = {"map": number / NUM_EVENTS, "digest": f"{number:064x}", "fingerprint": f"{number:064x}"}
                event = dg.AssetMaterialization(asset, partition=partition_key(node), metadata=metadata)
                instance.report_runless_asset_event(event)
                made += 1
        done.write_text(str(made))
    say(f"{NUM_EVENTS} events in Dagster")
    return True


def fill_mlflow(state: Path, deadline: float, say: Say) -> bool:
    """Trainings with parameters, tags and metrics; whether all are there."""
    settings = Settings.from_environment(find_state(state), {})
    client = MlflowClient(settings.tracking_uri)
    experiment = client.get_experiment_by_name(settings.experiment).experiment_id
    done = state / "filled-mlflow"
    first = int(done.read_text()) if done.is_file() else 0
    try:
        for number in range(first, NUM_RUNS):
            if time.monotonic() > deadline:
                return False
            run = client.create_run(
                experiment, run_name=f"training {number}", tags={"model": "mix", "kind": "finetuning"}
            )
            at = int(time.time() * 1000)
            metrics = [Metric("holdout/map_at_100000", number / NUM_RUNS, at, step) for step in range(4)]
            params = [Param(f"training.field_{field}", str(field)) for field in range(5)]
            client.log_batch(run.info.run_id, metrics, params, [RunTag(HISTORY, "run")])
            client.set_terminated(run.info.run_id)
            first = number + 1
    finally:
        done.write_text(str(first))
        say(f"{first} runs in MLflow")
    return True
