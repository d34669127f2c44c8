"""The whole graph on simulated data, for two cores and a few minutes.

Nine models of the original's architectures with a narrow inner width, on real-format shards of 1152-byte frames. See
README.md for the time it takes and the scores it reaches on the machine they were measured on.
"""

from dataclasses import replace

from yt8m_assets.data.config import DataConfig, HoldoutConfig
from yt8m_assets.data.simulation.config import SimulationConfig
from yt8m_assets.ensemble.config import SearchConfig
from yt8m_assets.recipes import challenge
from yt8m_assets.recipes.schema import ModelRecipe, PredictionConfig, Recipe
from yt8m_assets.training.config import TrainingConfig

SIMULATION = SimulationConfig()

PRETRAINING = TrainingConfig(
    num_steps=80,
    batch_size=64,
    learning_rate=1e-3,
    schedule="cosine",
    warmup_steps=16,
    window_frames=5,
    evaluate_every=40,
    checkpoint_every=40,
    log_every=10,
    precision="bfloat16",
)
FINETUNING = replace(
    PRETRAINING,
    num_steps=30,
    learning_rate=5e-4,
    warmup_steps=5,
    continue_schedule=False,
    evaluate_every=15,
    checkpoint_every=15,
)
"""Unrated classes count as negatives, as in the original; MixNeXtVLAD alone does better on rated pairs here."""


def _bert(model: ModelRecipe) -> ModelRecipe:
    return replace(model, overrides={"intermediate_size": 256}, pretraining=PRETRAINING, finetuning=FINETUNING)


def _gated_netvlad(model: ModelRecipe) -> ModelRecipe:
    return replace(
        model,
        overrides={"hidden_size": 256, "bn_momentum": 0.02},
        pretraining=replace(PRETRAINING, num_steps=160, learning_rate=2e-3, checkpoint_every=80),
        finetuning=replace(FINETUNING, num_steps=60, learning_rate=1e-3, evaluate_every=30, checkpoint_every=30),
    )


def _mix_nextvlad(model: ModelRecipe) -> ModelRecipe:
    overrides = {"num_clusters": 8, "hidden_size": 256, "bn_momentum": 0.03}
    finetuning = replace(FINETUNING, num_steps=48, learning_rate=1.5e-3, label_weighting="rated", evaluate_every=24)
    return replace(
        model,
        overrides={**overrides, "distillation_weight": 1.0, "dropout": 0.2},
        pretraining=replace(PRETRAINING, num_steps=120, learning_rate=3e-3, checkpoint_every=60),
        finetuning=finetuning,
    )


FAMILIES = {"bert": _bert, "gated": _gated_netvlad, "mix": _mix_nextvlad}
"""The batch-norm momenta are larger than the original's 0.001, which would leave the statistics near their start."""


def _small(model: ModelRecipe) -> ModelRecipe:
    return FAMILIES[model.key.split("_")[0]](model)


RECIPE = Recipe(
    name="demo",
    data=DataConfig(
        simulation=SIMULATION,
        num_classes=SIMULATION.num_classes,
        holdout=HoldoutConfig(rule="seeded", fraction=1 / 3),
    ),
    models=tuple(_small(model) for model in challenge.MODELS),
    prediction=PredictionConfig(batch_size=512, precision="bfloat16"),
    search=SearchConfig(),
)
