"""The campaign's graph: two narrow models over tiny shards, with every kind of stage in it."""

import os
from dataclasses import replace

from tests.training.support import BERT, FEATURE_SIZES, MIX, NUM_CLASSES
from yt8m_assets.data.config import DataConfig, HoldoutConfig
from yt8m_assets.ensemble.config import SearchConfig
from yt8m_assets.recipes.schema import ModelRecipe, PredictionConfig, Recipe

DATA = "YT8M_CAMPAIGN_DATA"
"""Environment variable with the folder or URI of the shards."""


def _short(model: ModelRecipe, shifts: tuple[int, ...]) -> ModelRecipe:
    pretraining = replace(model.pretraining, num_steps=6, checkpoint_every=2)
    finetuning = replace(model.finetuning, num_steps=6, checkpoint_every=2, evaluate_every=3)
    return replace(model, shifts=shifts, pretraining=pretraining, finetuning=finetuning)


def make_recipe(data: str) -> Recipe:
    """The recipe over the shards of `tests.training.support.write_shards`, which lie at `data`."""
    rated = (f"{data}/validate*.tfrecord",)
    return Recipe(
        name="campaign",
        data=DataConfig(
            pretraining=(f"{data}/train*.tfrecord",),
            segments=rated,
            test=rated,
            segment_classes_uri=f"{data}/classes.csv",
            num_classes=NUM_CLASSES,
            feature_sizes=FEATURE_SIZES,
            max_frames=30,
            holdout=HoldoutConfig(rule="seeded", fraction=0.34),
        ),
        models=(_short(MIX, (0, 1)), _short(BERT, (0,))),
        prediction=PredictionConfig(batch_size=64),
        search=SearchConfig(num_trials=10, num_initial_points=3, num_starts=1, num_folds=2),
        bootstrap_rounds=20,
    )


if DATA in os.environ:
    RECIPE = make_recipe(os.environ[DATA])
