"""Weights to and from the original's TensorFlow variables."""

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch

from models import create_model, export_tf_variables, load_tf_variables
from models.tf_variables import tf_variables
from tests.models.golden_harness import CASES, FOLDER, Golden
from tests.models.small import KEYS, small_batch, small_model


@pytest.mark.parametrize("case", CASES)
def test_full_size_models_have_the_originals_variables_and_parameter_counts(case):
    counts = json.loads((FOLDER / "param_counts.json").read_text())[case]
    overrides = {"num_clusters": 8} if case.startswith("netvlad") else {}
    with torch.device("meta"):
        model = create_model(CASES[case][0], **overrides)
    trainable = sum(parameter.numel() for parameter in model.parameters())
    assert trainable == counts["trainable"]
    assert trainable + sum(buffer.numel() for buffer in model.buffers()) == counts["with_bn_moving"]
    assert sum(parameter.numel() for parameter in model.head.parameters()) == counts["head"]
    places = tf_variables(model)
    listed = Golden(f"{case}__fulldim").info["variables"]
    assert set(places) == set(listed)
    assert {name for name in places if places[name].trainable} == {n for n in listed if listed[n]["trainable"]}


@pytest.mark.parametrize("key", KEYS)
def test_export_is_the_inverse_of_load(key):
    source, target = small_model(key, seed=1), small_model(key, seed=2)
    variables = export_tf_variables(source)
    assert all(value.flags.c_contiguous and value.dtype == np.float32 for value in variables.values())
    load_tf_variables(target, variables)
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensor, target.state_dict()[name]), name
    again = export_tf_variables(target)
    assert all(np.array_equal(variables[name], again[name]) for name in variables)
    variables["tower/gates/weights" if "mix" not in key else "tower/mix_weights/weights"][:] = 0
    assert torch.equal(source.state_dict()[name], target.state_dict()[name]), "an export owns its memory"


def test_gradients_have_the_variables_names_and_layout():
    model = small_model("bert_first_l2h12")
    with pytest.raises(ValueError, match=r"tower/encoder/layer_0/.* has no gradient: call backward"):
        export_tf_variables(model, "grad")
    model(*small_batch()).probabilities.sum().backward()
    gradients, values = export_tf_variables(model, "grad"), export_tf_variables(model)
    assert {name: value.shape for name, value in gradients.items()} == {n: v.shape for n, v in values.items()}
    np.testing.assert_array_equal(gradients["tower/experts/weights"], model.head.experts.weight.grad.T)
    with pytest.raises(ValueError, match="kind = 'gradient'"):
        export_tf_variables(model, "gradient")


@pytest.mark.parametrize("key", KEYS)
def test_optimizer_slots_are_ignored(key):
    model = small_model(key)
    variables = {name: value + 1 for name, value in export_tf_variables(model).items()}
    slots = {f"{name}/{slot}": value * 0 for name, value in variables.items() for slot in ("Adam", "Adam_1")}
    counters = {"global_step": np.array(220_000), "beta1_power": np.array(0.5), "tower/beta2_power": np.array(0.5)}
    load_tf_variables(model, {**variables, **slots, **counters})
    loaded = export_tf_variables(model)
    assert all(np.array_equal(loaded[name], value) for name, value in variables.items())


def test_what_does_not_fit_is_named_and_nothing_is_loaded():
    model = small_model("mix_nextvlad_iter60")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    variables = export_tf_variables(small_model("mix_nextvlad_iter60", seed=9))
    del variables["tower/branch_2/hidden1_weights"]
    variables["tower/branch_3/hidden1_weights"] = np.zeros((2, 2), np.float32)
    variables["tower/mix_weights/weights"] = np.zeros((300, 3), np.float32)
    variables["tower/mix_weights/biases"] = np.array([0, np.nan, 0], np.float32)
    variables["tower/branch_0/hidden1_bn/gamma"] = np.ones(32, np.int64)
    with pytest.raises(ValueError, match="5 variables do not fit MixNextVlad") as caught:
        load_tf_variables(model, variables)
    message = str(caught.value)
    assert "missing: tower/branch_2/hidden1_weights (144, 32)" in message
    assert "unused: tower/branch_3/hidden1_weights" in message
    assert "mis-shaped: tower/mix_weights/weights has (300, 3), the model needs (60, 3)" in message
    assert "not finite floating-point numbers: tower/mix_weights/biases" in message
    assert "not finite floating-point numbers: tower/branch_0/hidden1_bn/gamma (int64)" in message
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_another_models_variables_are_refused():
    variables = export_tf_variables(small_model("bert_l3h12"))
    with pytest.raises(ValueError, match=r"unused: tower/encoder/layer_2/attention/output/LayerNorm/beta"):
        load_tf_variables(small_model("bert_l2h12"), variables)


@pytest.mark.parametrize(
    "respell",
    [
        lambda name: f"{name}:0",
        lambda name: name.removeprefix("tower/"),
        lambda name: f"model/{name}",
        lambda name: f"model/{name.removeprefix('tower/')}:0",
        lambda name: f"{name}/ExponentialMovingAverage:0",
    ],
)
def test_other_spellings_of_names_are_understood(respell: Callable[[str], str]) -> None:
    own = small_model("bert_mean_l2h12")
    exported = export_tf_variables(own)
    spelled = {respell(name): value for name, value in exported.items()}
    spelled |= {"learning_rate:0": np.float32(1), "global_step:0": np.int64(3), "tower/x/Adam_1:0": np.zeros(2)}
    other = small_model("bert_mean_l2h12", seed=1)
    load_tf_variables(other, spelled)
    again = export_tf_variables(other)
    assert all(np.array_equal(exported[name], again[name]) for name in exported)
    first = next(iter(exported))
    averages = {f"{name}/ExponentialMovingAverage": value + 1 for name, value in exported.items()}
    load_tf_variables(other, {**averages, **exported})
    assert np.array_equal(export_tf_variables(other)[first], exported[first])
    with pytest.raises(ValueError, match="are both"):
        load_tf_variables(other, {**exported, f"{first}:0": exported[first]})
