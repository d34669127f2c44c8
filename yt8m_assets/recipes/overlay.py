"""Overriding fields of nested dataclasses with JSON values, each checked against the field's type; and the way back."""

import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal, TypeVar

from yt8m_assets.errors import ConfigError

T = TypeVar("T")


def apply_overrides(target: T, values: Any, name: str) -> T:
    """A copy of the dataclass `target` with the fields in `values` replaced; nested objects override nested fields.

    `name` is the dotted path of `target`, for messages. Raises ConfigError naming an unknown field and the known ones,
    or a field whose value has the wrong type.
    """
    changes = _field_values(type(target), values, name, target)
    return replace(target, **changes)  # type: ignore[type-var]


def _field_values(cls: type, values: Any, name: str, current: Any) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ConfigError(f"{name or 'recipe'} = {values!r}: give an object of fields")
    known = [field.name for field in fields(cls)]
    hints = typing.get_type_hints(cls)
    changes = {}
    for field, value in values.items():
        path = f"{name}.{field}" if name else field
        if field not in known:
            extra = "" if name else "; in a JSON recipe also base and model_keys"
            raise ConfigError(f"unknown field {path!r}; known: {', '.join(known)}{extra}")
        changes[field] = _convert(hints[field], value, path, getattr(current, field, None))
    return changes


def _convert(hint: Any, value: Any, path: str, current: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _convert_union(arguments, value, path, current)
    if is_dataclass(hint) and isinstance(hint, type):
        if isinstance(current, hint):
            return apply_overrides(current, value, path)
        return construct(hint, value, path)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{path} = {value!r}: choose one of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        return _convert_tuple(arguments, value, path)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise ConfigError(f"{path} = {value!r}: give an object")
        given = {key: _convert(arguments[1], item, f"{path}.{key}", None) for key, item in value.items()}
        return {**(current or {}), **given}
    return value if hint is Any else _convert_scalar(hint, value, path)


def construct(cls: type[T], values: Any, name: str) -> T:
    """The dataclass with its own defaults for what `values` lacks. Raises what `apply_overrides` raises."""
    try:
        return cls(**_field_values(cls, values, name, None))
    except TypeError as error:
        raise ConfigError(f"{name}: {error}") from error


def _convert_union(arguments: tuple[Any, ...], value: Any, path: str, current: Any) -> Any:
    if value is None and type(None) in arguments:
        return None
    choices = [argument for argument in arguments if argument is not type(None)]
    if value is None or len(choices) != 1:
        raise ConfigError(f"{path} = {value!r}: cannot be set in a JSON recipe")
    return _convert(choices[0], value, path, current)


def _convert_tuple(arguments: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ConfigError(f"{path} = {value!r}: give a list")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        hints: tuple[Any, ...] = (arguments[0],) * len(value)
    else:
        hints = arguments
    if len(hints) != len(value):
        raise ConfigError(f"{path} = {value!r}: give {len(hints)} values")
    return tuple(
        _convert(hint, item, f"{path}[{i}]", None) for i, (hint, item) in enumerate(zip(hints, value, strict=True))
    )


def _convert_scalar(hint: Any, value: Any, path: str) -> Any:
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not abs(value) <= sys.float_info.max:  # an integer may be too large for what asks whether it is finite
            raise ConfigError(f"{path} = {value!r}: must be finite")
        return float(value)
    if hint not in (bool, int, str) or type(value) is not hint:
        raise ConfigError(f"{path} = {value!r}: must be of type {getattr(hint, '__name__', hint)}")
    return value


def plain(value: Any) -> Any:
    """Dataclasses, mappings and tuples as plain JSON values."""
    if is_dataclass(value) and not isinstance(value, type):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value
