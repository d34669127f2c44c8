"""How much memory a training takes, told before it starts: counted on tensors without content."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from models.base import sees_videos
from yt8m_assets.device.memory import free_bytes, free_gpu_bytes
from yt8m_assets.training.config import TrainingConfig
from yt8m_assets.training.loss import Objective
from yt8m_assets.training.model_files import ModelSpec

MARGIN = 1.25
"""Factor on activations: what backward passes hold beside them, and what allocators waste."""
RESERVE = 0.15
"""Share of the free memory that is left: for what else runs on the machine, and what the estimate misses."""
PLENTY = 3
"""Where this many times the state is free, activations are not counted: torch takes seconds to begin with that."""


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes of one training."""

    state: int
    """On its device from beginning to end: weights, gradients, moments, averages."""
    activations: int
    """On its device during a step: of models that step in turn the largest counts."""
    copies: int
    """On the host: the checkpoint that is being written, and the best weights where they are kept."""


def state_of(spec: ModelSpec, config: TrainingConfig) -> Footprint:
    """What a training keeps from beginning to end; activations are not counted."""
    with torch.device("meta"):
        model = spec.build()
    numbers = sum(value.numel() for value in model.parameters())
    averages = (config.ema_decay is not None) + (config.swa_last > 0)
    copies = 3 + averages + 3 * bool(config.keep_best)
    return Footprint(state=4 * numbers * (4 + averages), activations=0, copies=4 * numbers * copies)


def with_activations(found: Footprint, spec: ModelSpec, config: TrainingConfig) -> Footprint:
    """The same with an estimate of what a step takes; torch takes some seconds to import what this needs."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with torch.device("meta"):
        model = spec.build()
    with FakeTensorMode():
        model._apply(lambda value: torch.empty(value.shape, dtype=value.dtype))
        saved = saved_bytes(Objective(model.train(), config), spec, config)
    return replace(found, activations=int(MARGIN * saved))


def saved_bytes(objective: Objective, spec: ModelSpec, config: TrainingConfig) -> int:
    """Bytes that a forward pass keeps for the backward pass, its inputs included, beside the weights."""
    model, size = objective.model, config.batch_size // config.accumulation // config.num_processes
    draws: int = model.num_sampled_frames  # type: ignore[assignment]
    length = config.window_frames or spec.max_frames
    whole = sees_videos(model)
    num_frames = length if whole else min(length, draws)
    frames = torch.zeros(size, num_frames, sum(spec.feature_sizes), dtype=torch.uint8)
    index = torch.zeros(size, draws, dtype=torch.int64)
    weights = {value.untyped_storage()._cdata for value in model.parameters()}
    held: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            held[storage._cdata] = storage.nbytes()
        return tensor

    half = torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.precision == "bfloat16")
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor), half:
        labels = torch.zeros(size, spec.num_classes)
        valid = torch.zeros(size, num_frames, dtype=torch.bool)
        objective(frames, valid, torch.full((size,), num_frames), labels, None, None if whole else index)
    return sum(held.values()) + frames.numel() + 4 * labels.numel()


def needed(footprints: Sequence[Footprint], on_gpu: bool) -> tuple[int, int]:
    """Bytes that trainings side by side take of the device, and of the host."""
    device = sum(found.state for found in footprints) + max((found.activations for found in footprints), default=0)
    host = sum(found.copies for found in footprints)
    return (device, host) if on_gpu else (0, device + host)


def fitting(footprints: Mapping[str, Footprint], device_bytes: int, host_bytes: int, on_gpu: bool) -> list[list[str]]:
    """Trainings in groups that fit, as few as their order allows; one that does not fit by itself stays by itself."""
    groups: list[list[str]] = []
    for name in footprints:
        together = [*groups[-1], name] if groups else [name]
        device, host = needed([footprints[each] for each in together], on_gpu)
        if groups and device <= device_bytes and host <= host_bytes:
            groups[-1] = together
        else:
            groups.append([name])
    return groups


def cut_to_memory(
    trainings: Mapping[str, tuple[ModelSpec, TrainingConfig]], device: torch.device
) -> tuple[list[list[str]], str]:
    """Trainings in groups that fit into the memory that is free, and what to say of it ("" where it is plenty)."""
    if len(trainings) < 2:
        return [list(trainings)], ""
    on_gpu = device.type == "cuda"
    there = free_bytes(), free_gpu_bytes(device) if on_gpu else 0
    free_host, free_device = (int((1 - RESERVE) * free) for free in there)
    footprints = {name: state_of(*training) for name, training in trainings.items()}
    smallest = free_device if on_gpu else free_host
    if PLENTY * sum(needed(list(footprints.values()), on_gpu)) <= smallest:
        return [list(trainings)], ""
    footprints = {name: with_activations(found, *trainings[name]) for name, found in footprints.items()}
    groups = fitting(footprints, free_device, free_host, on_gpu)
    parts = [*zip(("GPU", "host"), needed(list(footprints.values()), on_gpu), (free_device, free_host), strict=True)]
    text = " and ".join(
        f"{want / 1e9:.1f} GB of {free / 1e9:.1f} GB {kind} memory" for kind, want, free in parts if want
    )
    cut = f": they are trained in {len(groups)} passes, {'; '.join(', '.join(g) for g in groups)}" if groups[1:] else ""
    return groups, f"{len(trainings)} models side by side take about {text}{cut}"
