"""The graph of artifacts: which node needs which, what determines its content, and whether it is up to date.

A node's fingerprint hashes the slice of the recipe that matters to it, the version of its code and the digests of its
parents. A published artifact is current when its manifest carries the fingerprint that would be computed now.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

from models import has_batch_norm
from yt8m_assets.errors import MissingArtifactError
from yt8m_assets.recipes.schema import ModelRecipe, Recipe
from yt8m_assets.storage import ArtifactStore, Manifest, canonical_json, sha256_text
from yt8m_assets.training.config import TrainingConfig, computed_fields

CODE_VERSIONS: Mapping[str, str] = {
    "pretraining_shards": "1",
    "segment_shards": "1",
    "test_shards": "1",
    "holdout_ratings": "1",
    "pretrained_model": "1",
    "finetuned_model": "1",
    "oof_predictions": "1",
    "test_predictions": "1",
    "oof_ranking": "1",
    "test_ranking": "1",
    "ensemble_weights": "2",
    "submission": "1",
    "leaderboard": "1",
}
"""Raise an asset's number when a change of its code changes its content; what depends on it is redone."""

ASSETS = tuple(CODE_VERSIONS)
_BY_MODEL = ("pretrained_model", "finetuned_model", "oof_ranking", "test_ranking")
_BY_CELL = ("oof_predictions", "test_predictions")


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


def nodes(recipe: Recipe, asset: str) -> tuple[Node, ...]:
    """The nodes of an asset that the recipe requires (a model's own shifts only), in order."""
    if asset in _BY_MODEL:
        return tuple(Node(asset, key) for key in recipe.model_keys)
    if asset in _BY_CELL:
        return tuple(Node(asset, model.key, shift) for model in recipe.models for shift in sorted(model.shifts))
    return (Node(asset),)


def parents(recipe: Recipe, node: Node) -> tuple[Node, ...]:
    """The nodes whose artifacts this one is made from."""
    model = node.model
    split = node.asset.split("_")[0]
    rankings = tuple(Node("oof_ranking", key) for key in recipe.model_keys)
    table: dict[str, tuple[Node, ...]] = {
        "holdout_ratings": (Node("segment_shards"),),
        "pretrained_model": (Node("pretraining_shards"),),
        "finetuned_model": (Node("pretrained_model", model), Node("segment_shards"), Node("holdout_ratings")),
        "oof_predictions": (Node("finetuned_model", model), Node("segment_shards")),
        "test_predictions": (Node("finetuned_model", model), Node("test_shards")),
        "ensemble_weights": (*rankings, Node("holdout_ratings")),
        "submission": (
            Node("ensemble_weights"),
            *(Node("test_ranking", key) for key in recipe.model_keys),
            Node("test_shards"),
        ),
        "leaderboard": (
            *(Node("finetuned_model", key) for key in recipe.model_keys),
            *nodes(recipe, "oof_predictions"),
            *rankings,
            *(Node("holdout_ratings"), Node("segment_shards"), Node("ensemble_weights"), Node("submission")),
        ),
    }
    if node.asset in ("oof_ranking", "test_ranking"):
        shifts = recipe.model(str(model)).shifts
        return tuple(Node(f"{split}_predictions", model, shift) for shift in sorted(shifts))
    return table.get(node.asset, ())


def plain(value: Any) -> Any:
    """Dataclasses, mappings and tuples as plain JSON values."""
    if is_dataclass(value) and not isinstance(value, type):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value


def config_slice(recipe: Recipe, node: Node) -> dict[str, Any]:
    """The part of the recipe that determines the node's content, as JSON values."""
    data = recipe.data
    record = {name: plain(getattr(data, name)) for name in ("num_classes", "feature_sizes", "max_frames")}
    classes = {**record, "segment_classes_uri": data.segment_classes_uri, "on_corrupt": data.on_corrupt}
    if node.asset == "pretraining_shards":
        return {**classes, "patterns": plain(data.pretraining), "holdout": plain(data.holdout)} | _simulation(recipe)
    if node.asset == "segment_shards":
        return {**classes, "patterns": plain(data.segments), "holdout": plain(data.holdout)} | _simulation(recipe)
    if node.asset == "test_shards":
        return {**classes, "patterns": plain(data.test)} | _simulation(recipe)
    if node.asset == "ensemble_weights":
        presets = {model.key: model.preset_weight for model in recipe.models}
        return {
            "search": plain(recipe.search),
            "preset": presets,
            "top_k": recipe.prediction.top_k,
            "seed": recipe.seed,
        }
    if node.asset == "submission":
        return {"top_k": recipe.prediction.top_k}
    if node.asset == "leaderboard":
        return {"bootstrap_rounds": recipe.bootstrap_rounds, "models": [[m.key, m.title] for m in recipe.models]}
    if node.model is None:
        return {}
    model = recipe.model(node.model)
    architecture = {"architecture": model.architecture, "overrides": plain(model.overrides), **record}
    if node.asset == "pretrained_model":
        return {**architecture, "training": _computed(recipe, model, model.pretraining), "seed": recipe.seed}
    if node.asset == "finetuned_model":
        return {**architecture, "training": _computed(recipe, model, model.finetuning), "seed": recipe.seed}
    if node.asset in ("oof_ranking", "test_ranking"):
        fusion = {"tta_w0": recipe.prediction.tta_w0, "top_k": recipe.prediction.top_k}
        return {**fusion, "shifts": sorted(model.shifts)}
    names = ("edges", "top_k", "precision", "trim_start", "trim_end")
    settings = {name: plain(getattr(recipe.prediction, name)) for name in names} | {"shift": node.shift}
    if (
        recipe.prediction.candidate_classes is not None
    ):  # absent when off: what was made before it existed stays current
        settings["candidate_classes"] = recipe.prediction.candidate_classes
    return settings


def _computed(recipe: Recipe, model: ModelRecipe, training: TrainingConfig) -> dict[str, Any]:
    data = recipe.data
    return computed_fields(
        training,
        lambda: has_batch_norm(model.architecture, data.num_classes, data.feature_sizes, **model.overrides),
    )


def _simulation(recipe: Recipe) -> dict[str, Any]:
    return {"simulation": plain(recipe.data.simulation)} if recipe.data.simulation else {}


@dataclass(frozen=True)
class Inputs:
    """What a node is made from now: `fingerprint`, the config slice and the parents' manifests by key."""

    node: Node
    fingerprint: str
    config: dict[str, Any]
    manifests: dict[str, Manifest]

    @property
    def parents(self) -> dict[str, str]:
        """Key -> digest of each parent."""
        return {key: manifest.digest for key, manifest in self.manifests.items()}

    def parent(self, asset: str, model: str | None = None, shift: int | None = None) -> Manifest:
        """The manifest of one parent."""
        return self.manifests[Node(asset, model, shift).key]

    def publish_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `ArtifactStore.publish`."""
        return {
            "fingerprint": self.fingerprint,
            "parents": self.parents,
            "config": self.config,
            "code_version": CODE_VERSIONS[self.node.asset],
        }


def resolve_inputs(recipe: Recipe, store: ArtifactStore, node: Node) -> Inputs:
    """Read the parents' manifests and compute the node's fingerprint.

    Raises MissingArtifactError listing every parent that is not materialised.
    """
    manifests: dict[str, Manifest] = {}
    missing: list[str] = []
    for parent in parents(recipe, node):
        manifest = store.manifest(parent.key)
        if manifest is None:
            missing.append(parent.key)
        else:
            manifests[parent.key] = manifest
    if missing:
        raise MissingArtifactError(f"{node.key} needs {', '.join(missing)}: materialise first what is missing")
    config = config_slice(recipe, node)
    if node.asset.endswith("_shards") and recipe.data.simulation is None:
        from yt8m_assets.data.shards import list_shards, listing_digest

        patterns = [*config["patterns"], *(recipe.data.segments if "holdout" in config else ())]
        config["listing"] = listing_digest(list_shards(patterns))
    content = {
        "node": asdict(node),
        "config": config,
        "code_version": CODE_VERSIONS[node.asset],
        "parents": {key: manifest.digest for key, manifest in manifests.items()},
    }
    return Inputs(node=node, fingerprint=sha256_text(canonical_json(content)), config=config, manifests=manifests)


def current_manifest(recipe: Recipe, store: ArtifactStore, node: Node) -> Manifest | None:
    """The node's manifest if it is up to date with recipe, code and parents, else None."""
    manifest = store.manifest(node.key)
    if manifest is None:
        return None
    try:
        inputs = resolve_inputs(recipe, store, node)
    except MissingArtifactError:
        return None
    return manifest if manifest.fingerprint == inputs.fingerprint else None
