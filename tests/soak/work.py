"""A state, its servers, and materialisations through them, as a person at the pages would start them."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from orchestration.ui import HOST, LOCATION
from tests.browser import quick_ui
from tests.orchestration.servers import ENDED, RUN, Dagster
from tests.ports import free_port
from tests.training.support import write_shards

ROOT = Path(__file__).parents[2]
RECIPE = Path(__file__).with_name("recipe.py")
AT_ONCE = 3
ORDERS: tuple[tuple[str, tuple[str, ...], str | None], ...] = (
    ("train_one_model", ("pretrained_model", "finetuned_model"), "bert"),
    ("predict_cells", ("oof_predictions", "test_predictions"), "bert|0"),
    ("rank_models", ("oof_ranking", "test_ranking"), "bert"),
    ("prepare_data", ("pretraining_shards", "segment_shards", "test_shards", "holdout_ratings"), None),
    ("ensemble", ("ensemble_weights", "submission", "leaderboard"), None),
)
"""Job, assets and partition of the runs, in turn; each is made again whether or not it is up to date."""
FORCE = {"yt8m/force": "true"}


@dataclass(frozen=True)
class Servers:
    """What `yt8m ui` has started."""

    process_id: int
    dagster: Dagster
    mlflow: str
    """Address of MLflow's server."""


def environment(state: Path) -> dict[str, str]:
    """The environment of servers and commands over a state."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("YT8M_", "MLFLOW_", "DAGSTER_"))}
    own = {"YT8M_STATE": str(state), "YT8M_EXECUTOR": "in_process", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return {**kept, **own}


def yt8m(state: Path, *arguments: str) -> None:
    """A command line over the state."""
    command = [sys.executable, "-m", "orchestration.cli", *arguments, "--recipe", str(RECIPE), "--state", str(state)]
    subprocess.run(command, check=True, env=environment(state), cwd=ROOT, stdout=subprocess.DEVNULL)


def prepare(state: Path) -> None:
    """The shards and the whole graph, where they are missing."""
    if not (state / "shards/classes.csv").is_file():
        write_shards(state / "shards")
    yt8m(state, "materialize")


@contextmanager
def serve(state: Path) -> Iterator[Servers]:
    """`yt8m ui` over the state, whose daemon looks for work every two seconds, until the block is left."""
    port, mlflow_port = free_port(), free_port()
    options = ["--port", str(port), "--mlflow-port", str(mlflow_port), "--recipe", str(RECIPE), "--state", str(state)]
    command = [sys.executable, str(quick_ui.__file__), "ui", *options]
    process = subprocess.Popen(command, env=environment(state), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        said = [process.stdout.readline() for _ in range(3)]
        assert "Ctrl-C" in said[-1], said
        yield Servers(process.pid, Dagster(port), f"http://{HOST}:{mlflow_port}")
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()


def materialise(servers: Servers, done: int, wanted: int, deadline: float) -> Iterator[int]:
    """Start runs until `wanted` are done or the deadline is near; the number done after each that ended.

    done: how many earlier sessions did. Raises AssertionError where one fails.
    """
    dagster, running = servers.dagster, set[str]()
    orders = islice(cycle(ORDERS), done, None)
    while running or (done < wanted and time.monotonic() < deadline):
        while len(running) < AT_ONCE and done + len(running) < wanted and time.monotonic() < deadline:
            job, assets, partition = next(orders)
            tags = FORCE | ({"dagster/partition": partition} if partition else {})
            running.add(dagster.run(job, tags, assets))
        time.sleep(0.5)
        for run_id in list(running):
            status = str(dagster.ask(RUN, id=run_id)["runOrError"]["status"])
            if status in ENDED:
                assert status == "SUCCESS", (run_id, dagster.messages(run_id)[-2000:])
                running.remove(run_id)
                done += 1
                yield done


def num_materialisations(runs: int) -> int:
    """How many assets the first runs have made."""
    return sum(len(assets) for _, assets, _ in islice(cycle(ORDERS), runs))


__all__ = ["LOCATION", "Servers", "materialise", "num_materialisations", "prepare", "serve", "yt8m"]
