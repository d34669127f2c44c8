"""How the models run: bfloat16 autocast, torch.compile without graph breaks, torch.export."""

import pytest
import torch

from models import export_tf_variables
from models.layers import BatchNorm
from tests.models.small import KEYS, VLAD_KEYS, small_batch, small_model

FAMILIES = ["bert_cross_attn_l2h8", "gated_netvlad_h1024c16", "mix_nextvlad_iter60"]
"""One of each in the default suite, where tracing all nine would take long; the rest are marked slow."""
IN_TURN = [*FAMILIES, *(pytest.param(key, marks=pytest.mark.slow) for key in KEYS if key not in FAMILIES)]
# Torch's own code generator warns about a part of torch.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")


@pytest.fixture(autouse=True)
def forget_compiled_code():
    yield
    torch.compiler.reset()


def without_dropout(key, **more):
    return small_model(key, **({} if key.startswith("gated") else {"dropout": 0.0}), **more)


@pytest.mark.parametrize("key", KEYS)
def test_bfloat16_autocast_stays_close_and_returns_float32(key):
    model, (frames, num_frames) = without_dropout(key).eval(), small_batch()
    with torch.no_grad():
        exact = model(frames, num_frames).probabilities
        with torch.autocast("cpu", torch.bfloat16):
            low = model(frames, num_frames)
    assert low.probabilities.dtype == torch.float32
    assert low.regularization_loss.dtype == torch.float32
    assert 0 < (low.probabilities - exact).abs().max() < 0.05
    correlation = torch.corrcoef(torch.stack([exact.flatten(), low.probabilities.flatten()]))[0, 1]
    assert correlation > 0.999


@pytest.mark.parametrize("key", KEYS)
def test_weights_held_in_bfloat16_change_no_bit_of_an_autocast_pass(key):
    model, (frames, num_frames) = without_dropout(key).eval(), small_batch()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        expected = model(frames, num_frames).probabilities
        held = model.hold_linear_weights(torch.bfloat16)(frames, num_frames).probabilities
    assert held.dtype == torch.float32
    assert torch.equal(held, expected)


@pytest.mark.parametrize("key", KEYS)
def test_bfloat16_training_gives_finite_float32_gradients(key):
    model, (frames, num_frames) = without_dropout(key).train(), small_batch()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(frames, num_frames)
    (output.probabilities.log().mean() + output.regularization_loss + model.l2_penalty()).backward()
    gradients = export_tf_variables(model, "grad")
    assert all(torch.from_numpy(gradient).isfinite().all() for gradient in gradients.values())
    assert {gradient.dtype.name for gradient in gradients.values()} == {"float32"}


@pytest.mark.parametrize("key", VLAD_KEYS)
def test_normalisations_and_softmaxes_stay_in_float32(key):
    """Under autocast a batch norm sees bfloat16 products and still tracks and returns float32."""
    model, (frames, num_frames) = without_dropout(key).train(), small_batch()
    dtypes = set()
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.register_forward_hook(lambda module, inputs, output: dtypes.add(output.dtype))
    for vlad in model.vlad.values():
        vlad.register_forward_hook(lambda module, inputs, output: dtypes.add(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(frames, num_frames)
    assert dtypes == {torch.float32}


def assert_compiles(key, training, backend="inductor"):
    model, (frames, num_frames) = without_dropout(key).train(training), small_batch()
    index = model.sample_frame_index(num_frames, torch.Generator().manual_seed(1))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    results = []
    for call in (model, torch.compile(model, fullgraph=True, backend=backend)):
        model.load_state_dict(state)
        model.zero_grad()
        with torch.set_grad_enabled(training):
            output = call(frames, num_frames, index)
        if training:
            (output.probabilities.log().mean() + output.regularization_loss).backward()
        results.append((output, export_tf_variables(model), export_tf_variables(model, "grad") if training else {}))
    (plain, values, gradients), (compiled, compiled_values, compiled_gradients) = results
    torch.testing.assert_close(compiled.probabilities, plain.probabilities, rtol=0, atol=1e-5)
    for one, other in ((values, compiled_values), (gradients, compiled_gradients)):
        for name, value in one.items():
            torch.testing.assert_close(torch.from_numpy(other[name]), torch.from_numpy(value), rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("key", KEYS)
def test_every_model_compiles_into_one_graph(key, training):
    assert_compiles(key, training)


@pytest.mark.parametrize("key", IN_TURN)
def test_training_is_traced_without_graph_breaks(key):
    """Without the code generator: with it a model takes a minute on one core."""
    assert_compiles(key, training=True, backend="eager")


@pytest.mark.slow
@pytest.mark.parametrize("key", KEYS)
def test_inference_is_traced_with_its_own_sampling(key):
    model, (frames, num_frames) = small_model(key).eval(), small_batch()
    traced = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(traced(frames, num_frames)[0], model(frames, num_frames)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("key", IN_TURN)
def test_every_model_exports_with_any_batch_size(key):
    model = small_model(key).eval()
    batch = torch.export.Dim("batch", min=2, max=1024)
    shapes = {"frames": {0: batch}, "num_frames": {0: batch}}
    program = torch.export.export(model, small_batch(4), dynamic_shapes=shapes)
    for batch_size in (2, 7):
        inputs = small_batch(batch_size, seed=3)
        exported = program.module()(*inputs)
        torch.testing.assert_close(exported[0], model(*inputs)[0], rtol=0, atol=1e-6)


def test_a_restricted_model_exports():
    model = small_model("gated_netvlad_h1024c16").eval().restrict_classes(torch.tensor([4, 1]))
    program = torch.export.export(model, small_batch(4))
    assert program.module()(*small_batch(4))[0].shape == (4, 2)


def test_restricting_a_compiled_model_does_not_inherit_its_code():
    model, inputs = small_model("bert_mean_l2h12").eval(), small_batch()
    model.compile(backend="eager")
    full = model(*inputs).probabilities
    kept = model.restrict_classes(torch.tensor([2, 0]))(*inputs).probabilities
    torch.testing.assert_close(kept, full[:, [2, 0]], rtol=0, atol=1e-6)
