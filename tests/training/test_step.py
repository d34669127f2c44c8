from dataclasses import replace
from typing import Any

import pytest
import torch

from models import FrameModel, list_models
from tests.models.small import small_model
from tests.training.batches import BATCHES
from tests.training.support import MIX
from tests.training.test_evaluate import SPEC
from yt8m_assets.data.dataset.batches import Batch
from yt8m_assets.training.config import TrainingConfig
from yt8m_assets.training.loss import Objective
from yt8m_assets.training.optimizer import Optimizer
from yt8m_assets.training.recompute import recompute_activations
from yt8m_assets.training.step import Stepper

CPU = torch.device("cpu")
CONFIG = replace(MIX.pretraining, batch_size=8)


def make_stepper(config: TrainingConfig = CONFIG, rank: int = 0, **overrides: float) -> Stepper:
    model = replace(SPEC, overrides={**SPEC.overrides, **overrides}).build(2).train()
    optimizer = Optimizer(dict(model.named_parameters()), config)
    return Stepper(Objective(model, config), optimizer, config, device=torch.device("cpu"), seed=1, rank=rank)


def test_a_step_depends_on_its_number_and_not_on_the_steps_before() -> None:
    first, second = make_stepper(), make_stepper()
    first.run(BATCHES[0], 0, 0.0)
    torch.rand(17)
    assert float(first.run(BATCHES[1], 7, 0.0)) == float(second.run(BATCHES[1], 7, 0.0))
    assert float(first.run(BATCHES[1], 8, 0.0)) != float(first.run(BATCHES[1], 7, 0.0))


def test_rated_weighting_changes_the_objective() -> None:
    every = make_stepper(replace(CONFIG, label_weighting="all"))
    rated = make_stepper(replace(CONFIG, label_weighting="rated"))
    assert float(rated.run(BATCHES[0], 0, 0.0)) < float(every.run(BATCHES[0], 0, 0.0))


def test_a_loss_of_the_branches_own_is_added_where_asked_for() -> None:
    def total(weight: float) -> float:
        stepper = make_stepper(branch_loss_weight=weight, dropout=0.0)
        batch = replace(BATCHES[0], frame_index=torch.arange(6).repeat(8, 1) % 5)
        return float(stepper.forward(batch, 1.0)[0].detach())

    assert total(1.0) > total(0.0) + 1


def test_rows_of_a_batch() -> None:
    part = BATCHES[0].rows(slice(2, 5))
    assert isinstance(part, Batch)
    assert part.video_ids == BATCHES[0].video_ids[2:5]
    assert torch.equal(part.labels, BATCHES[0].labels[2:5])
    assert replace(BATCHES[0], label_weights=None).rows(slice(0, 2)).label_weights is None


def test_adding_l2_once_whatever_the_accumulation() -> None:
    gradients = []
    for pieces in (1, 4):
        stepper = make_stepper(replace(CONFIG, accumulation=pieces, clip="none", regularization_weight=100.0), l2=0.1)
        parameter = stepper.optimizer.parameters["head.branches.0.weight"]
        before = parameter.detach().clone()
        stepper.objective.model.eval()  # no batch statistics, which micro-batches change
        stepper.run(BATCHES[0], 0, 0.0)
        assert torch.equal(parameter, before)
        gradients.append(parameter.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)
    assert float(gradients[0].norm()) == pytest.approx(float((10 * before).norm()), rel=0.5)  # type: ignore[union-attr]


@pytest.mark.parametrize("key", list_models())
def test_the_l2_gradient_is_the_penaltys(key: str) -> None:
    """What is added by hand is what autograd makes of `l2_penalty`, where the loss gave a gradient and where not."""
    model, config = small_model(key, l2=0.3), replace(CONFIG, regularization_weight=5.0)
    parameters = dict(model.named_parameters())
    stepper = Stepper(Objective(model, config), Optimizer(parameters, config), config, device=CPU, seed=0)
    (5.0 * model.l2_penalty()).backward()
    expected = {name: None if value.grad is None else value.grad.clone() for name, value in parameters.items()}
    penalised = [name for name, gradient in expected.items() if gradient is not None]
    assert penalised
    model.zero_grad()
    parameters[penalised[0]].grad = torch.ones_like(parameters[penalised[0]])
    stepper.add_l2()
    for name, value in parameters.items():
        if name in penalised:
            before = 1.0 if name == penalised[0] else 0.0
            torch.testing.assert_close(value.grad, expected[name] + before, msg=name)  # type: ignore[operator]
        else:
            assert value.grad is None, name


def test_weights_that_are_not_trained_get_no_l2_gradient() -> None:
    model = small_model("bert_mean_l2h12", l2=0.3)
    model.head.gates.requires_grad_(False)
    stepper = Stepper(
        Objective(model, CONFIG), Optimizer(dict(model.named_parameters()), CONFIG), CONFIG, device=CPU, seed=0
    )
    stepper.add_l2()
    assert model.head.gates.weight.grad is None
    torch.testing.assert_close(model.head.experts.weight.grad, 0.3 * model.head.experts.weight.detach())


def test_a_model_with_a_penalty_of_its_own_is_refused_where_it_is_defined() -> None:
    """Else its gradient would be missing, and nothing would say so."""
    with pytest.raises(TypeError, match=r"Other\.l2_penalty: .* give `l2_terms` instead"):

        class Other(FrameModel):
            def l2_penalty(self) -> torch.Tensor:
                return torch.zeros(())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler imports torch.jit, which it deprecates
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # it looks at intermediate results
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_compiled_model_may_recompute_its_activations(
    dropout: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Losses, weights and statistics are those of the plain model, and compiled it stays."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module, dynamic: compile_(module, backend="aot_eager"))
    plain = make_stepper(dropout=dropout)
    both = make_stepper(replace(CONFIG, compile=True), dropout=dropout)
    recompute_activations(both.objective.model, compiled=True)
    try:
        for step in range(2):
            expected, found = (stepper.run(BATCHES[step], step, 1e-3) for stepper in (plain, both))
            assert float(found) == pytest.approx(float(expected), rel=1e-6)
    finally:
        torch.compiler.reset()
    ours, theirs = (stepper.objective.model.state_dict() for stepper in (both, plain))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6)
    assert both.compiled.enabled
    assert "uncompiled" not in caplog.text


class FailingCompiler:
    """Stands for torch.compile; of the calls from `after` on, each fails once the forward pass is through."""

    def __init__(self, after: int, in_backward: bool) -> None:
        self.after, self.in_backward, self.calls = after, in_backward, 0

    def __call__(self, module: Any, dynamic: bool | None = None) -> Any:
        def run(*arguments: Any) -> Any:
            self.calls += 1
            total, loss = module(*arguments)
            if self.calls <= self.after:
                return total, loss
            if not self.in_backward:
                raise RuntimeError("no code for the backward pass")

            def fail(gradient: torch.Tensor) -> torch.Tensor:
                raise RuntimeError("no code for the backward pass")

            total.register_hook(fail)
            return total, loss

        return run


@pytest.mark.parametrize("in_backward", [False, True])
@pytest.mark.parametrize("after", [0, 1, 4])
def test_a_step_whose_compilation_fails_counts_once_bit_for_bit(
    in_backward: bool, after: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After the forward pass, in the first or a later micro-batch, or in the backward pass; dropout and batch norm."""
    config = replace(CONFIG, accumulation=2)
    plain, compiled = make_stepper(config), make_stepper(replace(config, compile=True))
    compiler = FailingCompiler(after, in_backward)
    monkeypatch.setattr(torch, "compile", compiler)
    for step in range(4):
        expected, found = (stepper.run(BATCHES[step % 2], step, 1e-3) for stepper in (plain, compiled))
        assert float(found) == float(expected)
    ours, theirs = (stepper.objective.model.state_dict() for stepper in (compiled, plain))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert compiler.calls == after + 1
    assert caplog.text.count("training goes on uncompiled: no code for the backward pass") == 1
