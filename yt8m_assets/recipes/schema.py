"""The recipe: everything a run of the whole graph depends on, as frozen dataclasses checked at construction."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from yt8m_assets.data.config import DataConfig
from yt8m_assets.ensemble.config import SearchConfig
from yt8m_assets.ensemble.preset import TTA_W0
from yt8m_assets.errors import ConfigError
from yt8m_assets.ranking.files import TOP_K
from yt8m_assets.training.config import TrainingConfig

SHIFTS = (-2, -1, 0, 1, 2)
"""The shift axis of the prediction grid, seconds."""
MAX_KEY = 100
"""Characters of a model's key: it is the name of a folder, and part of longer ones."""


def check_key(key: str, what: str) -> None:
    """Raise ConfigError for a name that stores and pages cannot have."""
    if not key or not all(c.isascii() and (c.isalnum() or c == "_") for c in key):
        raise ConfigError(f"{what} {key!r}: use letters, digits and underscores")
    if len(key) > MAX_KEY:
        raise ConfigError(f"{what} {key!r}: {len(key)} characters; use at most {MAX_KEY}")


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """One row of the leaderboard: an architecture, how it is trained, and the shifts its ranking fuses."""

    key: str
    """Partition key; also the architecture unless that is given."""
    title: str
    """Name in tables."""
    pretraining: TrainingConfig
    """Training on video labels."""
    finetuning: TrainingConfig
    """Training on segment ratings."""
    starts_from: str = ""
    """Key of an earlier model whose pre-trained weights it starts from; empty: it is pre-trained itself."""
    shifts: tuple[int, ...] = (-1, 0, 1)
    """Window shifts (seconds) that the model's ranking fuses."""
    architecture: str = ""
    """Registered name of the architecture; empty: the key."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Options of `create_model` that differ from the architecture's defaults."""
    preset_weight: float = 1.0
    """Ensemble weight of the original (percent), where the search starts."""

    @property
    def seed_key(self) -> str:
        """What its seeds derive from: with another one's weights its draws, so that settings are all that differs."""
        return self.starts_from or self.key

    def __post_init__(self) -> None:
        object.__setattr__(self, "architecture", self.architecture or self.key)
        object.__setattr__(self, "overrides", MappingProxyType(dict(self.overrides)))
        check_key(self.key, "model key")
        unknown = sorted(set(self.shifts) - set(SHIFTS))
        if unknown or not self.shifts or len(set(self.shifts)) != len(self.shifts):
            raise ConfigError(f"{self.key}: shifts = {self.shifts}: choose distinct shifts from {SHIFTS}")


@dataclass(frozen=True, kw_only=True)
class PredictionConfig:
    """How segments are scored and ranked."""

    batch_size: int = 512
    """Segments a forward pass sees."""
    edges: Literal["clamp", "wrap"] = "clamp"
    """What a shifted window sees beyond the video: its nearest frame, or the original's circular roll."""
    top_k: int = TOP_K
    """Segments kept per class, at most the 100,000 that count; every MAP is at 100,000 of what is kept."""
    tta_w0: float = TTA_W0
    """Rank-fusion constant over a model's shifts."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the forward pass."""
    compile: bool = False
    """Use torch.compile; where it fails scoring goes on uncompiled, with the reason logged."""
    trim_start: int = 0
    """Segments at a video's beginning that are ranked last."""
    trim_end: int = 0
    """Segments at a video's end that are ranked last."""
    candidate_classes: int | None = None
    """Rated classes a video is a candidate for, those of highest mean score; it comes last in others. None: all."""

    video_weight: float = 0.0
    """Weight a of a video's own evidence: a segment's score s becomes v^a * s^(1 - a), v the video's mean. 0: none."""

    def __post_init__(self) -> None:
        if not 0 <= self.video_weight < 1:
            raise ConfigError(f"prediction.video_weight = {self.video_weight}: must lie in [0, 1)")
        for name in ("batch_size", "top_k"):
            if getattr(self, name) < 1:
                raise ConfigError(f"prediction.{name} = {getattr(self, name)}: must be at least 1")
        if self.top_k > TOP_K:
            raise ConfigError(f"prediction.top_k = {self.top_k}: at most {TOP_K} count, and a submission may list")
        for name in ("trim_start", "trim_end"):
            if getattr(self, name) < 0:
                raise ConfigError(f"prediction.{name} = {getattr(self, name)}: must not be negative")
        if self.candidate_classes is not None and self.candidate_classes < 1:
            raise ConfigError(f"prediction.candidate_classes = {self.candidate_classes}: must be at least 1, or None")
        if self.tta_w0 <= 0:
            raise ConfigError(f"prediction.tta_w0 = {self.tta_w0}: must be above zero")
        if self.edges not in ("clamp", "wrap"):
            raise ConfigError(f"prediction.edges = {self.edges!r}: choose 'clamp' or 'wrap'")
        if self.precision not in ("float32", "bfloat16"):
            raise ConfigError(f"prediction.precision = {self.precision!r}: choose 'float32' or 'bfloat16'")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is trained on what, for how long, and how it becomes a submission."""

    name: str
    """Name in MLflow tags and reports."""
    data: DataConfig
    """The data."""
    models: tuple[ModelRecipe, ...]
    """The models, in the order of the leaderboard; their keys are the partitions."""
    prediction: PredictionConfig = field(default_factory=PredictionConfig)
    """Scoring and ranking."""
    search: SearchConfig = field(default_factory=SearchConfig)
    """The search of the ensemble's weights."""
    second_stage: bool = False
    """Whether a second stage over the models' rankings (`ensemble.second_stage`) is one more that the search weighs."""
    folds: int = 0
    """Folds of the rated videos that are trained on: each model is fine-tuned once without each of them and ranks it,
    and the second stage is fitted on that instead of the hold-out. 0: none."""
    refit: bool = False
    """Whether what predicts the test is fine-tuned once more, on all rated videos, as long as was best on the split."""
    bootstrap_rounds: int = 1000
    """Rounds of the bootstrap intervals in the reports."""
    seed: int = 0
    """Seed from which every stage derives its own."""

    def __post_init__(self) -> None:
        keys = [model.key for model in self.models]
        if not keys or len(set(keys)) != len(keys):
            raise ConfigError(f"recipe {self.name!r}: models = {keys}: give at least one, each key once")
        for number, model in enumerate(self.models):
            if model.starts_from:
                self._check_start(model, keys[:number])
        if self.folds < 0 or self.folds == 1:
            raise ConfigError(f"recipe {self.name!r}: folds = {self.folds}: must be at least 2, or 0 for none")
        if self.folds and not self.second_stage:
            raise ConfigError(
                f"recipe {self.name!r}: folds = {self.folds}: only second_stage uses them; switch that on"
            )
        if self.bootstrap_rounds < 1:
            raise ConfigError(f"recipe {self.name!r}: bootstrap_rounds = {self.bootstrap_rounds}: must be at least 1")

    def _check_start(self, model: ModelRecipe, earlier: list[str]) -> None:
        named = f"recipe {self.name!r}: {model.key}: starts_from = {model.starts_from!r}"
        if model.starts_from not in earlier:
            raise ConfigError(f"{named}: name a model that comes before it")
        origin = self.model(model.starts_from)
        if origin.starts_from:
            raise ConfigError(f"{named}: that starts from {origin.starts_from!r} itself; name this one")
        if model.pretraining != origin.pretraining:
            raise ConfigError(f"{named}: so its own pretraining is not used; leave out one of the two")

    @property
    def model_keys(self) -> tuple[str, ...]:
        """The partition keys of the model axis, in order."""
        return tuple(model.key for model in self.models)

    def model(self, key: str) -> ModelRecipe:
        """The recipe of one model. Raises ConfigError naming the known keys."""
        for model in self.models:
            if model.key == key:
                return model
        raise ConfigError(f"unknown model {key!r}; recipe {self.name!r} has {', '.join(self.model_keys)}")

    def with_models(self, keys: tuple[str, ...]) -> "Recipe":
        """The same recipe with only the named models."""
        return replace(self, models=tuple(self.model(key) for key in keys))
