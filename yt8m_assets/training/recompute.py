"""Activation checkpointing: less memory between forward and backward pass for one more forward pass.

What is dropped: the activations inside a model's parts, and the float32 frames, which come back from their bytes.
"""

import contextlib
from collections.abc import Callable, Iterator
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


def recompute_activations(model: nn.Module, *, compiled: bool = False) -> None:
    """Let a model's parts recompute their activations in the backward pass, in training.

    Where the model is `compiled`, these parts are not: torch.compile cannot put their statistics back.

    A part is a layer of a list of layers, or else a block of layers; one with an attribute `recompute` (NextVlad) knows
    itself what to recompute together. Names, weights, results and gradients stay as they are, bit for bit.
    """
    for part in parts(model):
        if hasattr(part, "recompute"):
            part.recompute = recomputed(part, compiled)  # type: ignore[assignment]
        else:
            call, forward = recomputed(part, compiled), part.forward
            part.forward = _bound(call, forward)


def parts(module: nn.Module) -> Iterator[nn.Module]:
    """The modules below `module` that are called in a forward pass and hold blocks of activations."""
    for child in module.children():
        if not _is_called(child):  # a list or dictionary of modules
            yield from parts(child)
        elif hasattr(child, "recompute"):
            yield child
        elif layers := [layer for each in child.children() if isinstance(each, nn.ModuleList) for layer in each]:
            yield from (layer for layer in layers if _is_block(layer)) if any(map(_is_block, layers)) else (child,)
        elif _is_block(child):
            yield child


def _is_called(module: nn.Module) -> bool:
    return type(module).forward is not nn.Module.forward


def _is_block(module: nn.Module) -> bool:
    return _is_called(module) and next(module.children(), None) is not None


def recomputed(module: nn.Module, compiled: bool) -> Callable[..., Tensor]:
    """A caller of functions that belong to `module`, whose activations are computed again where they are needed."""

    def call(function: Callable[..., Tensor], *arguments: Any, **options: Any) -> Tensor:
        if not (module.training and torch.is_grad_enabled()):
            return function(*arguments, **options)
        return checkpoint(
            function,
            *arguments,
            use_reentrant=False,
            context_fn=lambda: (contextlib.nullcontext(), unchanged_statistics(module)),
            **options,
        )

    return torch.compiler.disable(call) if compiled else call


def _bound(call: Callable[..., Tensor], function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(*arguments: Any, **options: Any) -> Tensor:
        return call(function, *arguments, **options)

    return forward


@contextlib.contextmanager
def made_anew(make: Callable[[], Tensor], tensor: Tensor) -> Iterator[None]:
    """Inside the block, let the backward pass of what is computed make `tensor` anew instead of keeping it (and views).

    `make` gives the same values in the same layout; it is called once, when the backward pass comes to the first use.
    """
    storage, made = tensor.untyped_storage()._cdata, []  # type: ignore[var-annotated]

    def pack(value: Tensor) -> Any:
        if value.untyped_storage()._cdata != storage:
            return value
        return value.size(), value.stride(), value.storage_offset()

    def unpack(kept: Any) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        if not made:
            made.append(make())
        return made[0].as_strided(*kept)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
