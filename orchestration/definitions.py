"""The composition root: recipe, resources, assets, jobs, sensors and executor become Dagster definitions."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from orchestration.assets import added_definitions, build_assets
from orchestration.automation import automated
from orchestration.catch_up import catch_up_job
from orchestration.cluster import DeploymentOptions
from orchestration.doctor import doctor_job
from orchestration.idle import in_process_when_idle
from orchestration.jobs import ablation_job, build_asset_jobs
from orchestration.resources import build_resources
from orchestration.sensors import build_schedules, build_sensors
from orchestration.settings import Settings
from orchestration.state import state_of_definitions
from yt8m_assets.assets.checks import build_checks
from yt8m_assets.partitions import beta_accepted
from yt8m_assets.recipes import load_recipe
from yt8m_assets.recipes.schema import Recipe


@beta_accepted()
def build_definitions(
    recipe: Recipe,
    resources: Mapping[str, Any],
    executor: str = "in_process",
    backfill: str = "single_run",
    deployment: DeploymentOptions | None = None,
) -> dg.Definitions:
    """The definitions of a recipe over any resources: nothing is read from the environment."""
    from orchestration.executors import executor_for
    from orchestration.hints import hints_for, step_tags

    tags = step_tags(executor, hints_for(recipe, deployment), deployment)
    steps = executor_for(executor, deployment)
    jobs = [catch_up_job(recipe, tags("finetuned_model"), backfill), *build_asset_jobs(recipe)]
    jobs += [ablation_job(recipe, tags("ablate")), doctor_job(recipe, tags("finetuned_model"))]
    assets = automated(build_assets(recipe, backfill, tags), recipe, resources)
    return dg.Definitions(
        assets=dg.with_source_code_references(assets),
        asset_checks=build_checks(recipe, tags),
        resources=resources,
        jobs=jobs,
        sensors=build_sensors(recipe),
        schedules=build_schedules(),
        executor=in_process_when_idle(steps, recipe, resources) if executor == "multiprocess" else steps,
    )


@dg.definitions
def defs() -> dg.Definitions:
    """What the environment asks for: see `Settings`. Only reads: what is missing is made when something runs."""
    asked = Settings.from_environment(state_of_definitions())
    graph = (load_recipe(asked.recipe), build_resources(asked), asked.executor, asked.backfill, asked.deployment)
    return dg.Definitions.merge(build_definitions(*graph), *added_definitions())
