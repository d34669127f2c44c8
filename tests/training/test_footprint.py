"""What trainings take of memory, told before they start; and what is done where they do not fit together."""

from dataclasses import replace
from pathlib import Path

import pytest

from models import list_models
from models.registry import VIDEO_MODELS
from tests.training.support import MIX, SCORER, make_recipe, prepare_store
from tests.training.test_passes import NARROW, THREE, digests, together
from yt8m_assets.progress import NullProgress
from yt8m_assets.recipes import load_recipe
from yt8m_assets.stages.training import model_spec
from yt8m_assets.training import footprint as module
from yt8m_assets.training.config import TrainingConfig
from yt8m_assets.training.footprint import Footprint, fitting, needed, saved_bytes, state_of, with_activations
from yt8m_assets.training.loss import Objective
from yt8m_assets.training.model_files import ModelSpec


@pytest.mark.parametrize("key", [*list_models(), *VIDEO_MODELS])
@pytest.mark.parametrize("changes", [{}, {"window_frames": 5, "accumulation": 2}])
def test_activations_are_those_of_a_real_step(key: str, changes: dict[str, int]) -> None:
    narrow = {**NARROW, "frame": SCORER.overrides}[key.split("_")[0]]
    spec = ModelSpec(architecture=key, overrides=narrow, num_classes=6, feature_sizes=(16, 8), max_frames=30)
    config = TrainingConfig(num_steps=1, batch_size=8, **changes)  # type: ignore[arg-type]
    model = spec.build().train()
    real = saved_bytes(Objective(model, config), spec, config)
    assert with_activations(state_of(spec, config), spec, config).activations == int(module.MARGIN * real)
    assert real > 1000


def test_a_model_of_whole_videos_keeps_all_of_their_frames() -> None:
    config = TrainingConfig(num_steps=1, batch_size=8)
    sizes = []
    for max_frames in (30, 300):
        spec = ModelSpec(
            architecture="frame_scorer",
            overrides=SCORER.overrides,
            num_classes=6,
            feature_sizes=(16, 8),
            max_frames=max_frames,
        )
        sizes.append(saved_bytes(Objective(spec.build().train(), config), spec, config))
    assert sizes[1] > 8 * sizes[0]
    windows = replace(config, window_frames=30)
    assert saved_bytes(Objective(spec.build().train(), windows), spec, windows) == sizes[0]


def test_the_state_is_counted_by_number_and_kind() -> None:
    recipe = load_recipe("challenge")
    spec, config = model_spec(recipe, "bert_mean_l2h12"), recipe.model("bert_mean_l2h12").pretraining
    numbers = 73_758_062  # trainable, of the original's graph
    assert state_of(spec, config) == Footprint(state=16 * numbers, activations=0, copies=12 * numbers)
    averaged = state_of(spec, replace(config, ema_decay=0.9, keep_best=True))
    assert averaged == Footprint(state=20 * numbers, activations=0, copies=(12 + 4 + 12) * numbers)
    all_of_them = [state_of(model_spec(recipe, key), recipe.model(key).pretraining) for key in recipe.model_keys]
    assert needed(all_of_them, on_gpu=True)[0] == pytest.approx(23.1e9, rel=0.01)


def test_groups_fit_and_are_as_few_as_their_order_allows() -> None:
    sizes = {"a": 5, "b": 4, "c": 30, "d": 1, "e": 2, "f": 6}
    prints = {name: Footprint(state=size, activations=size % 3, copies=size) for name, size in sizes.items()}
    assert fitting(prints, 12, 100, on_gpu=True) == [["a", "b"], ["c"], ["d", "e", "f"]]
    assert fitting(prints, 100, 10, on_gpu=True) == [["a", "b"], ["c"], ["d", "e", "f"]]
    assert fitting(prints, 0, 24, on_gpu=False) == [["a", "b"], ["c"], ["d", "e", "f"]]
    assert fitting(prints, 100, 100, on_gpu=True) == [[*sizes]]
    assert fitting({}, 1, 1, on_gpu=True) == []


class Told(NullProgress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, text: str) -> None:
        self.lines.append(text)


def test_what_does_not_fit_together_is_said_and_trained_in_several_passes(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(shards, *THREE)
    whole = prepare_store(tmp_path / "whole", recipe)
    told = Told()
    together(recipe, whole, progress=told)
    assert not [line for line in told.lines if "side by side" in line]
    largest = state_of(model_spec(recipe, "mix"), MIX.pretraining)
    fits = largest.state + largest.copies + 60_000
    monkeypatch.setattr(module, "free_bytes", lambda: int(fits / (1 - module.RESERVE)) + 1)
    store = prepare_store(tmp_path / "cut", recipe)
    together(recipe, store, progress=told)
    (line,) = (line for line in told.lines if "side by side" in line)
    assert line.startswith("3 models side by side take about 0.0 GB of 0.0 GB host memory: they are trained in ")
    assert "passes, mix" in line
    assert digests(store, recipe) == digests(whole, recipe)
