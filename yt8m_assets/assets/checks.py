"""Asset checks: what must hold before anybody trusts an artifact. Each reads files and names what fails."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationTargetMaterializationData as Target,
)

from yt8m_assets.assets.display import shown_values
from yt8m_assets.assets.shell import StepTags, untagged
from yt8m_assets.partitions import (
    asset_nodes,
    base_asset,
    beta_accepted,
    every_asset,
    nodes_of,
    partition_key,
    partitions_of,
)
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.audit import Verdict
from yt8m_assets.stages.nodes import ASSETS, Node
from yt8m_assets.storage import ArtifactStore

FRESHNESS = "up_to_date"
"""The one check that only warns; its sensor evaluates it every hour, once switched on."""
Audit = Callable[[Recipe, ArtifactStore, Sequence[Node]], Verdict]


def audits(asset: str) -> dict[str, Audit]:
    """The checks of an asset by name. All but freshness are blocking: nothing is made from what fails them."""
    from yt8m_assets.stages import audit

    functions: Mapping[str, Audit] = {
        "not_empty": audit.shards_not_empty,
        "no_leak": audit.no_leak,
        "both_verdicts": audit.both_verdicts,
        "coverage": audit.coverage,
        "finite_scores": audit.finite_scores,
        "finite_map": audit.finite_map,
        "not_worse_than_best_member": audit.ensemble_not_worse,
        "valid": audit.valid_submission,
        FRESHNESS: audit.up_to_date,
    }
    names = (*ASSETS[asset].checks, FRESHNESS) if asset == "submission" else ASSETS[asset].checks
    return {name: functions[name] for name in names}


@beta_accepted()
def build_checks(recipe: Recipe, step_tags: StepTags = untagged) -> list[dg.AssetChecksDefinition]:
    """The checks of every asset, partitioned as it is; those of one asset share a step, and each runs alone as well."""
    tags = step_tags("checks")
    return [_checks(recipe, asset, tags) for asset in every_asset(recipe) if ASSETS[base_asset(asset)].checks]


def _checks(recipe: Recipe, asset: str, op_tags: Mapping[str, Any]) -> dg.AssetChecksDefinition:
    functions, partitions = audits(base_asset(asset)), partitions_of(recipe, asset)
    specs = [
        dg.AssetCheckSpec(
            name,
            asset=asset,
            blocking=name != FRESHNESS,
            description=(function.__doc__ or "").splitlines()[0],
            additional_deps=["pretraining_shards"] if name == "no_leak" else [],
            partitions_def=partitions,
        )
        for name, function in functions.items()
    ]

    @dg.multi_asset_check(name=f"{asset}_checks", specs=specs, can_subset=True, op_tags=op_tags)
    def checks(context: dg.AssetCheckExecutionContext, store: dg.ResourceParam[ArtifactStore]) -> Iterator[Any]:
        run = context.op_execution_context
        partitioned = run.has_partition_key or run.has_partition_key_range
        made = nodes_of(asset, run.partition_keys) if partitioned else asset_nodes(recipe, asset)
        for key in sorted(run.selected_asset_check_keys, key=lambda key: list(functions).index(key.name)):
            verdicts = {node: functions[key.name](recipe, store, [node]) for node in made}
            for node, verdict in verdicts.items():
                yield _evaluation(key, partition_key(node), verdict, _target(run.instance, key.asset_key, node))
            if partitions is not None and not partitioned:  # asked for as a whole: the verdict that Dagster waits for
                yield _evaluation(key, None, _joined(verdicts.values()), None)
            yield dg.Output(None, run.assets_def.get_output_name_for_asset_check_key(key))

    return checks


def _joined(verdicts: Iterable[Verdict]) -> Verdict:
    several = list(verdicts)
    problems = tuple(problem for verdict in several for problem in verdict.problems)
    return Verdict(checked=sum(verdict.checked for verdict in several), problems=problems)


def _evaluation(
    key: dg.AssetCheckKey, partition: str | None, verdict: Verdict, target: Target | None
) -> dg.AssetCheckEvaluation:
    """The verdict on one partition: Dagster makes but one of a run by itself."""
    found = "\n".join(f"- {problem}" for problem in verdict.problems)
    problems = dg.MetadataValue.md(found) if found else dg.MetadataValue.text("none")
    freshness = key.name == FRESHNESS
    return dg.AssetCheckEvaluation(
        asset_key=key.asset_key,
        check_name=key.name,
        passed=verdict.passed,
        metadata={"problems": problems, "checked": verdict.checked, **shown_values(verdict.numbers)},
        target_materialization_data=target,
        severity=dg.AssetCheckSeverity.WARN if freshness else dg.AssetCheckSeverity.ERROR,
        description=verdict.summary,
        blocking=not freshness,
        partition=partition,
    )


def _target(instance: dg.DagsterInstance, asset: dg.AssetKey, node: Node) -> Target | None:
    """The newest materialisation of a node: what the verdict is about."""
    key = partition_key(node)
    wanted = dg.AssetRecordsFilter(asset, asset_partitions=None if key is None else [key])
    for newest in instance.fetch_materializations(wanted, limit=1).records:
        return Target(storage_id=newest.storage_id, run_id=newest.run_id, timestamp=newest.timestamp)
    return None
