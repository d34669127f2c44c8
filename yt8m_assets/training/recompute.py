"""Activation checkpointing: less memory in the forward pass for one more forward pass in the backward."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@contextlib.contextmanager
def unchanged_statistics(module: nn.Module) -> Iterator[None]:
    """Put a module's buffers back after the block: a recomputed forward pass must not count twice in batch norm."""
    buffers = list(module.buffers())
    before = [value.clone() for value in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for value, old in zip(buffers, before, strict=True):
                value.copy_(old)


def recompute_activations(model: nn.Module) -> None:
    """Let the model's direct parts (of a list of layers: each layer) recompute their activations in the backward pass.

    Names, weights, results and gradients stay as they are.
    """
    for part in model.children():
        layers = [layer for child in part.children() if isinstance(child, nn.ModuleList) for layer in child]
        for module in layers or [part]:
            if any(True for _ in module.parameters()):
                _recompute(module)


def _recompute(module: nn.Module) -> None:
    forward = module.forward

    def recomputed(*arguments: Any, **options: Any) -> Tensor:
        if not (module.training and torch.is_grad_enabled()):
            return forward(*arguments, **options)
        return checkpoint(
            forward,
            *arguments,
            use_reentrant=False,
            context_fn=lambda: (contextlib.nullcontext(), unchanged_statistics(module)),
            **options,
        )

    module.forward = recomputed
