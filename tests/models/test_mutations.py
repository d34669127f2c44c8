"""The goldens notice the typical porting mistakes of SPEC section 15: each is made on purpose here, and must show."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from models import layers, next_vlad, transformer
from models.layers import BatchNorm
from tests.models.golden_harness import Golden, TensorFlowAdam, training_step


def prediction_error(case, run="seg"):
    golden = Golden(case)
    model = golden.load(golden.build(), run)
    with torch.no_grad():
        probabilities = model(*golden.inputs(run)).probabilities
    return np.abs(probabilities.numpy() - golden.arrays[f"{run}/predictions"]).max()


def statistics_error(case, kind):
    golden, run = Golden(case), "train_seg"
    model = golden.load(golden.build(), run)
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.unbiased = kind(module)
    step = training_step(model, golden, run, TensorFlowAdam(model))
    expected = golden.expected(run, "bn_after1")
    return max(np.abs(step.statistics[name] - value).max() for name, value in expected.items())


def test_layer_norm_epsilon(monkeypatch):
    assert prediction_error("bert_l2h12") < 1e-5
    monkeypatch.setattr(transformer, "LAYER_NORM_EPS", 1e-5)
    assert prediction_error("bert_l2h12") > 1e-5


def test_gelu_by_erf(monkeypatch):
    tanh = F.gelu
    monkeypatch.setattr(transformer.F, "gelu", lambda x, approximate: tanh(x))
    assert prediction_error("bert_l2h12") > 1e-5


def test_pooling_the_first_frame(monkeypatch):
    assert prediction_error("bert_milfirst_l2h12") < 1e-5
    monkeypatch.setattr(transformer.Pooler, "forward", lambda self, x, mask=None: x[:, 0])
    assert prediction_error("bert_milfirst_l2h12") > 1e-3


def test_a_second_l2_norm_in_nextvlad(monkeypatch):
    assert prediction_error("mixnextvlad_iter60") < 1e-5
    plain = next_vlad.l2_normalize

    def twice(x, dim):
        return layers.l2_normalize(plain(x, dim).flatten(2), 2).view_as(x)

    monkeypatch.setattr(next_vlad, "l2_normalize", twice)
    assert prediction_error("mixnextvlad_iter60") > 1e-3


@pytest.mark.parametrize("case", ["netvlad_hs1024_cs8", "mixnextvlad_iter60"])
def test_either_variance_convention_everywhere(case):
    assert statistics_error(case, lambda norm: norm.unbiased) < 1e-6
    if case.startswith("mix"):
        assert statistics_error(case, lambda norm: True) > 1e-5
    assert statistics_error(case, lambda norm: False) > 1e-5


def test_batch_norm_epsilon(monkeypatch):
    monkeypatch.setattr(layers, "BATCH_NORM_EPS", 1e-5)
    assert prediction_error("netvlad_hs1024_cs8") > 1e-4
    assert prediction_error("mixnextvlad_iter300") > 1e-4


def test_mean_over_valid_frames_alone():
    golden = Golden("bert_milmean_l2h12")
    model = golden.load(golden.build(mask_padding=True), "vid")
    with torch.no_grad():
        probabilities = model(*golden.inputs("vid")).probabilities
    assert np.abs(probabilities.numpy() - golden.arrays["vid/predictions"]).max() > 1e-4
