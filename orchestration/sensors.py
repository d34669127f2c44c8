"""Automation, all of it off until somebody switches it on in the UI."""

from typing import Any

import dagster as dg

from yt8m_assets.errors import MissingArtifactError, MissingDataError
from yt8m_assets.lineage import Lineage, Node
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.storage import ArtifactStore

SHARD_ASSETS = ("pretraining_shards", "segment_shards", "test_shards")
HOUR = 3600
FRESHNESS = dg.AssetCheckKey(dg.AssetKey("submission"), "up_to_date")


def build_sensors(recipe: Recipe) -> list[Any]:
    """Sensors of changed shards, of the automation conditions and of the submission's freshness."""

    @dg.sensor(
        target=dg.AssetSelection.assets(*SHARD_ASSETS, "holdout_ratings"),
        minimum_interval_seconds=HOUR,
        description="Lists the shards anew when the data patterns match other files, sizes or checksums than before.",
        default_status=dg.DefaultSensorStatus.STOPPED,
    )
    def changed_shards(context: dg.SensorEvaluationContext, store: dg.ResourceParam[ArtifactStore]) -> dg.SensorResult:
        changed = changed_shard_assets(recipe, store)
        requests = [shard_request(name, fingerprint) for name, fingerprint in changed.items()]
        reason = None if requests else dg.SkipReason("the shards are the ones that were listed")
        return dg.SensorResult(run_requests=requests, skip_reason=reason)

    up_to_date = dg.AutomationConditionSensorDefinition(
        "keep_up_to_date",
        target=dg.AssetSelection.groups("predictions", "ensemble"),
        description="Brings predictions, rankings, weights, submission and report up to date when what they come from "
        "gets a new data version (such as a fine-tuned model). Cells that were never materialised stay so.",
        default_status=dg.DefaultSensorStatus.STOPPED,
        minimum_interval_seconds=60,
    )

    @dg.sensor(
        target=dg.AssetSelection.checks(FRESHNESS),
        minimum_interval_seconds=HOUR,
        description="Checks every hour whether the submission is what recipe, code and shards would give now.",
        default_status=dg.DefaultSensorStatus.STOPPED,
    )
    def submission_freshness(context: dg.SensorEvaluationContext) -> dg.RunRequest:
        return dg.RunRequest(asset_selection=[], asset_check_keys=[FRESHNESS])

    return [changed_shards, up_to_date, submission_freshness]


def changed_shard_assets(recipe: Recipe, store: ArtifactStore) -> dict[str, str]:
    """Asset -> fingerprint of the shard lists that would differ from what is published.

    Raises MissingDataError when a pattern matches nothing.
    """
    changed, lineage = {}, Lineage(recipe, store)
    for name in SHARD_ASSETS:
        try:
            inputs = lineage.inputs(Node(name))
        except MissingArtifactError:
            continue
        except MissingDataError as error:
            raise MissingDataError(f"{name}: {error}") from error
        if inputs.published is None:
            changed[name] = inputs.fingerprint
    return changed


def shard_request(name: str, fingerprint: str) -> dg.RunRequest:
    """A run that lists the shards again; its key is the content, so that one change asks for one run."""
    assets = [name, "holdout_ratings"] if name == "segment_shards" else [name]
    return dg.RunRequest(run_key=f"{name}-{fingerprint}", asset_selection=[dg.AssetKey(asset) for asset in assets])


def build_schedules() -> list[dg.ScheduleDefinition]:
    """A weekly refresh of what follows the models: off by default."""
    return [
        dg.ScheduleDefinition(
            name="weekly_ensemble",
            job_name="ensemble",
            cron_schedule="0 4 * * 1",
            execution_timezone="UTC",
            description="Search the weights and write submission and report every Monday at 04:00 UTC.",
            default_status=dg.DefaultScheduleStatus.STOPPED,
        )
    ]
