"""Batch norm in TensorFlow's conventions, L2 normalisation, and the initialisers."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models import create_model
from models.layers import BatchNorm, l2_normalize, stacked_batch_norm, synchronize_batch_norm
from tests.models.small import small_batch, small_model


@pytest.mark.parametrize("unbiased", [True, False])
def test_batch_norm_is_torchs_but_for_the_tracked_variance(unbiased):
    torch.manual_seed(0)
    x = torch.randn(7, 3) * 2 + 1
    ours, reference = BatchNorm(3, unbiased=unbiased, momentum=0.1), torch.nn.BatchNorm1d(3, eps=1e-3, momentum=0.1)
    torch.testing.assert_close(ours.train()(x), reference.train()(x))
    torch.testing.assert_close(ours.running_mean, reference.running_mean)
    variance = 0.9 + 0.1 * x.var(0, unbiased=unbiased)
    torch.testing.assert_close(ours.running_var, variance)
    reference.running_var.copy_(ours.running_var)
    torch.testing.assert_close(ours.eval()(x), reference.eval()(x))


def test_the_originals_momentum_is_the_default():
    for key in ("gated_netvlad_h1024c16", "mix_nextvlad_iter60"):
        norms = [module for module in small_model(key).modules() if isinstance(module, BatchNorm)]
        assert {norm.momentum for norm in norms} == {0.001}
        norms = [module for module in small_model(key, bn_momentum=0.01).modules() if isinstance(module, BatchNorm)]
        assert {norm.momentum for norm in norms} == {0.01}


@pytest.mark.parametrize("unbiased", [True, False])
def test_counted_rows_equal_repeated_rows(unbiased):
    torch.manual_seed(0)
    x, counts = torch.randn(5, 3, dtype=torch.float64), torch.tensor([3.0, 0.0, 1.0, 2.0, 4.0])
    counted, repeated = (BatchNorm(3, unbiased=unbiased, momentum=0.1).double() for _ in range(2))
    rows = torch.arange(5).repeat_interleave(counts.long())
    torch.testing.assert_close(counted(x, counts)[rows], repeated(x[rows]))
    torch.testing.assert_close(counted.running_mean, repeated.running_mean)
    torch.testing.assert_close(counted.running_var, repeated.running_var)


@pytest.mark.parametrize("counted", [True, False])
def test_statistics_under_autocast_are_those_of_a_float64_pass(counted):
    """Also far from zero, where products rounded to bfloat16 would leave nothing of the variance."""
    torch.manual_seed(0)
    x = (torch.randn(3, 200, 8) + 6 * torch.randn(3, 1, 8).sign()).bfloat16()
    counts = torch.randint(0, 4, (200,)).float() if counted else None
    low = [BatchNorm(8, unbiased=True, momentum=1.0) for _ in range(3)]
    exact = [BatchNorm(8, unbiased=True, momentum=1.0).double() for _ in range(3)]
    with torch.autocast("cpu", torch.bfloat16):
        found = stacked_batch_norm(low, x, counts)
    expected = stacked_batch_norm(exact, x.double(), None if counts is None else counts.double())
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)
    for one, other in zip(low, exact, strict=True):
        torch.testing.assert_close(one.running_mean, other.running_mean.float(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(one.running_var, other.running_var.float(), rtol=1e-5, atol=1e-6)


def test_batch_norm_of_a_single_row_stays_finite():
    norm = BatchNorm(2, unbiased=True, momentum=0.5)
    assert torch.equal(norm(torch.tensor([[3.0, -1.0]])), torch.zeros(1, 2))
    assert norm.running_var.tolist() == [0.5, 0.5]


def test_l2_normalize_keeps_zeros_and_gives_unit_length():
    x = torch.stack([torch.zeros(4), torch.full((4,), 3.0)])
    assert l2_normalize(x, 1).tolist() == [[0.0] * 4, [0.5] * 4]
    assert l2_normalize(x.bfloat16(), 1).dtype == torch.float32


def sd(tensor):
    return tensor.detach().float().std().item()


def test_initialisers_are_the_originals():
    """SPEC section 13; the sd of a normal cut at two sd is 0.8796 of the uncut one."""
    cut = 0.8796
    torch.manual_seed(0)
    bert = create_model("bert_cross_attn_l2h8", 50)
    assert sd(bert.all_encoder.layers[0].query.weight) == pytest.approx(0.02 * cut, rel=0.02)
    assert bert.all_encoder.layers[0].query.weight.abs().max() <= 0.04
    assert bert.all_encoder.layers[0].output.bias.abs().max() == 0
    assert sd(bert.head.gates.weight) == pytest.approx(math.sqrt(2 / (1152 + 300)), rel=0.02)
    assert bert.head.experts.weight.abs().max() <= math.sqrt(6 / (1152 + 250))
    assert bert.pooler.query.abs().max() <= math.sqrt(6 / 1153)
    netvlad = create_model("gated_netvlad_h1024c16", 50, hidden_size=256)
    assert sd(netvlad.vlad["video"].assignment.weight) == pytest.approx(1 / 32, rel=0.03)
    assert sd(netvlad.vlad["audio"].centers) == pytest.approx(1 / math.sqrt(128), rel=0.06)
    assert sd(netvlad.hidden1.weight) == pytest.approx(1 / math.sqrt(1024 * 16 + 128 * 8), rel=0.02)
    assert sd(netvlad.hidden2.bias) == pytest.approx(0.01, rel=0.15)
    assert sd(netvlad.head.probability_gate.linear.weight) == pytest.approx(1 / math.sqrt(50), rel=0.06)
    mix = create_model("mix_nextvlad_iter60", 50, num_clusters=4, hidden_size=256)
    branch = mix.vlad["video"].branches[1]
    assert sd(branch.expand.weight) == pytest.approx(math.sqrt(2.6 / 1024) * cut, rel=0.02)
    assert sd(branch.centers) == pytest.approx(math.sqrt(2.6 / 256) * cut, rel=0.1)
    assert sd(mix.head.branches[0].weight) == pytest.approx(math.sqrt(2.6 / 256) * cut, rel=0.03)
    assert sd(mix.mixture_weights.linear.weight) == pytest.approx(math.sqrt(2.6 / 60) * cut, rel=0.15)


def run_rank(rank, store):
    program = (
        "import sys, torch.distributed as dist\n"
        "from tests.models.test_layers import synchronized_step\n"
        "dist.init_process_group('gloo', init_method='file://' + sys.argv[2], rank=int(sys.argv[1]), world_size=2)\n"
        "rows = slice(0, 2) if dist.get_rank() == 0 else slice(2, 6)\n"
        "synchronized_step(rows, True)\n"
        "dist.destroy_process_group()\n"
    )
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", program, str(rank), str(store)],
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def synchronized_step(rows, synchronized):
    """Print the sums of a model's running statistics and gradients after a step on some rows of a batch of six."""
    model = small_model("mix_nextvlad_iter60", dropout=0.0, distillation_weight=0.0).double().train()
    synchronize_batch_norm(model, synchronized)
    frames, num_frames = small_batch(6)
    index = (torch.arange(60) * num_frames[:, None]) // 60
    model(frames[rows].double(), num_frames[rows], index[rows]).probabilities.log().sum().backward()
    statistics = sum(buffer.sum().item() for buffer in model.buffers())
    gradients = [parameter.grad.sum().item() for parameter in model.parameters()]
    print(statistics, *gradients)  # noqa: T201
    return statistics, gradients


@pytest.mark.slow
def test_synchronized_statistics_are_those_of_the_whole_batch(tmp_path):
    statistics, gradients = synchronized_step(slice(0, 6), False)
    processes = [run_rank(rank, tmp_path / "store") for rank in range(2)]
    shown = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], shown
    first, second = ([float(word) for word in out.split()] for out, _ in shown)
    assert first[0] == pytest.approx(statistics, rel=1e-9)
    assert second[0] == pytest.approx(statistics, rel=1e-9)
    summed = [one + other for one, other in zip(first[1:], second[1:], strict=True)]
    assert summed == pytest.approx(gradients, rel=1e-6, abs=1e-8)
