"""What Dagster is told of a stage's results: metadata and data version, partition by partition."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

import dagster as dg
from dagster._core.definitions.assets.definition.asset_spec import AssetExecutionType
from dagster._core.definitions.source_asset import SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION
from dagster._core.execution.plan.execute_step import _get_output_asset_events

from yt8m_assets.assets.display import manifest_metadata
from yt8m_assets.assets.failures import OUTDATED_TAG, asked_for
from yt8m_assets.partitions import beta_accepted, every_node, partition_key
from yt8m_assets.recipes.overlay import plain
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.lineage import Lineage
from yt8m_assets.stages.nodes import Node
from yt8m_assets.storage import ArtifactStore, Manifest, StageResult, canonical_json, sha256_text


def recipe_mark(recipe: Recipe) -> str:
    """Name and digest of a recipe, as runs and pages show it."""
    return f"{recipe.name} {sha256_text(canonical_json(plain(recipe)))[:12]}"


def materialization(
    context: dg.AssetExecutionContext, recipe: Recipe, store: ArtifactStore, result: StageResult
) -> dg.MaterializeResult:
    """The result of a run of an asset without partitions: its metadata, and the content's digest as data version."""
    return dg.MaterializeResult(**_shown(context, recipe, store, result))


def materializations(
    context: dg.AssetExecutionContext, recipe: Recipe, store: ArtifactStore, results: Mapping[str, StageResult]
) -> Iterator[dg.MaterializeResult | dg.AssetMaterialization]:
    """The result of a run of some partitions: each with its metadata, and its own content's digest as data version.

    Dagster gives all partitions of a result one data version, so each is recorded by itself, and the result not.
    """
    yield from published(context, recipe, store, results)
    yield everything_published()


def everything_published() -> dg.MaterializeResult:
    """The result of a run whose partitions have all been recorded, one by one."""
    return dg.MaterializeResult(metadata={SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION: True})


def published(
    context: dg.AssetExecutionContext,
    recipe: Recipe,
    store: ArtifactStore,
    results: Mapping[str, StageResult],
    more: Mapping[str, Any] = MappingProxyType({}),
) -> Iterator[dg.AssetMaterialization]:
    """The materialisations of some partitions, with all that Dagster writes down of those it makes itself.

    `more` metadata come first.
    """
    step = context.op_execution_context._step_execution_context
    for key in context.partition_keys:
        if str(key) in results:
            shown = _shown(context, recipe, store, results[str(key)])
            shown["metadata"] = {**more, **shown["metadata"]}
            with beta_accepted():
                output: dg.Output[None] = dg.Output(None, **shown)
            definition = step.op_def.output_defs[0]
            kind = AssetExecutionType.MATERIALIZATION
            for event in _get_output_asset_events(context.asset_key, [key], output, definition, {}, step, kind):
                if isinstance(event, dg.AssetMaterialization):
                    yield event


def _shown(
    context: dg.AssetExecutionContext, recipe: Recipe, store: ArtifactStore, result: StageResult
) -> dict[str, Any]:
    if result.reused:
        context.log.info("%s: up to date, nothing done", result.manifest.key)
    metadata = {**manifest_metadata(store, result), "recipe": recipe_mark(recipe), **_parents(recipe, result.manifest)}
    if asked_for(context.run, OUTDATED_TAG):
        metadata = {**_outdated(recipe, store, result.manifest), **metadata}
    return {"metadata": metadata, "data_version": dg.DataVersion(result.manifest.digest)}


def _outdated(recipe: Recipe, store: ArtifactStore, manifest: Manifest) -> dict[str, str]:
    """Why the artifact is not up to date, because it was made from what was not."""
    from yt8m_assets.stages.explain import causes

    found = causes(Lineage(recipe, store), _known_nodes(recipe)[manifest.key])
    return {"not_up_to_date": "; ".join(found)} if found else {}


def _known_nodes(recipe: Recipe) -> dict[str, Node]:
    return {node.key: node for node in every_node(recipe)}


def _parents(recipe: Recipe, manifest: Manifest) -> dict[str, dg.MetadataValue]:
    """What the artifact was made from: links to the pages, and the digests."""
    known = _known_nodes(recipe)
    rows = []
    for key, digest in manifest.parents.items():
        node = known.get(key, Node(key.split("/")[0]))
        partition = partition_key(node)
        where = f"?view=partitions&partition={quote(partition, safe='')}" if partition else ""
        rows.append(f"| [{key}](/assets/{node.asset}{where}) | `{digest[:16]}` |")
    return {"made_from": dg.MetadataValue.md("\n".join(["| artifact | digest |", "|---|---|", *rows]))} if rows else {}
