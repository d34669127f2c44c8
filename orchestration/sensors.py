"""Automation: what launches runs is off until somebody switches it on in the UI."""

from typing import Any

import dagster as dg
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES

from orchestration.automation import GROUPS
from orchestration.instance import Records
from yt8m_assets.assets.shell import code_version
from yt8m_assets.errors import DataError, MissingDataError
from yt8m_assets.partitions import beta_accepted, every_asset, every_node
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.lineage import Lineage
from yt8m_assets.stages.nodes import ASSETS, Node
from yt8m_assets.storage import ArtifactStore, canonical_json, sha256_text

SHARD_ASSETS = tuple(name for name, asset in ASSETS.items() if asset.files == "shards")
SHARDS_TAG = "yt8m/changed_shards"
"""Tag of a run that the sensor asked for: the list it makes."""
HOUR = 3600
FRESHNESS = dg.AssetCheckKey(dg.AssetKey("submission"), "up_to_date")


@beta_accepted()
def build_sensors(recipe: Recipe) -> list[Any]:
    """Sensors of changed shards, of the automation conditions, of the submission's freshness and of the recipe."""

    @dg.sensor(
        target=dg.AssetSelection.assets(*SHARD_ASSETS, "holdout_ratings"),
        description="Lists the shards anew when the data patterns match other files, or other sizes or checksums, than "
        "before: each list by itself, again after a failed run, and not while one is still under way.",
        minimum_interval_seconds=HOUR,
        default_status=dg.DefaultSensorStatus.STOPPED,
    )
    def changed_shards(context: dg.SensorEvaluationContext, store: dg.ResourceParam[ArtifactStore]) -> dg.SensorResult:
        changed, problems = changed_shard_assets(recipe, store)
        for problem in problems:
            context.log.warning(problem)
        requests = [shard_request(name) for name in changed if not under_way(context.instance, name)]
        if problems and not requests:
            raise MissingDataError("; ".join(problems))
        reason = None if requests else dg.SkipReason("the shards are the ones that were listed, or are being listed")
        return dg.SensorResult(run_requests=requests, skip_reason=reason)

    up_to_date = dg.AutomationConditionSensorDefinition(
        "keep_up_to_date",
        target=dg.AssetSelection.groups(*GROUPS),
        description="Brings predictions, rankings, weights, submission and report up to date with recipe, data and "
        "models: each once all that it is made from is up to date and has passed its checks. Cells that were never "
        "materialised stay so, and models are not trained.",
        use_user_code_server=True,
        default_status=dg.DefaultSensorStatus.STOPPED,
        minimum_interval_seconds=60,
    )

    @dg.sensor(
        target=dg.AssetSelection.checks(FRESHNESS),
        description="Checks every hour whether the submission is what recipe, code and shards would give now.",
        minimum_interval_seconds=HOUR,
        default_status=dg.DefaultSensorStatus.STOPPED,
    )
    def submission_freshness(context: dg.SensorEvaluationContext) -> dg.RunRequest:
        return dg.RunRequest(asset_selection=[], asset_check_keys=[FRESHNESS])

    versions = sha256_text(canonical_json([code_version(recipe, asset) for asset in every_asset(recipe)]))

    @dg.sensor(
        description="After a change of the recipe, records anew what is up to date all the same, so that the pages "
        "call changed what is, partition by partition. Launches nothing.",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def changed_recipe(context: dg.SensorEvaluationContext, store: dg.ResourceParam[ArtifactStore]) -> dg.SensorResult:
        if context.cursor == versions:
            return dg.SensorResult(skip_reason="the recipe is the one that was looked at")
        renewed = Records(context.instance, recipe).renewed(Lineage(recipe, store), every_node(recipe))
        return dg.SensorResult(asset_events=list(renewed), cursor=versions)

    return [changed_shards, up_to_date, submission_freshness, changed_recipe]


def changed_shard_assets(recipe: Recipe, store: ArtifactStore) -> tuple[list[str], list[str]]:
    """The shard lists that would differ from what is published, and why others cannot be looked up."""
    changed, problems, lineage = [], [], Lineage(recipe, store)
    for name in SHARD_ASSETS:
        try:
            if lineage.inputs(Node(name)).published is None:
                changed.append(name)
        except DataError as error:
            problems.append(f"{name}: {error}")
    return changed, problems


def under_way(instance: dg.DagsterInstance, name: str) -> bool:
    """Whether a run that this sensor asked for is waiting or running."""
    wanted = dg.RunsFilter(tags={SHARDS_TAG: name}, statuses=NOT_FINISHED_STATUSES)
    return instance.get_runs_count(wanted) > 0


def shard_request(name: str) -> dg.RunRequest:
    """A run that lists the shards again. Without a run key: the same files may come back, and a run may fail."""
    assets = [name, "holdout_ratings"] if name == "segment_shards" else [name]
    return dg.RunRequest(asset_selection=[dg.AssetKey(asset) for asset in assets], tags={SHARDS_TAG: name})


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
