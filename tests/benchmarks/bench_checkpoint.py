"""How long a training is held up by a checkpoint: written between two steps, and behind them.

`python -m tests.benchmarks.bench_checkpoint [megabytes]` trains on one thread, with a state of that size (weights and
Adam's two moments), and writes checkpoints to the temporary folder both ways in turn.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from yt8m_assets.storage import ArtifactStore
from yt8m_assets.training.checkpoint import Checkpoint, CheckpointStore, CheckpointWriter

WIDTH = 1024
ROUNDS = 5


def step_seconds(work: Callable[[], object], until: Callable[[], bool]) -> list[float]:
    """Seconds of steps, as many as until the condition holds, at least one."""
    seconds: list[float] = []
    while not seconds or not until():
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return seconds


def main() -> None:
    """Print the seconds of each round, and their medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("megabytes", type=int, nargs="?", default=1000)
    torch.set_num_threads(1)
    count = max(parser.parse_args().megabytes * 10**6 // (3 * 4 * WIDTH * WIDTH), 1)
    groups = {
        "model": {f"{n}": torch.randn(WIDTH, WIDTH) for n in range(count)},
        "optimizer": {f"{slot}/{n}": torch.randn(WIDTH, WIDTH) for slot in "mv" for n in range(count)},
    }
    inputs = torch.randn(512, WIDTH)
    held: dict[str, list[float]] = {"between": [], "behind": [], "slower": []}

    def work() -> object:
        return inputs @ groups["model"]["0"]

    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(ArtifactStore(folder, Path(folder) / "cache"), "checkpoints/bench/model", {})
        writer = CheckpointWriter(store)
        alone = statistics.median(step_seconds(work, iter([False] * 50 + [True]).__next__))
        for number in range(ROUNDS):
            started = time.perf_counter()
            store.save(2 * number + 1, Checkpoint({}, groups))
            held["between"].append(time.perf_counter() - started)
            started = time.perf_counter()
            writer.save(2 * number + 2, Checkpoint({}, groups))
            held["behind"].append(time.perf_counter() - started)
            steps = step_seconds(work, writer.writes["step"].done)
            held["slower"].append(sum(steps) - alone * len(steps))
            print({name: round(values[-1], 3) for name, values in held.items()}, f"{len(steps)} steps meanwhile")
        writer.close()
    print("medians", {name: round(statistics.median(values), 3) for name, values in held.items()})


if __name__ == "__main__":
    main()
