"""What a GPU makes of this project, in minutes: `make bench-gpu` (`python -m tests.benchmarks.bench_gpu --minutes 6`).

One JSON line for each finding as it is made, most valuable first, so that a run that is cut off still tells: first
whether the results are right, then what a training step, a pass over all models, prediction and the loader cost. Needs
torch and the core alone (no Dagster, no MLflow). What fails becomes a line with its error, and the next part follows;
what the minutes did not reach is named at the end. `--device cpu --tiny` runs the same code on narrow models.
"""

import argparse
import json
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch

from tests.benchmarks import gpu_checks, gpu_speed
from tests.benchmarks.gpu_cases import Setup

Row = dict[str, Any]
PARTS: dict[str, Callable[[Setup], Iterator[Row]]] = {
    "peaks": gpu_speed.peaks,
    "goldens": gpu_checks.goldens,
    "short_attention": gpu_checks.short_attention,
    "training_equals_cpu": gpu_checks.training_equals_cpu,
    "recorded_steps": gpu_checks.recorded_steps,
    "resume": gpu_checks.resume,
    "non_finite": gpu_checks.non_finite,
    "out_of_memory": gpu_checks.out_of_memory,
    "training_step": gpu_speed.training_steps,
    "pass": gpu_speed.joint_pass,
    "forward": gpu_speed.forward,
    "prediction": gpu_speed.prediction,
    "loader": gpu_speed.loader,
    "training_step_compiled": gpu_speed.compiled_steps,
}


def describe(device: torch.device) -> Row:
    """The card and the software."""
    row: Row = {"name": "machine", "torch": torch.__version__, "python": platform.python_version()}
    if device.type != "cuda":
        return row | {"device": platform.processor() or "cpu", "threads": torch.get_num_threads()}
    card = torch.cuda.get_device_properties(device)
    return row | {"device": card.name, "memory_gb": round(card.total_memory / 1e9, 1), "cuda": torch.version.cuda}


def measure(setup: Setup, seconds: float, parts: list[str]) -> Iterator[Row]:
    """The rows of the parts that begin within the time."""
    until, left = time.monotonic() + seconds, list(parts)
    yield describe(setup.device)
    for name in parts:
        if time.monotonic() > until:
            break
        left.remove(name)
        began = time.monotonic()
        try:
            for row in PARTS[name](setup):
                yield {"name": name} | row
                if time.monotonic() > until:
                    left.insert(0, f"rest of {name}")
                    break
        except Exception as error:  # noqa: BLE001 - the others are worth having
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {error}"[:500]
            yield {"name": name, "error": text, "where": f"{where.filename.rsplit('/', 1)[-1]}:{where.lineno}"}
        yield {"name": "part", "part": name, "seconds": round(time.monotonic() - began, 2)}
        if setup.device.type == "cuda":
            torch.cuda.empty_cache()
    yield {"name": "end", "not_reached": left}


def main(arguments: list[str] | None = None) -> None:
    """Print the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="narrow models: for trying the benchmark itself")
    options = parser.parse_args(arguments)
    setup = Setup(device=torch.device(options.device), tiny=options.tiny)
    for row in measure(setup, 60 * options.minutes, options.parts or list(PARTS)):
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
