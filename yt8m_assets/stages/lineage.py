"""The graph of artifacts: which node needs which, what determines its content, and whether it is up to date.

A node's fingerprint hashes the slice of the recipe that matters to it, the files the recipe names (by content, not by
place), the version of its code and the digests of its parents. An artifact is current when one of its kept generations
carries the fingerprint that would be computed now, its files are sound, and its parents are current themselves.
`Lineage` answers that, for every stage, check, sensor, plan and table.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

from models import has_batch_norm
from yt8m_assets.errors import DataError, MissingArtifactError, ParentMismatchError
from yt8m_assets.recipes.schema import ModelRecipe, Recipe
from yt8m_assets.storage import ArtifactStore, Manifest, canonical_json, sha256_text
from yt8m_assets.training.config import TrainingConfig, computed_fields

CODE_VERSIONS: Mapping[str, str] = {
    "pretraining_shards": "3",
    "segment_shards": "3",
    "test_shards": "3",
    "holdout_ratings": "1",
    "pretrained_model": "1",
    "finetuned_model": "1",
    "oof_predictions": "1",
    "test_predictions": "1",
    "oof_ranking": "1",
    "test_ranking": "1",
    "ensemble_weights": "2",
    "submission": "1",
    "leaderboard": "2",
}
"""Raise an asset's number when a change of its code changes its content; what depends on it is redone."""

ASSETS = tuple(CODE_VERSIONS)
_BY_MODEL = ("pretrained_model", "finetuned_model", "oof_ranking", "test_ranking")
_BY_CELL = ("oof_predictions", "test_predictions")


_LONGEST_REASONS = 400
"""Characters of reasons in one message: of another recipe, say, every field differs."""


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
        "test_predictions": (Node("finetuned_model", model), Node("test_shards"), Node("segment_shards")),
        "ensemble_weights": (*rankings, Node("holdout_ratings")),
        "submission": (
            Node("ensemble_weights"),
            *(Node("test_ranking", key) for key in recipe.model_keys),
            *(Node("test_shards"), Node("segment_shards")),
        ),
        "leaderboard": (
            *(Node("finetuned_model", key) for key in recipe.model_keys),
            *nodes(recipe, "oof_predictions"),
            *rankings,
            *(Node("test_ranking", key) for key in recipe.model_keys),
            *(Node("holdout_ratings"), Node("segment_shards"), Node("test_shards")),
            *(Node("ensemble_weights"), Node("submission")),
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
    """The part of the recipe that determines the node's content, as JSON values; files it names: see `data_slice`."""
    data = recipe.data
    record = {name: plain(getattr(data, name)) for name in ("num_classes", "feature_sizes", "max_frames")}
    if node.asset in ("pretraining_shards", "segment_shards"):
        return {**record, "on_corrupt": data.on_corrupt, "holdout": plain(data.holdout)}
    if node.asset == "test_shards":
        return {**record, "on_corrupt": data.on_corrupt}
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
        shown = {"recipe": recipe.name, "models": [[m.key, m.title] for m in recipe.models]}
        drawn = {"bootstrap_rounds": recipe.bootstrap_rounds, "seed": recipe.seed}
        return {**shown, **drawn, "top_k": recipe.prediction.top_k}
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


@dataclass(frozen=True)
class Inputs:
    """What a node is made from now, all of it up to date."""

    node: Node
    """The node."""
    fingerprint: str
    """Hash of all that determines the content."""
    config: dict[str, Any]
    """The slice of the recipe, and the content of the files it names."""
    manifests: dict[str, Manifest]
    """The parents' manifests by key."""
    published: Manifest | None = None
    """The node's own manifest where it is up to date: then there is nothing to do."""

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


class Lineage:
    """The state of a recipe's nodes in a store; each is looked up once, until `forget`."""

    def __init__(self, recipe: Recipe, store: ArtifactStore) -> None:
        self.recipe, self.store = recipe, store
        self._current: dict[Node, Manifest | None] = {}
        self._configs: dict[Node, dict[str, Any]] = {}

    def forget(self) -> None:
        """Look again: something may have been published, or data changed."""
        self._current.clear()
        self._configs.clear()

    def config(self, node: Node) -> dict[str, Any]:
        """What of recipe and named files determines the node. Raises DataError where such a file cannot be read."""
        if node not in self._configs:
            found = config_slice(self.recipe, node)
            if node.asset.endswith("_shards"):
                from yt8m_assets.stages.locating import data_slice

                found |= data_slice(self.recipe, self.store, node.asset)
            elif node.asset == "leaderboard" and self.recipe.data.vocabulary_uri:
                from yt8m_assets.stages.locating import vocabulary_digest

                found["vocabulary"] = vocabulary_digest(self.recipe)
            self._configs[node] = found
        return self._configs[node]

    def current(self, node: Node) -> Manifest | None:
        """The node's manifest where it and all it comes from are up to date, else None."""
        if node not in self._current:
            try:
                self._current[node] = self.inputs(node).published
            except (MissingArtifactError, ParentMismatchError, DataError):
                self._current[node] = None
        return self._current[node]

    def inputs(self, node: Node) -> Inputs:
        """What the node is made from now.

        Raises MissingArtifactError listing the parents that are not materialised, ParentMismatchError listing those
        that are not up to date with the differences in words, DataError where a file the recipe names cannot be read.
        """
        found = {parent: self.current(parent) for parent in parents(self.recipe, node)}
        manifests = {parent.key: manifest for parent, manifest in found.items() if manifest is not None}
        if len(manifests) < len(found):
            self._refuse(node, [parent for parent, manifest in found.items() if manifest is None])
        config = self.config(node)
        content = {
            "node": asdict(node),
            "config": config,
            "code_version": CODE_VERSIONS[node.asset],
            "parents": {key: manifest.digest for key, manifest in manifests.items()},
        }
        fingerprint = sha256_text(canonical_json(content))
        published = self.store.find(node.key, fingerprint)
        return Inputs(node=node, fingerprint=fingerprint, config=config, manifests=manifests, published=published)

    def _refuse(self, node: Node, parents_: list[Node]) -> None:
        from yt8m_assets.stages.explain import causes

        missing = [parent.key for parent in parents_ if not self.store.numbers(parent.key)]
        if missing:
            raise MissingArtifactError(f"{node.key} needs {', '.join(missing)}: materialise first what is missing")
        reasons = dict.fromkeys(cause for parent in parents_ for cause in causes(self, parent))
        names = ", ".join(parent.key for parent in parents_)
        raise ParentMismatchError(
            f"{node.key} is made from {names}, not up to date ({'; '.join(reasons)}); materialise that first"
        )


def resolve_inputs(recipe: Recipe, store: ArtifactStore, node: Node) -> Inputs:
    """What a node is made from now; errors as `Lineage.inputs`."""
    return Lineage(recipe, store).inputs(node)


def current_manifest(recipe: Recipe, store: ArtifactStore, node: Node) -> Manifest | None:
    """The node's manifest if it is up to date with recipe, code, data and parents, else None."""
    return Lineage(recipe, store).current(node)


def require_current(recipe: Recipe, store: ArtifactStore, node: Node) -> Manifest:
    """The node's manifest. Raises MissingArtifactError where there is none, ParentMismatchError where it is stale."""
    lineage = Lineage(recipe, store)
    manifest = lineage.current(node)
    if manifest is not None:
        return manifest
    if not store.numbers(node.key):
        raise MissingArtifactError(
            f"{node.key} has not been materialised (looked in {store.root_uri}); materialise it first"
        )
    from yt8m_assets.stages.explain import causes

    reasons = "; ".join(causes(lineage, node))
    if len(reasons) > _LONGEST_REASONS:
        reasons = f"{reasons[:_LONGEST_REASONS]}..., `yt8m explain {node.key}` says all"
    raise ParentMismatchError(f"{node.key} is not up to date ({reasons}); materialise it first")
