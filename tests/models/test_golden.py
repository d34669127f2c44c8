"""Every golden case of the original (SPEC section 15): both regimes, inference and training, tiny and full width."""

import numpy as np
import pytest
import torch

from tests.models.golden_harness import (
    CASES,
    Golden,
    TensorFlowAdam,
    export_sums,
    intermediates,
    recipe_variable,
    training_step,
)

NAMES = [*CASES, *(f"{case}__fulldim" for case in CASES)]
RUNS = {name: list(Golden(name).info["runs"]) for name in NAMES}
INFERENCE = [(name, run) for name in NAMES for run in RUNS[name] if not run.startswith("train")]
TRAINING = [(name, run) for name in NAMES for run in RUNS[name] if run.startswith("train")]
# Three steps at MixNeXtVLAD's true width take a minute and 5 GB; the first of them is in the default suite.
LONG = [(name, run) for name, run in TRAINING if name.startswith("mix") and name.endswith("__fulldim")]
WIDE = [
    *((name, run) for name, run in INFERENCE if name.startswith("mix") and name.endswith("__fulldim") and run == "vid"),
    *((name, run) for name, run in TRAINING if name.endswith("__fulldim") and run == "train_vid"),
    *((f"mixnextvlad_iter{number}__fulldim", "seg") for number in (60, 300)),
    ("mixnextvlad_iter300__fulldim", "train_seg"),
]
"""At the true width, which takes seconds each: one run of each architecture is enough for every day."""
ZERO_GRADIENT = 5e-6
"""Below this a gradient is rounding: keys' biases and shifts in front of a batch norm have none."""
ROUNDED = ("mixnextvlad_iter300", "train_seg")
"""Here the stored norms carry 2.6e-4 of the original's own float32 rounding (see the float64 test below)."""
SPREAD = ("netvlad_hs1024_cs8__fulldim", "train_vid")
"""Here processors' float32 kernels differ by up to 6.5e-5 and the stored norms are 8.4e-5 off: judged in float64."""


@pytest.fixture(scope="module")
def case(request):
    golden = Golden(request.param)
    return golden, golden.build()


@pytest.fixture(scope="module", autouse=True)
def free_variables():
    """Keep the gigabyte of full-width weights no longer than this module needs it."""
    yield
    recipe_variable.cache_clear()


def of(pairs):
    """Cases and runs; the wide ones are in the slow tier."""
    marked = [
        pytest.param(name, run, marks=[pytest.mark.slow] if (name, run) in WIDE else [], id=f"{name}-{run}")
        for name, run in pairs
    ]
    return pytest.mark.parametrize(("case", "run"), marked, indirect=["case"])


def assert_intermediates(seen, golden, run, tolerance):
    prefixes = ("seq_", "vlad_", "head_input_", "logits_", "mix_weight_logits")
    stored = {key.split("/", 1)[1] for key in golden.arrays if key.startswith(f"{run}/")}
    names = {key for key in stored if key.startswith(prefixes)}
    assert names <= set(seen)
    for name in names:
        expected = golden.arrays[f"{run}/{name}"]
        error = np.abs(seen[name].numpy() - expected).max() / max(1, np.abs(expected).max())
        assert error < tolerance, name


@of(INFERENCE)
def test_inference_is_the_originals(case, run):
    golden, model = case
    golden.load(model, run)
    with torch.no_grad(), intermediates(model) as seen:
        output = model(*golden.inputs(run))
    np.testing.assert_allclose(output.probabilities, golden.arrays[f"{run}/predictions"], rtol=0, atol=1e-5)
    assert output.regularization_loss == 0
    assert_intermediates(seen, golden, run, 5e-5)


@of(TRAINING)
def test_a_training_step_is_the_originals(case, run):
    golden, model = case
    golden.load(model, run)
    optimizer = None if (golden.name, run) in LONG else TensorFlowAdam(model)
    step = training_step(model, golden, run, optimizer)
    probabilities = step.output.probabilities.detach().numpy()
    tolerance = 1e-5 if golden.tiny else 2e-5
    np.testing.assert_allclose(probabilities, golden.arrays[f"{run}/predictions"], rtol=0, atol=tolerance)
    assert_intermediates(step.seen, golden, run, 5e-5)
    for name, loss in step.losses.items():
        assert loss == pytest.approx(golden.arrays[f"{run}/{name}"], rel=1e-5, abs=1e-12), name
    for name, expected in golden.expected(run, "grad").items():
        error = np.linalg.norm(step.gradients[name] - expected)
        assert error <= 1e-4 * np.linalg.norm(expected), name
    norms = golden.info["runs"][run]["grad_norms"]
    assert set(norms) == set(step.gradient_norms)
    relative = 3e-4 if (golden.name, run) == ROUNDED else 1e-4
    gradient_norms = norms_in_float64(golden, run) if (golden.name, run) == SPREAD else step.gradient_norms
    for name, expected in norms.items():
        assert gradient_norms[name] == pytest.approx(expected, rel=relative, abs=ZERO_GRADIENT), name
    for name, expected in golden.expected(run, "bn_after1").items():
        np.testing.assert_allclose(step.statistics[name], expected, rtol=1e-5, atol=1e-6, err_msg=name)
    for name, expected in golden.expected(run, "adam_after1").items():
        np.testing.assert_allclose(step.after[name], expected, rtol=1e-5, atol=2e-5, err_msg=name)
    if optimizer is not None:
        assert_three_steps(model, golden, run, optimizer, step.losses["label_loss"])


def assert_three_steps(model, golden, run, optimizer, first_loss):
    """Continue for two steps on the same batch: the loss before each, and the sum of every variable after the last."""
    losses = [first_loss] + [training_step(model, golden, run, optimizer).losses["label_loss"] for _ in range(2)]
    np.testing.assert_allclose(losses, golden.arrays[f"{run}/label_loss_steps"], rtol=1e-4)
    info = golden.info["runs"][run]
    sums = export_sums(model)
    assert set(sums) == set(info["var_sum_after3"])
    for name, expected in info["var_sum_after3"].items():
        # A step moves each value by at most 1e-4, in a direction that rounding decides where there is no gradient.
        num_values = np.prod(golden.info["variables"][name]["shape"])
        slack = 0.05 if info["grad_norms"].get(name, 1) < ZERO_GRADIENT else 1e-3
        assert sums[name] == pytest.approx(expected, rel=1e-5, abs=3e-4 * slack * num_values), name


def norms_in_float64(golden, run):
    return training_step(golden.load(golden.build(torch.float64), run), golden, run, None).gradient_norms


@pytest.mark.parametrize(("place", "rounding"), [(ROUNDED, 2e-5), (SPREAD, 1e-4)], ids=["rounded", "spread"])
def test_where_the_stored_gradients_are_rounded_ours_are_those_of_float64(place, rounding):
    name, run = place
    golden = Golden(name)
    ours = training_step(golden.load(golden.build(), run), golden, run, None).gradient_norms
    assert ours == pytest.approx(norms_in_float64(golden, run), rel=rounding, abs=ZERO_GRADIENT)


@pytest.mark.slow
@of(LONG)
def test_three_steps_at_full_width_are_the_originals(case, run):
    golden, model = case
    golden.load(model, run)
    optimizer = TensorFlowAdam(model)
    step = training_step(model, golden, run, optimizer)
    assert_three_steps(model, golden, run, optimizer, step.losses["label_loss"])


@pytest.mark.slow
@of([pair for pair in TRAINING if pair[0].endswith("__fulldim")])
def test_full_width_training_in_float64(case, run):
    golden, _ = case
    model = golden.build(torch.float64)
    golden.load(model, run)
    with torch.no_grad():
        frames, num_frames, index = golden.inputs(run, torch.float64)
        probabilities = model(frames, num_frames, frame_index=index).probabilities
    np.testing.assert_allclose(probabilities, golden.arrays[f"{run}/predictions"], rtol=0, atol=1e-5)
