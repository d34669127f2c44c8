"""The challenge's nine models at full width with all 3862 classes, a few steps each, from shards to the leaderboard.

    python -m tests.benchmarks.rehearsal_challenge [--steps 2] [--batch 16] [--folder DIR]

What it proves: every model of the recipe, as large as it will be, is trained beside the others (in as many passes as
this machine's memory allows), kept, fine-tuned, scored out of fold and over the test split at all its shifts, and
weighed in the ensemble. What it does not: the scores are those of models that have learned nothing. Data are simulated.
One JSON line a node group, and one with the peak memory and what lies on the disk.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from yt8m_assets.data.config import DataConfig, HoldoutConfig
from yt8m_assets.data.simulation.config import SimulationConfig
from yt8m_assets.recipes.challenge import RECIPE as CHALLENGE
from yt8m_assets.recipes.schema import Recipe

STEPS, BATCH = "YT8M_REHEARSAL_STEPS", "YT8M_REHEARSAL_BATCH"


def rehearsed(num_steps: int, batch_size: int) -> Recipe:
    """The challenge over small simulated shards with its vocabulary, each training a few steps."""
    simulation = SimulationConfig(
        num_classes=CHALLENGE.data.num_classes,
        num_rated_classes=1000,
        num_groups=2,
        num_train_videos=2 * batch_size,
        num_train_shards=2,
        num_validate_videos=24,
        num_validate_shards=3,
        num_test_videos=12,
        max_seconds=90,
    )
    few = {"num_steps": num_steps, "batch_size": batch_size, "evaluate_every": num_steps, "checkpoint_every": num_steps}
    models = [
        replace(
            model,
            pretraining=replace(model.pretraining, **few, evaluation_videos=8),
            finetuning=replace(model.finetuning, **few),
        )
        for model in CHALLENGE.models
    ]
    data = DataConfig(
        simulation=simulation,
        num_classes=simulation.num_classes,
        holdout=HoldoutConfig(rule="seeded", fraction=1 / 3),
    )
    prediction = replace(CHALLENGE.prediction, compile=False)  # what compiling gains, few segments do not pay back
    return replace(CHALLENGE, name="rehearsal", data=data, models=tuple(models), prediction=prediction)


RECIPE = rehearsed(int(os.environ.get(STEPS, "2")), int(os.environ.get(BATCH, "16")))


def main() -> None:
    """Run the whole graph in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        state = options.folder or Path(folder)
        command = [sys.executable, "-m", "orchestration.cli", "materialize"]
        command += ["--recipe", str(Path(__file__).resolve()), "--state", str(state)]
        began = time.perf_counter()
        subprocess.run(command, env={**os.environ, STEPS: str(options.steps), BATCH: str(options.batch)}, check=True)
        row = {
            "benchmark": "challenge at full width",
            "models": len(RECIPE.models),
            "steps": options.steps,
            "batch": options.batch,
            "seconds": round(time.perf_counter() - began, 1),
            "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9, 2),
            "disk_gb": round(sum(p.stat().st_size for p in state.rglob("*") if p.is_file()) / 1e9, 2),
        }
        sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
