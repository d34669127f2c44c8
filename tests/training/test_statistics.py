"""Batch-norm statistics of averaged weights are those of the averaged weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models.layers import BatchNorm
from tests.training.support import MIX, make_recipe, prepare_store
from yt8m_assets.recipes.schema import ModelRecipe
from yt8m_assets.stages.lineage import Node, resolve_inputs
from yt8m_assets.stages.training import make_job
from yt8m_assets.training.interruption import TrainingPreempted
from yt8m_assets.training.job import prepare_loop
from yt8m_assets.training.loop import TrainingLoop
from yt8m_assets.training.losses import Objective
from yt8m_assets.training.result import compare_weights, select_weights
from yt8m_assets.training.statistics import as_means, measure_statistics
from yt8m_assets.training.team import Team

CPU = torch.device("cpu")


def trained_loop(
    folder: Path, shards: Path, model: ModelRecipe = MIX, steps: int = 20, accumulation: int = 1
) -> TrainingLoop:
    """A short pre-training with a wide stride, as it stands after its last step."""
    config = replace(model.pretraining, num_steps=steps, learning_rate=0.02, ema_decay=0.9, accumulation=accumulation)
    recipe = make_recipe(shards, replace(model, pretraining=config))
    store = prepare_store(folder, recipe)
    job = make_job(recipe, store, resolve_inputs(recipe, store, Node("pretrained_model", "mix")), allow_fallback=False)
    loop, _ = prepare_loop(job, store, CPU, Team())
    loop.evaluate = None
    assert loop.ema is not None
    update, buffers = loop.ema.update, dict(loop.model.named_buffers())
    loop.averaged_buffers = {name: value.clone() for name, value in buffers.items()}  # type: ignore[attr-defined]

    def update_buffers_too() -> None:
        weight = 1 - min(0.9, (1 + loop.ema.count) / (10 + loop.ema.count))  # type: ignore[union-attr]
        torch._foreach_lerp_(list(loop.averaged_buffers.values()), list(buffers.values()), weight)  # type: ignore[attr-defined]
        update()

    loop.ema.update = update_buffers_too  # type: ignore[method-assign]
    loop.run()
    return loop


def training_loss(loop: TrainingLoop) -> float:
    """Loss over batches to come with the running statistics, as prediction uses them."""
    position = loop.source.state_dict()
    batches, total = iter(loop.source), 0.0
    loop.model.eval()
    objective = Objective(loop.model, loop.config)
    with torch.no_grad():
        for _ in range(10):
            batch = next(batches)
            part = (batch.frames, batch.valid, batch.num_frames, batch.labels, batch.label_weights)
            total += float(objective(*part, None)[1])
    loop.model.train()
    loop.source.load_state_dict(position)
    return total / 10


def averaged(parts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([part[name] for part in parts]).mean(0) for name in parts[0]}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_published_statistics_are_the_means_that_the_averaged_weights_see(
    tmp_path: Path, shards: Path, accumulation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against one pass over the same micro-batches with a momentum of 1 each, averaged in float64."""
    loop = trained_loop(tmp_path, shards, accumulation=accumulation)
    weights = {name: value.clone() for name, value in loop.model.state_dict().items()}
    position = loop.source.state_dict()
    lagging = loop.ema
    assert lagging is not None
    assert compare_weights(loop) == {"ema": None}
    assert loop.source.state_dict() == position
    assert all(torch.equal(loop.model.state_dict()[name], value) for name, value in weights.items())
    select_weights(loop, "ema")
    found = {name: value.clone() for name, value in loop.model.named_buffers()}
    norms = [module for module in loop.model.modules() if isinstance(module, BatchNorm)]
    assert {norm.momentum for norm in norms} == {0.001}

    seen: list[dict[str, torch.Tensor]] = []
    forward = type(loop.stepper).forward

    def watched(self: Any, *arguments: Any, **options: Any) -> Any:
        for norm in norms:
            norm.momentum = 1.0
        result = forward(self, *arguments, **options)
        seen.append({name: value.double() for name, value in loop.model.named_buffers()})
        return result

    monkeypatch.setattr(type(loop.stepper), "forward", watched)
    measure_statistics(loop)
    assert len(seen) == 20 * accumulation
    for name, value in averaged(seen).items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-4, atol=1e-6)
    for name, value in lagging.average.items():
        assert torch.equal(loop.model.state_dict()[name], value)


def test_the_loss_is_lower_than_with_averages_of_the_points_own_statistics(tmp_path: Path, shards: Path) -> None:
    """Those lag behind the weights: the model's own do, and their average does once more."""
    loop = trained_loop(tmp_path, shards, replace(MIX, overrides={**MIX.overrides, "bn_momentum": 0.02}), steps=40)
    compare_weights(loop)
    select_weights(loop, "ema")
    measured = training_loss(loop)
    with torch.no_grad():
        for name, value in loop.model.named_buffers():
            value.copy_(loop.averaged_buffers[name])  # type: ignore[attr-defined]
    assert measured < 0.7 * training_loss(loop)


def test_a_request_to_stop_saves_the_trained_weights(tmp_path: Path, shards: Path) -> None:
    loop = trained_loop(tmp_path, shards)
    weights = {name: value.clone() for name, value in loop.model.state_dict().items()}
    loop.stop.set()
    with pytest.raises(TrainingPreempted, match="after step 20"):
        compare_weights(loop)
    assert loop.checkpoints is not None
    saved = loop.checkpoints.latest(False)
    assert saved is not None
    assert all(torch.equal(saved.groups["model"][name], value) for name, value in weights.items())
    assert loop.model.training


def test_torchs_own_layers_too_and_only_inside_the_block() -> None:
    layers = [nn.BatchNorm1d(1, momentum=0.3), BatchNorm(1, unbiased=True, momentum=0.2)]
    layers[1].synchronized = True  # type: ignore[assignment]
    with as_means(layers) as count:
        for value in (1.0, 2.0, 6.0):
            count()
            for layer in layers:
                assert not getattr(layer, "synchronized", False)
                layer(torch.tensor([[value - 1], [value + 1]]))
    assert [float(layer.running_mean) for layer in layers] == pytest.approx([3.0, 3.0])  # type: ignore[arg-type]
    assert [layer.momentum for layer in layers] == [0.3, 0.2]
    assert layers[1].synchronized is True
