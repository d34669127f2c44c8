"""The models against naive float32 ports of the original, alternating in one process (`make bench`).

Bars: BERT mean inference on 1000 rated classes 4x (bfloat16 where the processor has it, compiled); MixNeXtVLAD 300 on
5-frame segments 8x at the same precision; a training step of BERT concat, batch 128, 1.7x. On a GPU also the share of
its measured matrix peak. Prints one JSON line for each.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import FrameModel, create_model

NUM_RATED = 1000
WIDTH = 1152


class NaiveEncoderLayer(nn.Module):
    """A transformer layer as one would first write it: explicit attention, one projection after the other."""

    def __init__(self, width: int, num_heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.query, self.key, self.value, self.merge = (nn.Linear(width, width) for _ in range(4))
        self.first, self.second = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-12) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        batch_size, num_steps, width = x.shape
        size = width // self.num_heads

        def heads(y: Tensor) -> Tensor:
            return y.view(batch_size, num_steps, self.num_heads, size).permute(0, 2, 1, 3)

        query, key, value = heads(self.query(x)), heads(self.key(x)), heads(self.value(x))
        weights = torch.softmax(query @ key.transpose(2, 3) / math.sqrt(size), -1)
        weights = F.dropout(weights, self.dropout, self.training)
        context = (weights @ value).permute(0, 2, 1, 3).reshape(batch_size, num_steps, width)
        x = self.norms[0](F.dropout(self.merge(context), self.dropout, self.training) + x)
        y = self.first(x)
        y = 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        return self.norms[1](F.dropout(self.second(y), self.dropout, self.training) + x)


class NaiveBert(nn.Module):
    """BERT with mean or concat pooling and the full mixture of experts."""

    def __init__(self, num_classes: int, concat: bool) -> None:
        super().__init__()
        self.concat = concat
        self.layers = nn.ModuleList(NaiveEncoderLayer(WIDTH, 12, 3072, 0.1) for _ in range(2))
        pooled_size = 5 * WIDTH if concat else WIDTH
        self.gates = nn.Linear(pooled_size, num_classes * 6, bias=False)
        self.experts = nn.Linear(pooled_size, num_classes * 5)
        self.num_classes = num_classes

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        x = x.flatten(1) if self.concat else x.mean(1)
        gates = torch.softmax(self.gates(x).view(-1, 6), -1)
        experts = torch.sigmoid(self.experts(x).view(-1, 5))
        return (gates[:, :5] * experts).sum(-1).view(-1, self.num_classes)


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Time one call, to the end of its work."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compare(
    name: str, ours: Callable[[], object], peer: Callable[[], object], bar: float, rounds: int, **facts: object
) -> None:
    """Alternate the two after a warm-up of each, and print the ratio of their medians."""
    device = torch.device(str(facts["device"]))
    ours(), peer()
    times = [(seconds(ours, device), seconds(peer, device)) for _ in range(rounds)]
    own, other = (statistics.median(column) for column in zip(*times, strict=True))
    ratios = [round(b / a, 2) for a, b in times]
    line = {"benchmark": name, "ours_seconds": own, "peer_seconds": other, "ratio": other / own, "bar": bar}
    print(json.dumps({**line, "ratios": ratios, "rounds": rounds, **facts}))


def frames(batch_size: int, num_steps: int, device: torch.device) -> tuple[Tensor, Tensor]:
    x = F.normalize(torch.randn(batch_size, num_steps, WIDTH, device=device), dim=2)
    return x, torch.full((batch_size,), num_steps, device=device)


def scorer(model: FrameModel, device: torch.device, low_precision: bool) -> Callable[..., Tensor]:
    def score(*inputs: Tensor) -> Tensor:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=low_precision):
            return model(*inputs).probabilities

    return score


def bert_inference(options: argparse.Namespace, device: torch.device) -> None:
    """Our fastest exact-to-bfloat16 scoring of the rated classes, against the whole naive model in float32."""
    model = create_model("bert_mean_l2h12", options.num_classes).to(device).eval()
    restricted = model.restrict_classes(torch.arange(min(NUM_RATED, options.num_classes)))
    restricted.hold_linear_weights(torch.bfloat16)  # as prediction does
    if options.compile:
        restricted.compile()
    naive = NaiveBert(options.num_classes, concat=False).to(device).eval()
    score, inputs = scorer(restricted, device, True), frames(options.batch_size, 5, device)

    def peer() -> Tensor:
        with torch.inference_mode():
            return naive(inputs[0])

    facts = {"device": str(device), "batch_size": options.batch_size, "compiled": options.compile}
    compare("inference_bert_mean_rated", lambda: score(*inputs), peer, 4.0, options.rounds, **facts)


def mix_inference(options: argparse.Namespace, device: torch.device) -> None:
    """Five frames with counts, against the same network fed all 300 copies, both in float32."""
    model = create_model("mix_nextvlad_iter300", options.num_classes).to(device).eval()
    score, inputs = scorer(model, device, False), frames(options.mix_batch_size, 5, device)
    copies = inputs[0].repeat_interleave(60, dim=1)
    num_copies = torch.full_like(inputs[1], 300)
    facts = {"device": str(device), "batch_size": options.mix_batch_size}
    error = (score(*inputs) - score(copies, num_copies)).abs().max().item()
    assert error < 1e-5, f"the two computations differ by {error}"
    ours, peer = lambda: score(*inputs), lambda: score(copies, num_copies)
    compare("inference_mix_nextvlad_300_segments", ours, peer, 8.0, options.rounds, **facts)


def bert_training(options: argparse.Namespace, device: torch.device) -> None:
    """Forward, backward and Adam on segments: bfloat16 autocast against naive float32."""
    batch_size = options.train_batch_size
    model = create_model("bert_l2h12", options.num_classes).to(device).train()
    naive = NaiveBert(options.num_classes, concat=True).to(device).train()
    inputs = frames(batch_size, 5, device)
    labels = (torch.rand(batch_size, options.num_classes, device=device) < 0.001).float()

    def stepper(module: nn.Module, forward: Callable[[], Tensor], fused: bool) -> Callable[[], None]:
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-4, fused=fused)

        def step() -> None:
            p = forward()
            loss = -(labels * (p + 1e-5).log() + (1 - labels) * (1 - p + 1e-5).log()).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return step

    if options.compile:
        model.compile()

    def forward() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return model(*inputs).probabilities

    ours, peer = stepper(model, forward, True), stepper(naive, lambda: naive(inputs[0]), False)
    facts = {"device": str(device), "batch_size": batch_size, "compiled": options.compile}
    compare("training_step_bert_concat", ours, peer, 1.7, options.rounds, **facts)


def matrix_peak(device: torch.device, rounds: int) -> float:
    """Measure the device's bfloat16 matrix product, in FLOP a second."""
    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    a @ b
    return 2 * 8192**3 / statistics.median(seconds(lambda: a @ b, device) for _ in range(rounds))


def gpu_share(options: argparse.Namespace, device: torch.device) -> None:
    """What share of the measured matrix peak BERT's forward pass and training reach; bars 40 % and 30 %."""
    batch_size = 8192
    peak = matrix_peak(device, options.rounds)
    model = create_model("bert_mean_l2h12", options.num_classes).to(device).eval()
    flops = 2 * 5 * 2 * (4 * WIDTH**2 + 2 * WIDTH * 3072) + 2 * WIDTH * 11 * options.num_classes
    inputs = frames(batch_size, 5, device)
    model.compile()
    score = scorer(model, device, True)
    score(*inputs)
    forward = statistics.median(seconds(lambda: score(*inputs), device) for _ in range(options.rounds))

    def train() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            probabilities = model(*inputs).probabilities
        probabilities.sum().backward()

    model.train()
    train()
    backward = statistics.median(seconds(train, device) for _ in range(options.rounds))
    for name, share, bar in (("forward", flops / forward, 0.4), ("training", 3 * flops / backward, 0.3)):
        line = {"benchmark": f"share_of_peak_{name}", "share": batch_size * share / peak, "bar": bar, "peak": peak}
        print(json.dumps({**line, "rounds": options.rounds, "device": torch.cuda.get_device_name(device)}))


def main() -> None:
    """Run the benchmarks that this machine can."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--num-classes", type=int, default=3862)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--mix-batch-size", type=int, default=32)
    parser.add_argument("--train-batch-size", type=int, default=128)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--only", choices=["bert", "mix", "training", "gpu"])
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    benchmarks = {"bert": bert_inference, "mix": mix_inference, "training": bert_training}
    if device.type == "cuda":
        benchmarks["gpu"] = gpu_share
    for name, benchmark in benchmarks.items():
        if options.only in (None, name):
            benchmark(options, device)


if __name__ == "__main__":
    main()
