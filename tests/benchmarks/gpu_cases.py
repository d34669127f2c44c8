"""Models, batches and clocks for what is measured on a GPU."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from models import FrameModel, list_models
from models.registry import LEADERBOARD_ORDER
from tests.models.small import small_options
from yt8m_assets.data.dataset.batches import Batch
from yt8m_assets.training.config import TrainingConfig
from yt8m_assets.training.loss import Objective
from yt8m_assets.training.model_files import ModelSpec
from yt8m_assets.training.optimizer import Optimizer
from yt8m_assets.training.step import Stepper

WIDTHS = (1024, 128)
FAMILIES = ("bert_mean_l2h12", "bert_l2h12", "gated_netvlad_h1024c16", "mix_nextvlad_iter300", "mix_nextvlad_iter60")
"""One of each kind of training step; the other BERTs are like the first two."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Where and how large."""

    device: torch.device
    tiny: bool
    """Narrow models and few classes."""

    @property
    def num_classes(self) -> int:
        """The vocabulary's size."""
        return 40 if self.tiny else 3862

    @property
    def num_rated(self) -> int:
        """How many classes are ranked."""
        return 10 if self.tiny else 1000

    @property
    def batch_size(self) -> int:
        """The recipes' batch."""
        return 8 if self.tiny else 128

    @property
    def families(self) -> tuple[str, ...]:
        """The models that are measured by themselves."""
        return FAMILIES[::2] if self.tiny else FAMILIES

    @property
    def models(self) -> tuple[str, ...]:
        """All that a pass trains."""
        return tuple(key for key in list_models() if key in LEADERBOARD_ORDER)

    def spec(self, key: str) -> ModelSpec:
        """A model at its full width, or as the tests have it."""
        sizes = (64, 32) if self.tiny else WIDTHS
        options: dict[str, Any] = small_options(key) if self.tiny else {}
        return ModelSpec(
            architecture=key, overrides=options, num_classes=self.num_classes, feature_sizes=sizes, max_frames=300
        )

    def build(self, key: str) -> FrameModel:
        """It, on the device, with weights of a seed."""
        torch.manual_seed(0)
        model: Any = self.spec(key).build()
        return model.to(self.device)  # type: ignore[no-any-return]

    def config(self, **changes: Any) -> TrainingConfig:
        """A training's settings."""
        values = {"num_steps": 10**6, "batch_size": self.batch_size, "precision": "bfloat16"}
        return TrainingConfig(**(values | changes))

    def batch(self, key: str, pinned: bool = True) -> Batch:
        """Bytes as the reader gives them to a model: a window of 5 frames, or the frames that were drawn."""
        spec, size = self.spec(key), self.batch_size
        count = 300 if key == "mix_nextvlad_iter300" else 60 if key == "mix_nextvlad_iter60" else 5
        draws = spec.build().num_sampled_frames if self.tiny else count
        count = min(count, draws)  # type: ignore[type-var]
        generator = torch.Generator().manual_seed(1)
        made = Batch(
            frames=torch.randint(
                0, 256, (size, count, sum(spec.feature_sizes)), dtype=torch.uint8, generator=generator
            ),
            valid=torch.ones(size, count, dtype=torch.bool),
            num_frames=torch.full((size,), count),
            labels=(torch.rand(size, spec.num_classes, generator=generator) < 0.01).float(),
            label_weights=None,
            video_ids=tuple(f"v{number:05d}" for number in range(size)),
            starts=torch.zeros(size, dtype=torch.int64),
            frame_index=torch.arange(draws).remainder(count).repeat(size, 1),  # type: ignore[arg-type]
        )
        return made.pin_memory() if pinned and self.device.type == "cuda" else made

    def stepper(self, key: str, **changes: Any) -> Stepper:
        """The engine over a model."""
        config, model = self.config(**changes), self.build(key).train()
        optimizer = Optimizer(dict(model.named_parameters()), config)
        return Stepper(Objective(model, config), optimizer, config, device=self.device, seed=0)

    def wait(self) -> None:
        """Until the device has done all it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, call: Callable[[], object], rounds: int = 5, calls: int = 1) -> float:
        """Median time of one call, to the end of its work; `calls` in a row, as a loop makes them."""
        found = []
        for _ in range(1 + rounds):
            self.wait()
            began = time.perf_counter()
            for _ in range(calls):
                call()
            self.wait()
            found.append((time.perf_counter() - began) / calls)
        return statistics.median(found[1:])

    @contextmanager
    def peak(self) -> Iterator[list[float]]:
        """Gigabytes of the device's memory that a block takes at most, as the one entry of a list; none on a CPU."""
        found: list[float] = []
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        yield found
        if self.device.type == "cuda":
            found.append(round(torch.cuda.max_memory_allocated(self.device) / 1e9, 2))
