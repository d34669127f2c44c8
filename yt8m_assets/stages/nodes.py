"""The graph of artifacts, declared once: an entry for each asset, and the nodes, parents and configurations it implies.

What Dagster is told, the order of work, the tables for people and the hints for machines follow from the same entries.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from models import has_batch_norm
from yt8m_assets.data.dataset.packed import INDEX_FILE
from yt8m_assets.recipes.overlay import plain
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.training.config import computed_fields


@dataclass(frozen=True, order=True)
class Node:
    """One artifact: an asset, with its model and shift where it is partitioned."""

    asset: str
    model: str | None = None
    shift: int | None = None

    @property
    def key(self) -> str:
        """Name of the artifact in the store, such as `oof_predictions/bert_l2h12/shift+1`."""
        parts = [self.asset]
        if self.model is not None:
            parts.append(self.model)
        if self.shift is not None:
            parts.append(f"shift{self.shift:+d}")
        return "/".join(parts)

    @property
    def code_version(self) -> str:
        """The version of the code that makes it."""
        return ASSETS[self.asset].code_version


@dataclass(frozen=True, kw_only=True)
class Asset:
    """What is declared of an asset; its stage and its shell are all that is beside it."""

    group: str
    """Heading of the assets that belong together: in the UI, and in the order of work."""
    kinds: frozenset[str]
    """What the UI labels it with."""
    code_version: str = "1"
    """Raise it when a change of the code changes the content; what depends on it is redone."""
    axes: tuple[Literal["model", "shift"], ...] = ()
    """What it is partitioned by: nothing, models, or models and shifts."""
    parents: tuple[str, ...] = ()
    """The assets it is made from: of those with an axis in common the same model or shift, else every one required."""
    config: "tuple[str | Callable[[Recipe, Node], dict[str, Any]], ...]" = ()
    """Fields of the recipe that determine the content (`model.` is the node's row), and functions that work some out.

    Each is hashed under its last name: to rename one makes stale what there is.
    """
    files: Literal["shards", "vocabulary"] | None = None
    """Files named by the recipe whose content counts as well."""
    holds: tuple[str, ...] = ()
    """Files without which it is made again, though they are no part of its content: nothing below is redone."""
    machine: Literal["small", "roomy", "large", "gpu"] = "small"
    """What it needs of a machine for the real data (`orchestration.hints` has the sizes)."""
    training: Literal["pretraining", "finetuning"] | None = None
    """Of a training: the field of a model's row that says how."""
    checks: tuple[str, ...] = ()
    """Its blocking checks: nothing is made from a partition whose newest verdict of one of them is bad."""
    optional: str = ""
    """Of cells: what Dagster calls those of shifts that no ranking fuses; their artifacts are named as the others."""
    needs: str = ""
    """The recipe's field without which it is no part of the graph; none: it always is."""
    column: str = ""
    """Heading in the table of `yt8m status`, for what has a partition per model."""


def _training(recipe: Recipe, node: Node) -> dict[str, Any]:
    data, model = recipe.data, recipe.model(str(node.model))
    training = getattr(model, str(ASSETS[node.asset].training))
    return {
        "training": computed_fields(
            training,
            lambda: has_batch_norm(model.architecture, data.num_classes, data.feature_sizes, **model.overrides),
        )
    }


def _unlisted(recipe: Recipe, node: Node) -> dict[str, Any]:
    """What ratings a fine-tuning leaves out; absent when none: held-out ones alone stop at a class without a rank."""
    dropped = recipe.data.unlisted_ratings == "drop" and ASSETS[node.asset].training == "finetuning"
    return {"unlisted_ratings": "drop"} if dropped else {}


def _shifts(recipe: Recipe, node: Node) -> dict[str, Any]:
    return {"shifts": sorted(recipe.model(str(node.model)).shifts)}


def _video_terms(recipe: Recipe, _: Node) -> dict[str, Any]:
    """Absent when off: what was made before they existed stays current."""
    found = {name: getattr(recipe.prediction, name) for name in ("candidate_classes", "video_weight")}
    return {name: value for name, value in found.items() if value}


def _when_on(field: str) -> Callable[[Recipe, Node], dict[str, Any]]:
    """A switch of the recipe, absent when off, likewise."""
    return lambda recipe, _: {field: True} if getattr(recipe, field) else {}


def _presets(recipe: Recipe, _: Node) -> dict[str, Any]:
    return {"preset": {model.key: model.preset_weight for model in recipe.models}}


def _names(recipe: Recipe, _: Node) -> dict[str, Any]:
    return {"recipe": recipe.name, "models": [[model.key, model.title] for model in recipe.models]}


_RECORD = ("data.num_classes", "data.feature_sizes", "data.max_frames")
_SHARDS = Asset(
    group="data",
    config=(*_RECORD, "data.on_corrupt", "data.holdout"),
    files="shards",
    holds=(INDEX_FILE,),
    code_version="3",
    kinds=frozenset({"tfrecord"}),
    checks=("not_empty",),
)
_MODEL = Asset(
    group="models",
    axes=("model",),
    code_version="2",
    config=("model.architecture", "model.overrides", *_RECORD, _training, _unlisted, "seed"),
    kinds=frozenset({"pytorch", "mlflow"}),
    machine="gpu",
)
_SCORING: tuple[Any, ...] = (
    *("prediction.edges", "prediction.top_k", "prediction.precision"),
    *("prediction.trim_start", "prediction.trim_end", _video_terms),
)
_CELLS = Asset(
    group="predictions",
    axes=("model", "shift"),
    config=(*_SCORING, "node.shift"),
    kinds=frozenset({"pytorch", "parquet"}),
    machine="gpu",
    checks=("coverage", "finite_scores"),
)
_RANKING = Asset(
    group="predictions",
    axes=("model",),
    config=("prediction.tta_w0", "prediction.top_k", _shifts),
    kinds=frozenset({"parquet"}),
    checks=("coverage",),
    column="rankings",
)

OPTIONAL_GROUP = "optional"
"""Heading of the cells that are not required."""

ASSETS: dict[str, Asset] = {
    "pretraining_shards": _SHARDS,
    "segment_shards": replace(_SHARDS, checks=("not_empty", "no_leak")),
    "test_shards": replace(_SHARDS, config=(*_RECORD, "data.on_corrupt")),
    "holdout_ratings": Asset(
        group="data", parents=("segment_shards",), kinds=frozenset({"csv"}), checks=("both_verdicts",)
    ),
    "pretrained_model": replace(_MODEL, parents=("pretraining_shards",), training="pretraining", column="pretrained"),
    "finetuned_model": replace(
        _MODEL,
        parents=("pretrained_model", "segment_shards", "holdout_ratings"),
        training="finetuning",
        checks=("finite_map",),
        column="finetuned",
    ),
    "refitted_model": replace(
        _MODEL,
        group="refit",
        parents=("finetuned_model", "pretrained_model", "segment_shards"),
        training="finetuning",
        column="refitted",
        needs="refit",
    ),
    "fold_ranking": Asset(
        group="folds",
        axes=("model",),
        parents=("pretrained_model", "segment_shards", "holdout_ratings"),
        config=(*_MODEL.config, *_SCORING, "prediction.tta_w0", _shifts, "folds"),
        kinds=frozenset({"pytorch", "parquet"}),
        machine="gpu",
        training="finetuning",
        checks=("finite_scores",),
        column="folds",
        needs="folds",
    ),
    "oof_predictions": replace(
        _CELLS,
        parents=("finetuned_model", "segment_shards"),
        optional="oof_optional_predictions",
        column="oof cells",
    ),
    "test_predictions": replace(
        _CELLS,
        parents=("finetuned_model", "refitted_model", "test_shards", "segment_shards"),
        config=(*_CELLS.config, _when_on("refit")),
        optional="test_optional_predictions",
        column="test cells",
    ),
    "oof_ranking": replace(_RANKING, parents=("oof_predictions",)),
    "test_ranking": replace(_RANKING, parents=("test_predictions",)),
    "ensemble_weights": Asset(
        group="ensemble",
        parents=("oof_ranking", "holdout_ratings", "fold_ranking"),
        config=("search", _presets, _when_on("second_stage"), "prediction.top_k", "seed"),
        code_version="2",
        kinds=frozenset({"mlflow"}),
        machine="large",
        checks=("not_worse_than_best_member",),
    ),
    "submission": Asset(
        group="ensemble",
        parents=("ensemble_weights", "test_ranking", "test_shards", "segment_shards"),
        config=("prediction.top_k",),
        kinds=frozenset({"csv", "mlflow"}),
        machine="roomy",
        checks=("valid",),
    ),
    "leaderboard": Asset(
        group="ensemble",
        parents=(
            *("finetuned_model", "oof_predictions", "oof_ranking", "test_ranking"),
            *("holdout_ratings", "segment_shards", "test_shards", "ensemble_weights", "submission", "fold_ranking"),
        ),
        config=(_names, "bootstrap_rounds", "seed", "prediction.top_k"),
        files="vocabulary",
        code_version="2",
        kinds=frozenset({"html"}),
        machine="roomy",
    ),
}
"""Every asset, each after all that it is made from."""


def nodes(recipe: Recipe, asset: str, model: str | None = None, shift: int | None = None) -> tuple[Node, ...]:
    """The nodes of an asset that the recipe requires (a model's own shifts only), in order; or those of one model.

    `shift`: of the cells that one, required or not.
    """
    axes, needs = ASSETS[asset].axes, ASSETS[asset].needs
    if needs and not getattr(recipe, needs):
        return ()
    if not axes:
        return (Node(asset),)
    rows = recipe.models if model is None else (recipe.model(model),)
    if axes == ("model",):
        return tuple(Node(asset, row.key) for row in rows)
    return tuple(
        Node(asset, row.key, each) for row in rows for each in (sorted(row.shifts) if shift is None else (shift,))
    )


def all_nodes(recipe: Recipe) -> list[Node]:
    """All that the recipe requires, each after what it is made from."""
    return [node for asset in ASSETS for node in nodes(recipe, asset)]


def parents(recipe: Recipe, node: Node) -> tuple[Node, ...]:
    """The nodes whose artifacts this one is made from."""
    if node.asset == "pretrained_model" and (origin := recipe.model(str(node.model)).starts_from):
        return (Node(node.asset, origin),)
    return tuple(
        parent for asset in ASSETS[node.asset].parents for parent in nodes(recipe, asset, node.model, node.shift)
    )


def with_ancestors(recipe: Recipe, wanted: Iterable[Node]) -> list[Node]:
    """The nodes and all that they come from, in the order in which they are made."""
    found: set[Node] = set()
    pending = list(wanted)
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending.extend(parents(recipe, node))
    order = list(ASSETS)
    return sorted(found, key=lambda node: (order.index(node.asset), node.model or "", node.shift or 0))


def config_slice(recipe: Recipe, node: Node) -> dict[str, Any]:
    """The part of the recipe that determines the node's content, as JSON values; files it names: see `data_slice`."""
    sections: dict[str, Any] = {"": recipe, "node": node}
    if node.model is not None:
        sections["model"] = recipe.model(node.model)
    found: dict[str, Any] = {}
    for field in ASSETS[node.asset].config:
        if callable(field):
            found |= field(recipe, node)
        else:
            section, _, name = field.rpartition(".")
            found[name] = plain(getattr(sections.get(section) or getattr(recipe, section), name))
    return found
