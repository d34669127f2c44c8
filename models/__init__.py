"""The architectures: `create_model(key, ...)` builds one, `list_models()` names them without importing torch.

Names resolve on first use (PEP 562), so importing this package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.base import FrameModel, ModelOutput
    from models.registry import create_model, has_batch_norm, list_models, register_model
    from models.tf_variables import export_tf_variables, load_tf_variables

__all__ = [
    "FrameModel",
    "ModelOutput",
    "create_model",
    "export_tf_variables",
    "has_batch_norm",
    "list_models",
    "load_tf_variables",
    "register_model",
]

_HOMES = {
    "FrameModel": "models.base",
    "ModelOutput": "models.base",
    "create_model": "models.registry",
    "has_batch_norm": "models.registry",
    "list_models": "models.registry",
    "register_model": "models.registry",
    "export_tf_variables": "models.tf_variables",
    "load_tf_variables": "models.tf_variables",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
