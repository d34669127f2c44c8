from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models.layers import BatchNorm
from tests.training.support import MIX, make_recipe, prepare_store
from yt8m_assets.errors import CheckpointMismatchError
from yt8m_assets.progress import Counter
from yt8m_assets.recipes.schema import ModelRecipe
from yt8m_assets.stages.lineage import resolve_inputs
from yt8m_assets.stages.nodes import Node
from yt8m_assets.stages.training import make_job
from yt8m_assets.tracking import NullRun
from yt8m_assets.training.averages import WeightAverage, as_means, measure_statistics
from yt8m_assets.training.distributed import Team
from yt8m_assets.training.interruption import StopRequest, TrainingPreempted
from yt8m_assets.training.job import TrainingJob, prepare_trainer, publish
from yt8m_assets.training.loss import Objective
from yt8m_assets.training.passes import run_pass
from yt8m_assets.training.trainer import Trainer


def set_weight(model: nn.Module, value: float) -> None:
    with torch.no_grad():
        model.weight.fill_(value)  # type: ignore[union-attr, operator]


def test_swa_is_the_mean_of_the_points() -> None:
    model = nn.BatchNorm1d(2)
    average = WeightAverage(model, None)
    for value in (1.0, 2.0, 6.0):
        set_weight(model, value)
        average.update()
    assert average.average["weight"].tolist() == pytest.approx([3.0, 3.0])
    assert set(average.average) == {"weight", "bias"}


def test_ema_ramps_up_and_then_decays() -> None:
    model = nn.Linear(1, 1, bias=False)
    set_weight(model, 0.0)
    average = WeightAverage(model, 0.5)
    expected = 0.0
    for count, value in enumerate((1.0, 3.0, 5.0, 7.0, 9.0, 2.0, 4.0, 8.0, 1.0, 6.0)):
        set_weight(model, value)
        average.update()
        decay = min(0.5, (1 + count) / (10 + count))
        expected = decay * expected + (1 - decay) * value
    assert float(average.average["weight"]) == pytest.approx(expected)


def test_an_average_is_restored_exactly_or_refused() -> None:
    model = nn.Linear(2, 2)
    first, second = WeightAverage(model, 0.9), WeightAverage(nn.Linear(2, 2), 0.9)
    first.update()
    second.load(first.average, first.count)
    assert second.count == 1
    assert all(torch.equal(value, second.average[name]) for name, value in first.average.items())
    with pytest.raises(CheckpointMismatchError, match="bias is missing"):
        second.load({"weight": first.average["weight"]}, 1)


def trained(
    folder: Path, shards: Path, model: ModelRecipe = MIX, steps: int = 20, accumulation: int = 1
) -> tuple[TrainingJob, Trainer]:
    """A short pre-training with a wide stride, as it stands after its last step."""
    config = replace(model.pretraining, num_steps=steps, learning_rate=0.02, ema_decay=0.9, accumulation=accumulation)
    recipe = make_recipe(shards, replace(model, pretraining=config))
    store = prepare_store(folder, recipe)
    job = make_job(recipe, store, resolve_inputs(recipe, store, Node("pretrained_model", "mix")), allow_fallback=False)
    trainer = prepare_trainer(job, Team(), NullRun(), Counter(), StopRequest())
    trainer.validator.evaluate = None
    ema = trainer.averages["ema"]
    update, buffers = ema.update, dict(trainer.stepper.model.named_buffers())
    trainer.averaged_buffers = {name: value.clone() for name, value in buffers.items()}  # type: ignore[attr-defined]

    def update_buffers_too() -> None:
        weight = 1 - min(0.9, (1 + ema.count) / (10 + ema.count))
        torch._foreach_lerp_(list(trainer.averaged_buffers.values()), list(buffers.values()), weight)  # type: ignore[attr-defined]
        update()

    ema.update = update_buffers_too  # type: ignore[method-assign]
    assert list(run_pass({"mix": trainer.run()}, trainer.stop, Team().device, trainer.config)) == [("mix", None)]
    return job, trainer


def training_loss(trainer: Trainer) -> float:
    """Loss over batches to come with the running statistics, as prediction uses them."""
    position = trainer.source.state_dict()
    batches, total = iter(trainer.source), 0.0
    trainer.stepper.model.eval()
    objective = Objective(trainer.stepper.model, trainer.config)
    with torch.no_grad():
        for _ in range(10):
            batch = next(batches)
            part = (batch.frames, batch.valid, batch.num_frames, batch.labels, batch.label_weights)
            total += float(objective(*part, None)[1])
    trainer.stepper.model.train()
    trainer.source.load_state_dict(position)
    return total / 10


def averaged(parts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([part[name] for part in parts]).mean(0) for name in parts[0]}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_published_statistics_are_the_means_that_the_averaged_weights_see(
    tmp_path: Path, shards: Path, accumulation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against one pass over the same micro-batches with a momentum of 1 each, averaged in float64."""
    _, trainer = trained(tmp_path, shards, accumulation=accumulation)
    weights = {name: value.clone() for name, value in trainer.stepper.model.state_dict().items()}
    position = trainer.source.state_dict()
    lagging = trainer.averages["ema"]
    assert trainer.validator.compare(trainer.state.step) == {"ema": None}
    assert trainer.source.state_dict() == position
    assert all(torch.equal(trainer.stepper.model.state_dict()[name], value) for name, value in weights.items())
    trainer.validator.select("ema", trainer.state.step)
    found = {name: value.clone() for name, value in trainer.stepper.model.named_buffers()}
    norms = [module for module in trainer.stepper.model.modules() if isinstance(module, BatchNorm)]
    assert {norm.momentum for norm in norms} == {0.001}

    seen: list[dict[str, torch.Tensor]] = []
    forward = type(trainer.stepper).forward

    def watched(self: Any, *arguments: Any, **options: Any) -> Any:
        for norm in norms:
            norm.momentum = 1.0
        result = forward(self, *arguments, **options)
        seen.append({name: value.double() for name, value in trainer.stepper.model.named_buffers()})
        return result

    monkeypatch.setattr(type(trainer.stepper), "forward", watched)
    measure_statistics(trainer.stepper, trainer.source, trainer.state.step, trainer.stop)
    assert len(seen) == 20 * accumulation
    for name, value in averaged(seen).items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-4, atol=1e-6)
    for name, value in lagging.average.items():
        assert torch.equal(trainer.stepper.model.state_dict()[name], value)


def test_the_loss_is_lower_than_with_averages_of_the_points_own_statistics(tmp_path: Path, shards: Path) -> None:
    """Those lag behind the weights: the model's own do, and their average does once more."""
    _, trainer = trained(tmp_path, shards, replace(MIX, overrides={**MIX.overrides, "bn_momentum": 0.02}), steps=40)
    trainer.validator.compare(trainer.state.step)
    trainer.validator.select("ema", trainer.state.step)
    measured = training_loss(trainer)
    with torch.no_grad():
        for name, value in trainer.stepper.model.named_buffers():
            value.copy_(trainer.averaged_buffers[name])  # type: ignore[attr-defined]
    assert measured < 0.7 * training_loss(trainer)


def test_a_request_to_stop_saves_the_trained_weights(tmp_path: Path, shards: Path) -> None:
    job, trainer = trained(tmp_path, shards)
    weights = {name: value.clone() for name, value in trainer.stepper.model.state_dict().items()}
    trainer.stop.set()
    with pytest.raises(TrainingPreempted, match="after step 20"):
        publish(job, trainer, tmp_path)
    saved = trainer.writer.checkpoints.latest(False)
    assert saved is not None
    assert all(torch.equal(saved.groups["model"][name], value) for name, value in weights.items())
    assert trainer.stepper.model.training


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
