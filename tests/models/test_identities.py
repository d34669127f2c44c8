"""The identities the models exploit, against the plain computation: counted frames, shared frames, restricted heads."""

import pytest
import torch

from models import export_tf_variables, gated_netvlad, mix_nextvlad
from models.sampling import gather_frames
from tests.models.small import KEYS, NUM_CLASSES, VLAD_KEYS, small_batch, small_model


@pytest.fixture
def plainly(monkeypatch):
    """Let the models compute every drawn frame, copies included."""

    def switch():
        for module in (gated_netvlad, mix_nextvlad):
            monkeypatch.setattr(module, "distinct_frames", lambda frames, index: (gather_frames(frames, index), None))

    return switch


def options(key):
    return {} if key.startswith("gated") else {"dropout": 0.0}


def skewed_draws(model, num_frames, num_draws_seed=3):
    """Draw frames such that some come often and some never."""
    uniform = torch.rand(
        len(num_frames), model.num_sampled_frames, generator=torch.Generator().manual_seed(num_draws_seed)
    )
    return (uniform**3 * num_frames[:, None]).long()


@pytest.mark.parametrize("key", VLAD_KEYS)
def test_counted_frames_give_the_plain_inference(key):
    model, (frames, num_frames) = small_model(key).double().eval(), small_batch()
    for index in (None, skewed_draws(model, num_frames)):
        counted = model(frames.double(), num_frames, index).probabilities
        with pytest.MonkeyPatch.context() as patch:
            for module in (gated_netvlad, mix_nextvlad):
                patch.setattr(module, "distinct_frames", lambda frames, index: (gather_frames(frames, index), None))
            plain = model(frames.double(), num_frames, index).probabilities
        torch.testing.assert_close(counted, plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("key", VLAD_KEYS)
def test_counted_frames_give_the_plain_training_step(key, plainly):
    """Probabilities, losses, every gradient, and the running statistics of either variance convention."""
    frames, num_frames = small_batch()
    results = []
    for plain in (False, True):
        if plain:
            plainly()
        model = small_model(key, **options(key)).double().train()
        output = model(frames.double(), num_frames, skewed_draws(model, num_frames))
        (output.probabilities.log().sum() + output.regularization_loss).backward()
        results.append((output, export_tf_variables(model), export_tf_variables(model, "grad")))
    (counted, values, gradients), (plain, plain_values, plain_gradients) = results
    torch.testing.assert_close(counted.probabilities, plain.probabilities, rtol=0, atol=1e-11)
    torch.testing.assert_close(counted.regularization_loss, plain.regularization_loss)
    moved = [name for name in values if "moving" in name]
    assert moved
    for name in moved:
        torch.testing.assert_close(torch.tensor(values[name]), torch.tensor(plain_values[name]), rtol=1e-12, atol=1e-12)
    for name, gradient in gradients.items():
        torch.testing.assert_close(torch.tensor(gradient), torch.tensor(plain_gradients[name]), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("key", VLAD_KEYS)
def test_a_segment_costs_its_five_frames(key):
    """What the identity is for: 300 draws out of 5 frames run the network on 5."""
    model, (frames, num_frames) = small_model(key).eval(), small_batch()
    seen = []
    model.vlad["video"].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[1]))
    model(frames, num_frames)
    long_frames, long_num_frames = small_batch(num_steps=400)
    model(long_frames, long_num_frames)
    assert seen == [5, model.num_sampled_frames]


@pytest.mark.parametrize("key", KEYS)
def test_a_restricted_head_gives_the_full_heads_columns(key):
    model, (frames, num_frames) = small_model(key).eval(), small_batch()
    class_ids = torch.tensor([19, 0, 7, 7, 3])
    restricted = model.restrict_classes(class_ids)
    with torch.no_grad():
        full, kept = model(frames, num_frames).probabilities, restricted(frames, num_frames).probabilities
    torch.testing.assert_close(kept, full[:, class_ids], rtol=0, atol=1e-6)
    own = {id(parameter) for parameter in model.parameters()}
    extra = sum(parameter.numel() for parameter in restricted.parameters() if id(parameter) not in own)
    assert extra < sum(parameter.numel() for parameter in model.head.parameters())
    assert model.head is not restricted.head
    with torch.no_grad():
        assert torch.equal(model(frames, num_frames).probabilities, full)


def test_classes_that_do_not_exist_are_refused():
    model = small_model("bert_mean_l2h12")
    with pytest.raises(ValueError, match=r"class_ids go from -1 to 4: there are only 20 classes"):
        model.restrict_classes(torch.tensor([4, -1]))
    with pytest.raises(ValueError, match=r"class_ids go from 3 to 20"):
        model.restrict_classes(torch.tensor([3, NUM_CLASSES]))
    with pytest.raises(ValueError, match=r"expected \[R\] with at least one class"):
        model.restrict_classes(torch.tensor([], dtype=torch.int64))


@pytest.mark.parametrize("key", KEYS)
def test_overlapping_windows_share_their_frames_exactly(key):
    """Frames embedded once, and gathered by windows that overlap, repeat and lack frames, score as the windows do."""
    model = small_model(key).double().eval()
    frames, _ = small_batch(1, 9)
    frames_NF = torch.cat([frames[0], frames.new_zeros(1, frames.shape[2])]).double()
    index_WT = torch.tensor([[0, 1, 2, 3, 4], [1, 2, 3, 4, 5], [0, 0, 0, 1, 2], [6, 7, 8, 9, 9]])
    num_frames = torch.tensor([5, 5, 5, 3])
    shared = model.score_windows(model.embed_frames(frames_NF), index_WT, num_frames)
    plain = model(frames_NF[index_WT], num_frames).probabilities
    torch.testing.assert_close(shared, plain, rtol=0, atol=1e-12)


def test_windows_longer_than_the_draws_score_as_they_are():
    model = small_model("mix_nextvlad_iter60", num_sampled_frames=3).double().eval()
    frames_NF, index_WT = small_batch(1, 9)[0][0].double(), torch.arange(5)[None] + torch.arange(4)[:, None]
    shared = model.score_windows(model.embed_frames(frames_NF), index_WT, torch.full((4,), 5))
    plain = model(frames_NF[index_WT], torch.full((4,), 5)).probabilities
    torch.testing.assert_close(shared, plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("key", [key for key in KEYS if "bert" in key])
def test_what_is_shared_between_windows_is_really_computed_once(key):
    """The first layers' projections run over the frames, not over the windows."""
    model = small_model(key).eval()
    frames, _ = small_batch(1, 9)
    embedded = model.embed_frames(frames[0])
    index_WT = torch.arange(5)[None] + torch.arange(5)[:, None]
    num_frames = torch.full((5,), 5)
    expected = model.score_windows(embedded, index_WT, num_frames)
    for encoder in ("encoder", "frame_encoder", "audio_encoder"):
        if hasattr(model, encoder):
            torch.nn.init.zeros_(getattr(model, encoder).layers[0].query.weight)
    torch.testing.assert_close(model.score_windows(embedded, index_WT, num_frames), expected)


def test_padding_is_masked_in_shared_windows_too():
    model = small_model("bert_mean_l2h12", mask_padding=True).double().eval()
    frames, _ = small_batch(1, 9)
    index_WT, num_frames = torch.arange(5)[None] + torch.arange(3)[:, None], torch.tensor([5, 2, 1])
    shared = model.score_windows(model.embed_frames(frames[0].double()), index_WT, num_frames)
    plain = model(frames[0].double()[index_WT], num_frames).probabilities
    torch.testing.assert_close(shared, plain, rtol=0, atol=1e-12)
    assert not torch.allclose(shared, model(frames[0].double()[index_WT], torch.full((3,), 5)).probabilities)
