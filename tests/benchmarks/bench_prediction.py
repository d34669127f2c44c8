"""Predicting four shifts in one run against four runs of one shift each, alternating in one process (`make bench`).

Bar: one run takes at most 0.85 of the time, and reads and decodes the data once (each run starts with nothing in
memory). Prints one JSON line.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.graph import make_data, open_store
from tests.tiny import SIMULATION, tiny_model, tiny_recipe
from yt8m_assets.data.dataset.memory import _shared
from yt8m_assets.data.dataset.videos import IndexedVideos
from yt8m_assets.progress import NullProgress
from yt8m_assets.recipes import demo
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.nodes import Node
from yt8m_assets.stages.prediction import predict_cells
from yt8m_assets.tracking import NullTracking

SHIFTS = (-1, 0, 1, 2)


def benchmark_recipe(models: str, num_videos: int, precision: Any) -> Recipe:
    """Some test videos of full feature size, and BERTMean at its full width for 1000 classes, or the demo's models."""
    if models == "demo":
        assert demo.RECIPE.data.simulation is not None
        simulation = replace(demo.RECIPE.data.simulation, num_test_videos=num_videos, num_test_shards=4)
        rows = tuple(replace(model, shifts=SHIFTS) for model in demo.RECIPE.models)
        return replace(demo.RECIPE, models=rows, data=replace(demo.RECIPE.data, simulation=simulation, memory_budget=1))
    simulation = replace(
        SIMULATION,
        num_classes=3862,
        num_rated_classes=1000,
        num_groups=2,
        num_test_videos=num_videos,
        num_test_shards=4,
        min_seconds=200,
        max_seconds=300,
    )
    recipe = tiny_recipe(models=(tiny_model("bert_mean", SHIFTS, architecture="bert_mean_l2h12", overrides={}),))
    data = replace(recipe.data, simulation=simulation, num_classes=simulation.num_classes, memory_budget=1)
    return replace(recipe, data=data, prediction=replace(recipe.prediction, batch_size=512, precision=precision))


def main() -> None:
    """Time both ways, five rounds or more."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", choices=("full", "demo"), default="full")
    parser.add_argument("--videos", type=int, default=100)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    reads = 0
    read = IndexedVideos.read

    def counted(self: IndexedVideos, number: int, first: int = 0, count: int | None = None):
        nonlocal reads
        reads += 1
        return read(self, number, first, count)

    IndexedVideos.read = counted  # type: ignore[method-assign]
    times: dict[str, list[float]] = {"one run": [], "four runs": []}
    read_counts: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        store, recipe = (
            open_store(Path(folder)),
            benchmark_recipe(arguments.models, arguments.videos, arguments.precision),
        )
        make_data(recipe, store)
        for _ in range(arguments.rounds):
            for name, groups in (("one run", [SHIFTS]), ("four runs", [(shift,) for shift in SHIFTS])):
                for shift in SHIFTS:
                    for key in recipe.model_keys:
                        store.delete(Node("test_predictions", key, shift).key)
                reads, started = 0, time.perf_counter()
                for group in groups:
                    _shared.clear()
                    cells = [(key, shift) for key in recipe.model_keys for shift in group]
                    predict_cells(recipe, store, "test", cells, tracking=NullTracking(), progress=NullProgress())
                times[name].append(time.perf_counter() - started)
                read_counts[name] = reads
    medians = {name: statistics.median(values) for name, values in times.items()}
    report = {
        "benchmark": f"four shifts in one run, {arguments.models} models",
        "seconds": {name: round(value, 3) for name, value in medians.items()},
        "videos_read": read_counts,
        "ratio": round(medians["one run"] / medians["four runs"], 3),
        "bar": 0.85,
        "precision": recipe.prediction.precision,
        "rounds": arguments.rounds,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
