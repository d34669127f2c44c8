"""Forms of Dagster's launchpad: thin mirrors of the recipe's own fields, of which what is not given stays as it is."""

import ast
import inspect
import types
import typing
from dataclasses import fields
from itertools import pairwise
from typing import Any, Literal

import dagster as dg

from yt8m_assets.recipes.study import StudyConfig
from yt8m_assets.training.config import TrainingConfig

_SCALARS: dict[Any, Any] = {bool: dg.Bool, int: dg.Int, float: dg.Float, str: dg.String}


def form_of(config: type) -> dict[str, dg.Field]:
    """A field of a form for each of a dataclass: its type, nothing by default, and the line of doc below it.

    Values are the recipe's to judge: of choices the form only says which there are.
    """
    hints, docs = typing.get_type_hints(config), field_docs(config)
    return {field.name: _field(hints[field.name], docs.get(field.name, "")) for field in fields(config)}


def _field(hint: Any, doc: str) -> dg.Field:
    arguments = typing.get_args(hint)
    optional = typing.get_origin(hint) in (types.UnionType, typing.Union)
    kind = next(argument for argument in arguments if argument is not type(None)) if optional else hint
    choices = f" One of: {', '.join(typing.get_args(kind))}." if typing.get_origin(kind) is Literal else ""
    scalar = dg.String if choices else _SCALARS[kind]
    return dg.Field(dg.Noneable(scalar) if optional else scalar, is_required=False, description=f"{doc}{choices}")


def field_docs(config: type) -> dict[str, str]:
    """Name of a field -> the text below it in the source, in one line."""
    (body,) = (node.body for node in ast.parse(inspect.getsource(config)).body if isinstance(node, ast.ClassDef))
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def variant_form() -> dict[str, dg.Field]:
    """What a variant is asked for by: its name, and what it changes."""
    training = form_of(TrainingConfig)
    naming = "Name of the variant. Letters, digits and underscores, such as lr3e4; empty: none is trained."
    return {
        "name": dg.Field(dg.String, default_value="", description=naming),
        "finetuning": dg.Field(
            dg.Shape(training),
            is_required=False,
            description="What fine-tuning does otherwise; it starts from the model's own pre-trained weights.",
        ),
        "pretraining": dg.Field(
            dg.Shape(training),
            is_required=False,
            description="What pre-training does otherwise: the variant is then pre-trained itself.",
        ),
        "overrides": dg.Field(
            dg.Permissive(),
            is_required=False,
            description="Options of the architecture, such as dropout; it is pre-trained itself where the weights' "
            "shapes change.",
        ),
    }


def study_form() -> dict[str, dg.Field]:
    """What a study is asked for by: the fields of `StudyConfig`, and no budget unless one is given."""
    docs, usual = field_docs(StudyConfig), vars(StudyConfig(steps=1)) | {"steps": 0, "space": {}}
    kinds = {"steps": dg.Int, "name": dg.String, "space": dg.Permissive(), "seed": dg.Int, "num_initial": dg.Int}
    return {name: dg.Field(kind, default_value=usual[name], description=docs[name]) for name, kind in kinds.items()}


def settings_of(form: typing.Mapping[str, Any]) -> dict[str, Any]:
    """What a filled form sets, section by section, as in a JSON recipe."""
    return {name: dict(values) for name, values in form.items() if name != "name" and values}
