"""Every field of a recipe either changes what it should, or is listed as not mattering, with the reason."""

import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.data.factory import make_video, write_shard
from tests.tiny import tiny_model, tiny_recipe
from yt8m_assets.data.config import DataConfig, HoldoutConfig
from yt8m_assets.errors import ConfigError
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.lineage import Lineage
from yt8m_assets.stages.nodes import ASSETS, nodes
from yt8m_assets.storage import ArtifactStore

SHARDS = {"pretraining_shards", "segment_shards", "test_shards"}
MODELS = {"pretrained_model", "finetuned_model", "refitted_model"}
CELLS = {"oof_predictions", "test_predictions"}
RANKINGS = {"oof_ranking", "test_ranking"}
FOLDS = {"fold_ranking"}

MATTERS: dict[str, set[str]] = {
    "name": {"leaderboard"},
    "seed": {*MODELS, *FOLDS, "ensemble_weights", "leaderboard"},
    "bootstrap_rounds": {"leaderboard"},
    "data.pretraining": {"pretraining_shards"},
    "data.segments": {"pretraining_shards", "segment_shards"},
    "data.test": {"test_shards"},
    "data.segment_classes_uri": {"segment_shards"},
    "data.vocabulary_uri": {"segment_shards", "leaderboard"},
    "data.label_map_uri": {"pretraining_shards", "segment_shards"},
    "data.shard_share": SHARDS,
    "data.unlisted_ratings": {"finetuned_model", "refitted_model", *FOLDS},
    "data.num_classes": SHARDS | MODELS | FOLDS,
    "data.feature_sizes": SHARDS | MODELS | FOLDS,
    "data.max_frames": SHARDS | MODELS | FOLDS,
    "data.on_corrupt": SHARDS,
    "data.holdout": {"pretraining_shards", "segment_shards"},
    "data.simulation": SHARDS,
    "models.key": {"ensemble_weights", "leaderboard"},
    "models.title": {"leaderboard"},
    "models.architecture": MODELS | FOLDS,
    "models.overrides": MODELS | FOLDS,
    "models.shifts": RANKINGS | FOLDS,
    "models.preset_weight": {"ensemble_weights"},
    "models.pretraining": {"pretrained_model"},
    "models.finetuning": {"finetuned_model", "refitted_model", *FOLDS},
    "prediction.edges": CELLS | FOLDS,
    "prediction.precision": CELLS | FOLDS,
    "prediction.trim_start": CELLS | FOLDS,
    "prediction.trim_end": CELLS | FOLDS,
    "prediction.candidate_classes": CELLS | FOLDS,
    "prediction.video_weight": CELLS | FOLDS,
    "prediction.top_k": CELLS | RANKINGS | FOLDS | {"ensemble_weights", "submission", "leaderboard"},
    "prediction.tta_w0": RANKINGS | FOLDS,
    "search": {"ensemble_weights"},
    "second_stage": {"ensemble_weights"},
    "folds": FOLDS,
    "refit": {"test_predictions"},
}
"""Path of a field (or of what it belongs to) -> assets whose own slice it changes; what is made from them follows."""

_TRAINING = {
    "accumulation": "how a step is split; batch norm sees it, which has a test of its own",
    "num_processes": "as accumulation",
    "compile": "the same arithmetic, compiled",
    "cuda_graphs": "the same kernels, launched at once",
    "activation_checkpointing": "the same activations, computed twice",
    "checkpoint_every": "how much work a crash may cost",
    "checkpoint_seconds": "as checkpoint_every",
    "log_every": "how much is shown",
    "deterministic": "which of equal kernels are used",
}
DOES_NOT_MATTER = {
    "data.memory_budget": "where frames wait, not what they are",
    "data.max_quarantined": "when to give up, not what is kept",
    "data.num_workers": "who reads",
    "models.starts_from": "it decides what a model is made from: tests/stages/test_variants.py",
    "prediction.batch_size": "segments are scored by themselves",
    "prediction.compile": "the same arithmetic, compiled",
    **{f"models.{stage}.{name}": why for stage in ("pretraining", "finetuning") for name, why in _TRAINING.items()},
}
"""Path of a field -> why changing it redoes nothing."""

CHANGED: dict[str, Any] = {
    "data.feature_sizes": (16, 9),
    "data.holdout.rule": "original",
    "data.simulation.num_classes": 12,
    "data.simulation.num_groups": 2,
    "models.key": "another",
    "models.architecture": "bert_first_l2h12",
    "models.overrides": {"num_layers": 2},
    "models.shifts": (0, 2),
    "models.pretraining.schedule": "cosine",
    "models.pretraining.batch_size": 16,
    "models.finetuning.batch_size": 16,
    "prediction.top_k": 50,
    "search.w0_bounds": (1.0, 3.0),
}
"""Path -> another value, where one cannot be made up from the field's type."""


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(path, value, type) of every field that is no dataclass itself; of the models, the first one's."""
    hints = typing.get_type_hints(type(value))
    for field in fields(value):
        name, found = f"{path}{field.name}", getattr(value, field.name)
        if field.name == "models":
            yield from leaves(found[0], "models.")
        elif is_dataclass(found):
            yield from leaves(found, f"{name}.")
        else:
            yield name, found, hints[field.name]


def other_value(path: str, value: Any, hint: Any) -> Any:
    """A different value of the field's type."""
    if path in CHANGED:
        return CHANGED[path]
    options = [hint] if typing.get_origin(hint) is Literal else typing.get_args(hint)
    for option in options:
        if typing.get_origin(option) is Literal:
            return next(choice for choice in typing.get_args(option) if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 0.5 if value else 0.25
    if isinstance(value, str):
        return f"{value} changed"
    if value is None:
        return 0.5 if float in options else 2
    return tuple(part + 1 for part in value)


def changed(target: Any, path: str, value: Any) -> Any:
    """A copy with one field replaced."""
    first, _, rest = path.partition(".")
    current = getattr(target, first)
    if not rest:
        return replace(target, **{first: value})
    if first == "models":
        return replace(target, models=(changed(current[0], rest, value), *current[1:]))
    return replace(target, **{first: changed(current, rest, value)})


def expected(table: dict[str, Any], path: str) -> Any:
    """The entry of the field, or of what it belongs to."""
    while path and path not in table:
        path = path.rpartition(".")[0]
    return table.get(path)


def touched(before: Recipe, after: Recipe, store: ArtifactStore) -> set[str]:
    """The assets of which a node's own slice differs, among nodes that both recipes have."""
    one, other = Lineage(before, store), Lineage(after, store)
    common = [node for asset in ASSETS for node in nodes(before, asset) if node in nodes(after, asset)]
    return {node.asset for node in common if one.config(node) != other.config(node)}


SIMULATED = tiny_recipe(
    models=(tiny_model("one", (0, 1)), tiny_model("two", (0,))), second_stage=True, folds=2, refit=True
)


@pytest.mark.parametrize(("path", "value", "hint"), [pytest.param(*leaf, id=leaf[0]) for leaf in leaves(SIMULATED)])
def test_a_field_of_a_simulated_recipe(path: str, value: Any, hint: Any, tmp_path: Path) -> None:
    if path.removeprefix("data.") in FILES or path == "models.starts_from":
        return  # of files: below
    before = replace(SIMULATED, folds=0) if path == "second_stage" else SIMULATED  # without that none can have folds
    check(before, path, other_value(path, value, hint), ArtifactStore(str(tmp_path)))


def check(recipe: Recipe, path: str, value: Any, store: ArtifactStore) -> None:
    try:
        after = changed(recipe, path, value)
    except ConfigError as error:
        raise AssertionError(f"{path} = {value!r}: {error}; name another value in CHANGED") from error
    found = touched(recipe, after, store)
    if path in DOES_NOT_MATTER:
        assert found == set(), f"{path} redoes {found}, though {DOES_NOT_MATTER[path]}"
    else:
        assert expected(MATTERS, path) is not None, f"{path} is new: say in MATTERS or DOES_NOT_MATTER what it changes"
        assert found == expected(MATTERS, path)


FILES = (
    *("pretraining", "segments", "test", "shard_share"),
    *("segment_classes_uri", "vocabulary_uri", "label_map_uri"),
)


@pytest.mark.parametrize("path", FILES)
def test_a_field_that_names_files(path: str, tmp_path: Path) -> None:
    for name in (f"{split}{number}" for split in ("train", "validate", "test") for number in range(3)):
        write_shard(tmp_path / f"{name}.tfrecord", [make_video(f"{name[-5:]}", 2, [1])])
    (tmp_path / "classes.csv").write_text("Index\n1\n2\n")
    (tmp_path / "fewer.csv").write_text("Index\n1\n")
    (tmp_path / "map.csv").write_text("Index,NewIndex\n1,1\n")
    data = DataConfig(
        pretraining=(str(tmp_path / "train*"),),
        segments=(str(tmp_path / "validate*"),),
        test=(str(tmp_path / "test*"),),
        segment_classes_uri=str(tmp_path / "classes.csv"),
        num_classes=8,
        holdout=HoldoutConfig(rule="seeded", fraction=0.5),
    )
    other: Any = {"shard_share": 0.47, "label_map_uri": str(tmp_path / "map.csv")}.get(path)
    if other is None:
        other = str(tmp_path / "fewer.csv") if path.endswith("_uri") else (getattr(data, path)[0][:-1] + "[01]*",)
    check(replace(SIMULATED, data=data), f"data.{path}", other, ArtifactStore(str(tmp_path / "store")))


def test_the_tables_name_no_field_that_is_gone() -> None:
    paths = [path for path, _, _ in leaves(SIMULATED)]
    for table in (MATTERS, DOES_NOT_MATTER, CHANGED):
        for entry in table:
            assert any(path == entry or path.startswith(f"{entry}.") for path in paths), entry
