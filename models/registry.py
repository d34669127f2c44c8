"""Which architectures exist: each module of this package registers its own with `@register_model(key, **defaults)`.

Nothing here imports torch: `list_models` reads the decorators out of the source files, and `create_model` imports just
the module that registers the key. A new file in this folder is therefore all a new architecture needs.
"""

import ast
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from models.base import FrameModel

LEADERBOARD_ORDER = (
    "gated_netvlad_h1024c16",
    "bert_l2h12",
    "bert_cross_mean_l2h8",
    "bert_l3h12",
    "bert_cross_attn_l2h8",
    "bert_first_l2h12",
    "mix_nextvlad_iter300",
    "mix_nextvlad_iter60",
    "bert_mean_l2h12",
)
"""The nine of the published solution, in its README's order; other keys follow alphabetically."""

VIDEO_MODELS = ("frame_scorer",)
"""Beyond the solution: keys of models that see whole videos. `list_models` names what scores windows by themselves."""

ModelClass = TypeVar("ModelClass", bound="type[FrameModel]")


@dataclass(frozen=True)
class _Entry:
    model_class: "type[FrameModel]"
    defaults: dict[str, Any]


_REGISTRY: dict[str, _Entry] = {}


def register_model(key: str, **defaults: Any) -> Callable[[ModelClass], ModelClass]:
    """Register a model class under a key, with the options in which the key differs from the class's own defaults.

    Write the key as a literal string: `list_models` finds it by reading the source. ValueError if the key is taken.
    """

    def register(model_class: ModelClass) -> ModelClass:
        if key in _REGISTRY:
            taken = _REGISTRY[key].model_class
            raise ValueError(f"model key {key!r} is already registered by {taken.__module__}.{taken.__qualname__}")
        _REGISTRY[key] = _Entry(model_class, defaults)
        return model_class

    return register


def list_models() -> list[str]:
    """Name the architectures: the nine of the solution in its README's order, then any others alphabetically.

    Those that see whole videos (`VIDEO_MODELS`) are not among them.
    """
    keys = (_registered_in_source().keys() | _REGISTRY.keys()) - set(VIDEO_MODELS)
    return [key for key in LEADERBOARD_ORDER if key in keys] + sorted(keys - set(LEADERBOARD_ORDER))


def create_model(
    key: str, num_classes: int = 3862, feature_sizes: Sequence[int] = (1024, 128), **overrides: Any
) -> "FrameModel":
    """Build an architecture with freshly initialised weights, on torch's current default device.

    num_classes is the vocabulary's size, feature_sizes the widths of the rgb and audio parts of a frame (0: none);
    overrides are the options of the architecture (docs/fidelity.md). ValueError for an unknown key or option, or a
    value that does not fit.
    """
    entry = _entry(key)
    known = [field.name for field in fields(entry.model_class.Options)]
    unknown = sorted(set(overrides) - set(known))
    if unknown:
        raise ValueError(f"{key} has no option {', '.join(map(repr, unknown))}; its options are {', '.join(known)}")
    sizes = tuple(feature_sizes)
    if len(sizes) != 2 or not all(isinstance(size, int) and size >= 0 for size in sizes) or not any(sizes):
        raise ValueError(f"feature_sizes = {sizes}: give the widths of rgb and audio, two integers; 0: there is none")
    if entry.model_class.splits_modalities and 0 in sizes:
        raise ValueError(f"feature_sizes = {sizes}: {key} looks at rgb and audio apart and needs both")
    if not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f"num_classes = {num_classes!r}: must be an integer, at least 1")
    options = entry.model_class.Options(**{**entry.defaults, **overrides})
    return entry.model_class(num_classes, (sizes[0], sizes[1]), options)


def has_batch_norm(
    key: str, num_classes: int = 3862, feature_sizes: Sequence[int] = (1024, 128), **overrides: Any
) -> bool:
    """Whether what a model computes in training depends on which examples share a forward pass.

    Builds the model without memory for its weights, and imports torch for it; arguments and errors as `create_model`.
    """
    import torch

    from models.layers import BatchNorm

    with torch.device("meta"):
        model = create_model(key, num_classes, feature_sizes, **overrides)
    kinds = (BatchNorm, torch.nn.modules.batchnorm._BatchNorm)
    return any(isinstance(module, kinds) for module in model.modules())


def _entry(key: str) -> _Entry:
    if key not in _REGISTRY:
        module = _registered_in_source().get(key)
        if module is None:
            raise ValueError(f"there is no model {key!r}; choose one of {', '.join([*list_models(), *VIDEO_MODELS])}")
        import_module(module)
    return _REGISTRY[key]


def _registered_in_source() -> dict[str, str]:
    """Map every key that a module of this package registers to that module's name."""
    homes: dict[str, str] = {}
    for info in pkgutil.iter_modules(import_module("models").__path__, prefix="models."):
        name = info.name.removeprefix("models.")
        source = Path(getattr(info.module_finder, "path", ""), f"{name}.py")
        text = source.read_text() if source.is_file() else ""
        for key in _literal_keys(text) if "@register_model(" in text else ():
            if key in homes:
                raise ValueError(f"model key {key!r} is registered by both {homes[key]} and {info.name}")
            homes[key] = info.name
    return homes


def _literal_keys(text: str) -> list[str]:
    keys = []
    for node in ast.walk(ast.parse(text)):
        for decorator in getattr(node, "decorator_list", ()):
            match decorator:
                case ast.Call(func=ast.Name(id="register_model"), args=[ast.Constant(value=str(key)), *_]):
                    keys.append(key)
    return keys
