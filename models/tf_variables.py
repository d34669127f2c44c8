"""Exchange weights with the original's TensorFlow variables (SPEC section 12).

Every parameter and running statistic is one variable. Its name is the module's path, with TensorFlow's words
for the leaves (weights, biases, gamma, beta, moving_mean, moving_variance), rewritten by the model's `tf_rules`.
A linear layer stores the transpose of the variable.
"""

import re
from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from models.base import FrameModel
from models.layers import BatchNorm

SCOPE = "tower"
AVERAGE = "/ExponentialMovingAverage"
IGNORED = re.compile(r"(/Adam(_\d+)?|(^|/)beta[12]_power|(^|/)global_step|(^|/)learning_rate)$")
"""What a checkpoint holds besides the model: the optimiser's slots and counters."""
_NORM_LEAVES = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}
_LINEAR_LEAVES = {"weight": "weights", "bias": "biases"}


class TfVariable(NamedTuple):
    """Where a variable lives in a model: its parameter or buffer, and whether that is stored transposed."""

    tensor: Tensor
    transposed: bool
    trainable: bool


def tf_variables(model: FrameModel) -> dict[str, TfVariable]:
    """Map the name of every TensorFlow variable of a model to its place."""
    variables: dict[str, TfVariable] = {}
    for path, module in model.named_modules():
        leaves = _LINEAR_LEAVES if isinstance(module, nn.Linear) else {}
        leaves = _NORM_LEAVES if isinstance(module, BatchNorm | nn.LayerNorm) else leaves
        parameters = module.named_parameters(recurse=False)
        buffers = ((name, value) for name, value in module.named_buffers(recurse=False) if name in leaves)
        for name, tensor in (*parameters, *buffers):
            tf_name = "/".join([SCOPE, *filter(None, path.split(".")), leaves.get(name, name)])
            for pattern, replacement in model.tf_rules:
                tf_name = re.sub(pattern, replacement, tf_name)
            assert tf_name not in variables, f"two parameters of the model are called {tf_name}"
            transposed = isinstance(module, nn.Linear) and name == "weight"
            variables[tf_name] = TfVariable(tensor, transposed, isinstance(tensor, nn.Parameter))
    return variables


def original_names(variables: Mapping[str, np.ndarray], known: Collection[str]) -> dict[str, np.ndarray]:
    """The variables under the names the original gives them, where another program spelled them differently.

    Understood: `:0` at the end, no scope or `model/` before it, and moving averages, which count where the variable
    itself is not there. ValueError where two names mean the same variable.
    """
    found: dict[str, tuple[str, np.ndarray]] = {}
    averages: dict[str, tuple[str, np.ndarray]] = {}
    for given, value in variables.items():
        plain = given.removesuffix(":0")
        kept = averages if plain.endswith(AVERAGE) else found
        plain = plain.removesuffix(AVERAGE)
        bare = plain.removeprefix("model/")
        spellings = (plain, bare, f"{SCOPE}/{bare}")
        name = next((spelling for spelling in spellings if spelling in known), plain)
        if name in kept:
            raise ValueError(f"{kept[name][0]} and {given} are both {name}: leave one of them out")
        kept[name] = (given, value)
    return {name: value for name, (_, value) in {**averages, **found}.items()}


@torch.no_grad()
def load_tf_variables(model: FrameModel, variables: Mapping[str, np.ndarray]) -> None:
    """Copy TensorFlow variables into a model: full names with the prefix `tower/`, or as `original_names` knows them.

    Optimiser slots and counters are ignored. ValueError names every variable that is missing, unused, of the wrong
    shape, or not finite; the model is then unchanged.
    """
    places = tf_variables(model)
    named = original_names(variables, places)
    given = {name: np.asarray(value) for name, value in named.items() if not IGNORED.search(name)}
    problems = [f"missing: {name} {_shape(places[name])}" for name in places if name not in given]
    problems += [f"unused: {name}" for name in given if name not in places]
    for name in places.keys() & given.keys():
        if given[name].shape != _shape(places[name]):
            problems.append(f"mis-shaped: {name} has {given[name].shape}, the model needs {_shape(places[name])}")
        elif not np.issubdtype(given[name].dtype, np.floating) or not np.isfinite(given[name]).all():
            problems.append(f"not finite floating-point numbers: {name} ({given[name].dtype})")
    if problems:
        raise ValueError(
            f"{len(problems)} variables do not fit {type(model).__name__}:\n" + "\n".join(sorted(problems))
        )
    for name, place in places.items():
        value = torch.from_numpy(np.array(given[name], order="C"))
        place.tensor.copy_(value.T if place.transposed else value)


def export_tf_variables(model: FrameModel, kind: Literal["value", "grad"] = "value") -> dict[str, np.ndarray]:
    """Give a model's variables under their TensorFlow names and in its layout, or the gradients of the trainable ones.

    ValueError if a gradient is asked for that does not exist.
    """
    if kind not in ("value", "grad"):
        raise ValueError(f"kind = {kind!r}: choose 'value' or 'grad'")
    exported = {}
    for name, place in tf_variables(model).items():
        if kind == "grad" and not place.trainable:
            continue
        tensor = place.tensor if kind == "value" else place.tensor.grad
        if tensor is None:
            raise ValueError(f"{name} has no gradient: call backward() first")
        tensor = tensor.detach().cpu()
        exported[name] = np.array((tensor.T if place.transposed else tensor).numpy(), order="C")
    return exported


def _shape(place: TfVariable) -> tuple[int, ...]:
    shape = tuple(place.tensor.shape)
    return shape[::-1] if place.transposed else shape
