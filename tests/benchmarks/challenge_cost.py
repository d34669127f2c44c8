"""What the whole challenge run would take on a GPU: an estimate by arithmetic, not a measurement.

`python -m tests.benchmarks.challenge_cost` counts what every model of the challenge recipe (`--recipe`: of another)
computes (torch's counter: the matrix products, forward and backward) and moves (inputs and outputs of every operation
in float32, nothing fused), and prints the tables of docs/benchmarks.md. A model of whole videos is counted on one of
MEAN_FRAMES: fine-tuning and its evaluations see one for each rated segment, prediction one for all of its segments.
For a GPU with peak P and memory bandwidth W:

    seconds of a step, low  = batch x FLOP / (0.40 P) + 40 bytes x parameters / W
    seconds of a step, high = batch x FLOP / (0.35 P) + (40 bytes x parameters + bytes moved) / W
    index pass              = reading every shard once
    pre-training            = the larger of the sum over all models of steps x seconds of a step, and of the time to
                              read the examples, once for all of them (200,000 x 128: 4.6 times the data, or the data
                              alone where the disk holds it)
    fine-tuning             = steps x seconds of a step + evaluations x segments x seconds of a forward pass
    prediction              = the larger of the forward passes of all cells and of the time to read the segments

`high` is no less than 10 microseconds an operation, which the host takes to start them one by one uncompiled.
40 bytes a parameter are what a step moves whatever the batch: the gradient written, read and written by clipping and
read by the update (16), Adam's read and write of weight and moments (24). `low` has every activation fused away, `high`
none: the truth lies between, if the shares of the peak hold.
"""

import argparse
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from models import create_model
from models.base import sees_videos
from yt8m_assets.recipes import load_recipe
from yt8m_assets.recipes.schema import ModelRecipe, Recipe
from yt8m_assets.training.validate import evaluations_by

WIDTH = 1152
MEAN_FRAMES = 230
"""Frames of a pre-training video on average: 1.5 TB of 1152 bytes a second over 5.6 M videos."""
VIDEO_BYTES = 1.5e12 / 5.6e6
TEST_SEGMENTS, TEST_BYTES = 2.6e6, 2.6e6 * 5 * WIDTH
HELD_OUT = 300 / 3844
OOF_SEGMENTS = 2.6e6 * HELD_OUT
RATED_BYTES = TEST_BYTES
"""As many videos are validated as tested, about."""
RATINGS = int(237_788 * HELD_OUT)
PARAMETER_BYTES = 40
SHARES = (0.40, 0.35)
DATA_BYTES = 1.5e12
READING = (737e6, 150e6)
"""Bytes a second from a bucket of the same region. Published for gcsfs, a standard bucket, one process: 737 MB/s with
four ranges at a time, 156 as it comes. Not measured here, where the reader uses 85 % or more of what a link allows."""
LAUNCH_SECONDS = 10e-6
"""Time the host takes for one uncompiled operation: an assumption."""
BATCHES = (2, 4)


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """One GPU as its maker describes it."""

    name: str
    """Product."""
    peaks: dict[str, float]
    """Published dense FLOP a second by precision."""
    bandwidth: float
    """Published bytes a second of its memory."""


GPUS = (
    Accelerator(name="L4", peaks={"bfloat16": 121e12, "float32": 30e12}, bandwidth=300e9),
    Accelerator(name="A100 80 GB", peaks={"bfloat16": 312e12, "float32": 19.5e12}, bandwidth=2039e9),
    Accelerator(name="H100 SXM", peaks={"bfloat16": 989e12, "float32": 67e12}, bandwidth=3350e9),
)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a batch of examples of one kind costs."""

    flops: float
    """Floating-point operations an example."""
    bytes: float
    """Bytes moved for each example."""
    fixed: float
    """Bytes moved once a batch, such as the weights."""
    operations: int
    """Operations a batch; the host starts one after another."""

    def seconds(self, batch: float, gpu: Accelerator, precision: str, bound: int) -> float:
        """Seconds of a batch; `bound` 0 is the low end, 1 the high one."""
        moved = (0.0, self.bytes * batch + self.fixed)[bound]
        arithmetic = batch * self.flops / (SHARES[bound] * gpu.peaks[precision])
        return max(arithmetic + moved / gpu.bandwidth, (0.0, self.operations * LAUNCH_SECONDS)[bound])


class TrafficCounter(TorchDispatchMode):
    """Adds up the bytes that operations read and write; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.total = self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.operations += 1
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
            self.total += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


def count(model: torch.nn.Module, num_frames: int, backward: bool) -> Work:
    """Run two small batches; what grows between them is an example's, the rest a batch's."""
    flops, moved = [], []
    model.train(backward)
    for batch in BATCHES:
        model.zero_grad()
        with FlopCounterMode(display=False) as counter, TrafficCounter() as traffic, torch.set_grad_enabled(backward):
            output = model(torch.randn(batch, num_frames, WIDTH), torch.full((batch,), num_frames))
            if backward:
                (output.probabilities.sum() + output.regularization_loss).backward()
        flops.append(counter.get_total_flops() / batch)
        moved.append(traffic.total)
    each = (moved[1] - moved[0]) / (BATCHES[1] - BATCHES[0])
    return Work(flops=flops[1], bytes=each, fixed=moved[0] - BATCHES[0] * each, operations=traffic.operations)


@dataclass(frozen=True, kw_only=True)
class ModelCost:
    """One row of the tables."""

    row: ModelRecipe
    """The recipe."""
    parameters: int
    """Trainable numbers."""
    pretraining: Work
    """Forward and backward of a pre-training example."""
    finetuning: Work
    """Forward and backward of a rated segment."""
    forward: Work
    """Forward pass over the rated classes of a segment, or of a video."""
    segments: int
    """Segments that such a pass scores."""

    @classmethod
    def of(cls, recipe: Recipe, row: ModelRecipe) -> "ModelCost":
        """Count one model of the recipe."""
        model = create_model(row.architecture, recipe.data.num_classes, **row.overrides)
        restricted = model.restrict_classes(torch.arange(1000))
        num_frames = MEAN_FRAMES if sees_videos(model) else 5
        return cls(
            row=row,
            parameters=sum(p.numel() for p in model.parameters()),
            pretraining=count(model, row.pretraining.window_frames or MEAN_FRAMES, True),
            finetuning=count(model, num_frames, True),
            forward=count(restricted, num_frames, False),
            segments=num_frames // 5,
        )

    def hours(self, gpu: Accelerator, precision: str, bound: int) -> dict[str, float]:
        """Hours of the stages on a GPU, without reading; prediction always in bfloat16, as the recipe says."""
        before, after = self.row.pretraining, self.row.finetuning
        update = PARAMETER_BYTES * self.parameters / gpu.bandwidth
        evaluations = evaluations_by(after.num_steps, after) + 1
        scoring = self.forward.seconds(512, gpu, "bfloat16", bound) / 512 / self.segments
        seconds = {
            "pretraining": before.num_steps
            * (self.pretraining.seconds(before.batch_size, gpu, precision, bound) + update),
            "finetuning": after.num_steps * (self.finetuning.seconds(after.batch_size, gpu, precision, bound) + update)
            + evaluations * RATINGS * self.forward.seconds(512, gpu, precision, bound) / 512,
            "oof": OOF_SEGMENTS * len(self.row.shifts) * scoring,
            "test": TEST_SEGMENTS * len(self.row.shifts) * scoring,
        }
        return {name: value / 3600 for name, value in seconds.items()}


def span(low: float, high: float) -> str:
    """`1.2 - 3.4`, with two digits."""
    return f"{low:.2g} - {high:.2g}" if high < 10 else f"{low:.0f} - {high:.0f}"


def print_hours(costs: list[ModelCost], precision: str, disk: bool) -> None:
    """The GPU's own hours, and the machine's: no stage is faster than its reading, which is once for all models.

    disk: the machine's disk holds all shards, so later epochs read nothing from the bucket.
    """
    print("| GPU alone, hours | " + " | ".join(gpu.name for gpu in GPUS) + " |")
    print("|---|" + "---|" * len(GPUS))
    for stage in ("pretraining", "finetuning"):
        for cost in costs:
            cells = [span(*(cost.hours(gpu, precision, bound)[stage] for bound in (0, 1))) for gpu in GPUS]
            print(f"| {stage}, {cost.row.title} | " + " | ".join(cells) + " |")
    print("\n| machine, hours | " + " | ".join(gpu.name for gpu in GPUS) + " |")
    print("|---|" + "---|" * len(GPUS))
    examples = costs[0].row.pretraining.num_steps * costs[0].row.pretraining.batch_size
    reading = {
        "index pass": DATA_BYTES,
        "pretraining": min(DATA_BYTES, examples * VIDEO_BYTES) if disk else examples * VIDEO_BYTES,
        "finetuning": RATED_BYTES,
        "oof": TEST_BYTES * HELD_OUT,
        "test": TEST_BYTES,
    }
    totals = [[0.0, 0.0] for _ in GPUS]
    for stage, size in reading.items():
        cells = []
        for gpu, total in zip(GPUS, totals, strict=True):
            own = [sum(cost.hours(gpu, precision, bound).get(stage, 0.0) for cost in costs) for bound in (0, 1)]
            ends = [max(own[bound], size / READING[bound] / 3600) for bound in (0, 1)]
            total[0], total[1] = total[0] + ends[0], total[1] + ends[1]
            cells.append(span(*ends))
        print(f"| {stage}, {size / 1e9:,.0f} GB read | " + " | ".join(cells) + " |")
    print("| all | " + " | ".join(span(*total) for total in totals) + " |")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16", help="of training")
    parser.add_argument("--disk", action="store_true", help="the disk holds all shards (1.5 TB)")
    parser.add_argument("--recipe", default="challenge", help="a recipe of the challenge's data")
    options = parser.parse_args()
    recipe = load_recipe(options.recipe)
    costs = [ModelCost.of(recipe, row) for row in recipe.models]
    print("| model | parameters | GFLOP (MB moved): pre-training example | rated segment | scored pass |")
    print("|---|---|---|---|---|")
    for cost in costs:
        works = (cost.pretraining, cost.finetuning, cost.forward)
        figures = " | ".join(f"{work.flops / 1e9:.3g} ({work.bytes / 1e6:.2g})" for work in works)
        print(f"| {cost.row.title} | {cost.parameters / 1e6:.0f} M | {figures} |")
    print()
    print_hours(costs, options.precision, options.disk)


if __name__ == "__main__":
    main()
