"""The ranking stage: a model's shifts fused into one ranking, and what every published ranking has in common."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from yt8m_assets.progress import Progress
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.lineage import Inputs, current_manifest, resolve_inputs
from yt8m_assets.stages.nodes import Node
from yt8m_assets.storage import ArtifactStore, StageResult

if TYPE_CHECKING:
    from yt8m_assets.ranking.files import RankingSource

Split = Literal["oof", "test"]


def publish_ranking(
    store: ArtifactStore, inputs: Inputs, write: Callable[[Path], Any], metadata: Mapping[str, Any]
) -> StageResult:
    """Publish a ranking; one that another run published in the meantime from the same inputs is taken as it is."""
    key = inputs.node.key
    present = inputs.find(store)
    if present is not None:
        return StageResult(present, reused=True)
    with store.publish(key, **inputs.publish_arguments()) as publication:
        write(publication.path)
        publication.metadata.update(metadata)
    return publication.result


def holdout_map(recipe: Recipe, store: ArtifactStore, ranking: "RankingSource") -> float | None:
    """MAP@K of an out-of-fold ranking against the hold-out ratings.

    None while they are not up to date, or where no ranked class has a positive one.
    """
    from yt8m_assets.evaluation import Ratings, ranking_map
    from yt8m_assets.stages.data import RATINGS_FILE

    manifest = current_manifest(recipe, store, Node("holdout_ratings"))
    if manifest is None:
        return None
    ratings = Ratings.read_csv(store.fetch(manifest) / RATINGS_FILE)
    found = ranking_map(ranking, ratings, k=recipe.prediction.top_k)
    return found.map if found.per_class else None


def rank_model(
    recipe: Recipe, store: ArtifactStore, split: Split, model_key: str, *, progress: Progress
) -> StageResult:
    """Fuse the rankings of a model's own shifts by rank, with equal weights (SPEC section 11).

    Raises MissingArtifactError listing the shifts that are not materialised, ParentMismatchError listing those that
    were made from another checkpoint or other shards than the current ones.
    """
    node = Node(f"{split}_ranking", recipe.model(model_key).key)
    inputs = resolve_inputs(recipe, store, node)
    if inputs.published is not None:
        return StageResult(inputs.published, reused=True)
    from yt8m_assets.ranking.files import RankingReader, RankingWriter
    from yt8m_assets.ranking.fusion import fuse_into, unified_segments, union_of_classes

    shifts = sorted(recipe.model(model_key).shifts)
    parents = [inputs.parent(f"{split}_predictions", model_key, shift) for shift in shifts]
    settings = recipe.prediction
    with store.publish(node.key, **inputs.publish_arguments()) as publication:
        readers = [RankingReader(store.fetch(parent)) for parent in parents]
        writer = RankingWriter(publication.path, union_of_classes(readers), unified_segments(readers)[0])
        progress.log(f"{node.key}: fusing the shifts {', '.join(f'{shift:+d}' for shift in shifts)}")
        with writer:
            fuse_into(writer, readers, [1.0] * len(readers), settings.tta_w0, settings.top_k)
        publication.metadata.update(shifts=shifts, tta_w0=settings.tta_w0, num_classes=len(readers[0].class_ids))
        if split == "oof":
            publication.metadata.update(_tta_gain(recipe, store, inputs, RankingReader(publication.path)))
    return publication.result


def _tta_gain(recipe: Recipe, store: ArtifactStore, inputs: Inputs, fused: "RankingSource") -> dict[str, Any]:
    """MAP with and without shifts (the cell of shift 0, else of the smallest shift)."""
    quality = holdout_map(recipe, store, fused)
    if quality is None:
        return {}
    model_key = str(inputs.node.model)
    plain_shift = min(recipe.model(model_key).shifts, key=abs)
    plain = inputs.parent("oof_predictions", model_key, plain_shift).metadata.get("map_at_100000")
    gain = {} if plain is None else {"map_without_tta": plain, "gain_of_tta": quality - plain}
    return {"map_at_100000": quality, **gain}
