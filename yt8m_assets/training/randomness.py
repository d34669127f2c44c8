"""Seeds: every random draw of training is a function of the run's seed and the step, so none has state to save."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from any printable parts, the same on every machine and in every process."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@contextmanager
def isolated_randomness(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's default generators inside the block, and leave them outside it as they were."""
    generators = default_generators(device)
    states = [generator.get_state() for generator in generators]
    seed_defaults(device, seed)
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def default_generators(device: torch.device) -> list[torch.Generator]:
    """torch's default generators of the CPU and, for CUDA, of the device."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        torch.cuda.init()
        index = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    return generators


def seed_defaults(device: torch.device, seed: int) -> None:
    """Seed torch's default generators; unlike torch.manual_seed this touches no other device and costs microseconds."""
    for generator in default_generators(device):
        generator.manual_seed(seed)
