"""The product's training step against a naive loop, alternating in one process (`make bench`).

Ours: uint8 to the device, dequantised there, bfloat16 autocast where the processor has it, fused Adam, the L2 gradient
in one pass, clipping and the finite check without a wait, pages that are kept. Peer: a naive float32 port (of BERT; for
the others the product's model in a naive loop), float32 inputs, the L2 terms through autograd, a Python loop over the
parameters for clipping, unfused Adam, and the loss read back at every step. On a GPU also examples a second, memory and
the share of the measured matrix peak. Prints one JSON line for each.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from tests.benchmarks.bench_models import WIDTH, NaiveBert, matrix_peak, synchronize
from yt8m_assets.data.dataset.batches import Batch
from yt8m_assets.data.records.features import model_inputs
from yt8m_assets.device.allocator import kept_pages
from yt8m_assets.training.config import TrainingConfig
from yt8m_assets.training.loss import Objective, cross_entropy
from yt8m_assets.training.model_files import ModelSpec
from yt8m_assets.training.optimizer import Optimizer
from yt8m_assets.training.randomness import isolated_randomness
from yt8m_assets.training.step import Stepper

BARS = {"bert_l2h12": 1.7}
"""Naive seconds over ours at batch 128 in bfloat16."""
NUM_FRAMES = {
    "bert_l2h12": (5, 5),
    "bert_mean_l2h12": (5, 5),
    "gated_netvlad_h1024c16": (5, 300),
    "mix_nextvlad_iter300": (300, 300),
}
"""Frames of an example that ours gets, for its reader has drawn them, and that the peer gets."""
ORIGINAL = {
    ("bert_l2h12", 128): 1.76,
    ("bert_mean_l2h12", 128): 0.98,
    ("gated_netvlad_h1024c16", 32): 0.9,
    ("mix_nextvlad_iter300", 8): 1.46,
}
"""Seconds of the original's own TensorFlow step for a model and batch size, 3862 classes, two cores of the kind that
docs/benchmarks.md is from: measured elsewhere, for it cannot be run here."""


def make_batch(batch_size: int, num_frames: int, num_classes: int) -> Batch:
    """Random windows or videos, as the reader gives them."""
    return Batch(
        frames=torch.randint(0, 256, (batch_size, num_frames, WIDTH), dtype=torch.uint8),
        valid=torch.ones(batch_size, num_frames, dtype=torch.bool),
        num_frames=torch.full((batch_size,), num_frames),
        labels=(torch.rand(batch_size, num_classes) < 0.001).float(),
        label_weights=None,
        video_ids=tuple(f"v{number:05d}" for number in range(batch_size)),
        starts=torch.zeros(batch_size, dtype=torch.int64),
        frame_index=torch.arange(num_frames).expand(batch_size, num_frames),
    )


def product_step(options: argparse.Namespace, batch: Batch, device: torch.device) -> Callable[[], object]:
    """One step of the product's engine."""
    config = TrainingConfig(
        num_steps=10**6, batch_size=options.batch_size, precision=options.precision, compile=options.compile
    )
    model = build(options).to(device).train()
    optimizer = Optimizer(dict(model.named_parameters()), config)
    stepper = Stepper(Objective(model, config), optimizer, config, device=device, seed=0)
    ready = batch.pin_memory() if device.type == "cuda" else batch
    return lambda: stepper.run(ready, 0, 1e-4)


def build(options: argparse.Namespace) -> torch.nn.Module:
    """The product's model."""
    spec = ModelSpec(
        architecture=options.model, num_classes=options.num_classes, feature_sizes=(1024, 128), max_frames=300
    )
    return spec.build()


def naive_step(options: argparse.Namespace, batch: Batch, device: torch.device) -> Callable[[], object]:
    """One step as one would first write it."""
    if options.model.startswith("bert"):
        naive: Any = NaiveBert(options.num_classes, concat=options.model == "bert_l2h12")
    else:
        naive = build(options)
    model = naive.to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, foreach=False)
    frames, num_frames = model_inputs(batch.frames, batch.valid), batch.num_frames.to(device)

    def step() -> float:
        if isinstance(model, NaiveBert):
            probabilities, rest = model(frames.to(device)), torch.zeros((), device=device)
            penalty = 0.5e-6 * (model.gates.weight.square().sum() + model.experts.weight.square().sum())
        else:
            probabilities, rest, _ = model(frames.to(device), num_frames)
            penalty = model.l2_penalty()
        loss = cross_entropy(probabilities, batch.labels.to(device)) + rest + penalty
        optimizer.zero_grad()
        loss.backward()
        for parameter in model.parameters():
            torch.nn.utils.clip_grad_norm_([parameter], 1.0, foreach=False)
        optimizer.step()
        return loss.item()

    return step


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Time one call, to the end of its work."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="bert_l2h12", choices=[model for model, _ in ORIGINAL])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--num-classes", type=int, default=3862)
    parser.add_argument("--precision", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    drawn, whole = NUM_FRAMES[options.model]
    batch, videos = (make_batch(options.batch_size, count, options.num_classes) for count in (drawn, whole))
    with isolated_randomness(device, 0), kept_pages(device.type == "cpu"):
        ours, peer = product_step(options, batch, device), naive_step(options, videos, device)
        ours(), peer()
        times = [(seconds(ours, device), seconds(peer, device)) for _ in range(options.rounds)]
    own, other = (statistics.median(column) for column in zip(*times, strict=True))
    facts = {
        "benchmark": "training_step",
        "ours_seconds": own,
        "peer_seconds": other,
        "ratio": other / own,
        "bar": BARS.get(options.model),
        "ratios": [round(b / a, 2) for a, b in times],
        "examples_per_second": options.batch_size / own,
        **vars(options),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
    }
    if device.type == "cpu" and (options.model, options.batch_size) in ORIGINAL:
        facts["original_over_ours"] = ORIGINAL[options.model, options.batch_size] / own
    if device.type == "cuda":
        facts["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    if device.type == "cuda" and options.model == "bert_l2h12":
        encoder = 2 * (4 * WIDTH**2 + 2 * WIDTH * 3072) * 5 * 2
        flops = 3 * options.batch_size * (encoder + 2 * 5 * WIDTH * 11 * options.num_classes)
        facts["share_of_matrix_peak"] = flops / own / matrix_peak(device, options.rounds)
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
