"""The demo with what lifts it beyond the original: a tenth model, which sees whole videos, longer trainings, and the
second stage.

docs/beyond.md says what each is worth, on videos that nothing was tuned on. It takes about twice the demo's time.
"""

from dataclasses import replace

from yt8m_assets.recipes import demo
from yt8m_assets.recipes.schema import ModelRecipe

FRAME_SCORER = ModelRecipe(
    key="frame_scorer",
    title="Frame scorer",
    overrides={"width": 256, "num_layers": 0, "num_heads": 4},
    pretraining=replace(
        demo.PRETRAINING,
        optimizer="adamw",
        weight_decay=0.5,
        num_steps=300,
        batch_size=128,
        learning_rate=2e-3,
        warmup_steps=36,
        window_frames=25,
        evaluate_every=100,
        checkpoint_every=100,
    ),
    finetuning=replace(
        demo.FINETUNING,
        optimizer="adamw",
        weight_decay=0.5,
        num_steps=150,
        learning_rate=1e-3,
        window_frames=None,
        warmup_steps=18,
        evaluate_every=50,
        checkpoint_every=50,
    ),
)
"""Random windows of 25 s keep it from learning its few videos by heart; tokens do not look at each other here, for the
same reason."""

LONGER = ("bert_mean_l2h12", "bert_first_l2h12", "bert_cross_attn_l2h8", "bert_cross_mean_l2h8")
"""Models that are trained as long as the frame scorer, at half its learning rates; the rest as in the demo."""


def _longer(model: ModelRecipe) -> ModelRecipe:
    return replace(
        model,
        pretraining=replace(FRAME_SCORER.pretraining, learning_rate=1e-3, window_frames=5),
        finetuning=replace(FRAME_SCORER.finetuning, learning_rate=5e-4, window_frames=5),
    )


MODELS = tuple(_longer(model) if model.key in LONGER else model for model in demo.RECIPE.models)
RECIPE = replace(demo.RECIPE, name="demo_beyond", models=(*MODELS, FRAME_SCORER), second_stage=True)
