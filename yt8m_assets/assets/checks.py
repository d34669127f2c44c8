"""Asset checks: what must hold before anybody trusts an artifact. Each reads files and names what fails."""

from collections.abc import Callable, Sequence

import dagster as dg

from yt8m_assets.assets.display import shown_values
from yt8m_assets.audit import Verdict
from yt8m_assets.lineage import Node
from yt8m_assets.partitions import nodes_of
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.storage import ArtifactStore

FRESHNESS = "up_to_date"
"""The one check that only warns; its sensor evaluates it every hour, once switched on."""
Audit = Callable[[Recipe, ArtifactStore, Sequence[Node]], Verdict]


def build_checks(recipe: Recipe) -> list[dg.AssetChecksDefinition]:
    """The checks of every asset. All but freshness are blocking: nothing is made from what fails them."""
    from yt8m_assets import audit

    table: list[tuple[str, str, Audit]] = [
        *((f"{name}_shards", "not_empty", audit.shards_not_empty) for name in ("pretraining", "segment", "test")),
        ("segment_shards", "no_leak", audit.no_leak),
        ("holdout_ratings", "both_verdicts", audit.both_verdicts),
        *((f"{split}_predictions", "coverage", audit.coverage) for split in ("oof", "test")),
        *((f"{split}_predictions", "finite_scores", audit.finite_scores) for split in ("oof", "test")),
        *((f"{split}_ranking", "coverage", audit.coverage) for split in ("oof", "test")),
        ("finetuned_model", "finite_map", audit.finite_map),
        ("ensemble_weights", "not_worse_than_best_member", audit.ensemble_not_worse),
        ("submission", "valid", audit.valid_submission),
        ("submission", FRESHNESS, audit.up_to_date),
    ]
    return [_check(recipe, asset, name, function) for asset, name, function in table]


def _check(recipe: Recipe, asset: str, name: str, function: Audit) -> dg.AssetChecksDefinition:
    description = (function.__doc__ or "").splitlines()[0]
    others = ["pretraining_shards"] if name == "no_leak" else []

    @dg.asset_check(asset=asset, name=name, blocking=name != FRESHNESS, description=description, additional_deps=others)
    def check(context: dg.AssetCheckExecutionContext, store: dg.ResourceParam[ArtifactStore]) -> dg.AssetCheckResult:
        run = context.op_execution_context
        keys = list(run.partition_keys) if run.has_partition_key_range or run.has_partition_key else [None]
        verdict = function(recipe, store, nodes_of(asset, keys))
        found = "\n".join(f"- {problem}" for problem in verdict.problems)
        problems = dg.MetadataValue.md(found) if found else dg.MetadataValue.text("none")
        metadata = {"problems": problems, "checked": verdict.checked, **shown_values(verdict.numbers)}
        severity = dg.AssetCheckSeverity.WARN if name == FRESHNESS else dg.AssetCheckSeverity.ERROR
        return dg.AssetCheckResult(
            passed=verdict.passed, severity=severity, metadata=metadata, description=verdict.summary
        )

    return check
