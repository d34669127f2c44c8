"""What pages show of a variant beside its own artifact: the name, and how it compares."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.reports.variants import compare_variants, comparison_markdown
from yt8m_assets.storage import ArtifactStore, StageResult


def comparison_metadata(
    recipe: Recipe, store: ArtifactStore, base: str, key: str, ranking: StageResult
) -> dict[str, Any]:
    """The variant's key, the MAP of its ranking, and the table of the model and all of its variants."""
    quality = ranking.manifest.metadata.get("map_at_100000")
    found = {} if quality is None else {"map_of_ranking": quality}
    table = comparison_markdown(compare_variants(recipe, store, base))
    return {"variant": key, **found, "variants": dg.MetadataValue.md(table)}


def comparisons(
    context: dg.AssetExecutionContext, recipe: Recipe, store: ArtifactStore
) -> Iterator[dg.AssetMaterialization]:
    """The table anew for each model of a run that asks for nothing to be made."""
    context.log.info("no name in the config: no variant is asked for; only the tables are made anew")
    for base in context.partition_keys:
        table = comparison_markdown(compare_variants(recipe, store, base))
        metadata = {"variants": dg.MetadataValue.md(table)}
        yield dg.AssetMaterialization(context.asset_key, partition=base, metadata=metadata)
