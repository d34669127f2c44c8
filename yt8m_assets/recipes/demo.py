"""The whole graph on simulated data, for two cores and a few minutes.

Nine models of the original's architectures with a narrow inner width, on real-format shards of 1152-byte frames. See
README.md for the time it takes and the scores it reaches on the machine they were measured on.
"""

from dataclasses import replace

from yt8m_assets.data.simulation.config import SimulationConfig
from yt8m_assets.ensemble.config import SearchConfig
from yt8m_assets.recipes import challenge
from yt8m_assets.recipes.schema import DataConfig, HoldoutConfig, ModelRecipe, PredictionConfig, Recipe
from yt8m_assets.training.config import TrainingConfig

SIMULATION = SimulationConfig()

PRETRAINING = TrainingConfig(
    num_steps=120,
    batch_size=64,
    learning_rate=5e-4,
    schedule="cosine",
    warmup_steps=15,
    window_frames=5,
    checkpoint_every=60,
    log_every=10,
    precision="bfloat16",
)
FINETUNING = replace(
    PRETRAINING,
    num_steps=40,
    learning_rate=2.5e-4,
    warmup_steps=5,
    label_weighting="rated",
    continue_schedule=False,
    evaluate_every=20,
    checkpoint_every=20,
    windows_per_video=1,
)
BATCH_NORM = {"bn_momentum": 0.01}
"""The original's 0.001 would leave the statistics near their initial values after so few steps."""

OVERRIDES = {
    "gated_netvlad_h1024c16": {"num_clusters": 16, "hidden_size": 256, **BATCH_NORM},
    "mix_nextvlad_iter300": {"num_clusters": 16, "hidden_size": 256, **BATCH_NORM},
    "mix_nextvlad_iter60": {"num_clusters": 16, "hidden_size": 256, **BATCH_NORM},
}
LEARNING_RATES = {"gated_netvlad_h1024c16": 2e-3, "mix_nextvlad_iter300": 1e-3, "mix_nextvlad_iter60": 1e-3}


def _small(model: ModelRecipe) -> ModelRecipe:
    rate = LEARNING_RATES.get(model.key, PRETRAINING.learning_rate)
    return replace(
        model,
        overrides=OVERRIDES.get(model.key, {"intermediate_size": 256}),
        pretraining=replace(PRETRAINING, learning_rate=rate),
        finetuning=replace(FINETUNING, learning_rate=rate / 2),
    )


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
