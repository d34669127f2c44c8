"""The project's own graph of the tiny recipe, with the GPU hints that a real recipe gets."""

from dataclasses import replace

import dagster as dg

from orchestration.assets import build_assets
from orchestration.cluster import DeploymentOptions
from orchestration.executors import executor_for
from orchestration.hints import resource_hints, step_tags
from orchestration.resources import build_resources
from orchestration.settings import Settings
from orchestration.state import prepare_state
from tests.tiny import TRAINING, tiny_model, tiny_recipe

NO_GPU = DeploymentOptions(require_gpu=False)
"""The stand-in's pods are processes of this machine, which need not have a GPU."""
LONG = replace(TRAINING, num_steps=120, checkpoint_every=20, log_every=20)
RECIPE = tiny_recipe(models=(tiny_model("one", (0, 1), pretraining=LONG),))


@dg.definitions
def defs() -> dg.Definitions:
    """The graph under the executor that the environment names."""
    settings = Settings.from_environment(prepare_state())
    return dg.Definitions(
        assets=build_assets(RECIPE, step_tags=step_tags(settings.executor, resource_hints(), NO_GPU)),
        resources=build_resources(settings),
        jobs=[dg.define_asset_job("train", dg.AssetSelection.assets("pretrained_model", "finetuned_model"))],
        executor=executor_for(settings.executor),
    )
