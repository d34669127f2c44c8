"""BERT and BERT cross: poolings, padding, and the input each refuses."""

from dataclasses import asdict

import pytest
import torch

from models import create_model
from models.bert import BertOptions
from tests.models.small import BERT_KEYS, small_batch, small_model

POOLINGS = ["concat", "last", "mean", "attention"]


PUBLISHED = {
    "num_layers": 2, "num_heads": 12, "intermediate_size": 3072, "pooling": "concat", "segment_frames": 5,
    "dropout": 0.1, "mask_padding": False, "num_mixtures": 5, "l2": 1e-6,
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "own"),
    [
        ("bert_l2h12", {}),
        ("bert_l3h12", {"num_layers": 3}),
        ("bert_first_l2h12", {"pooling": "last"}),
        ("bert_mean_l2h12", {"pooling": "mean"}),
        ("bert_cross_attn_l2h8", {"num_heads": 8, "pooling": "attention"}),
        ("bert_cross_mean_l2h8", {"num_heads": 8, "pooling": "mean"}),
    ],
)
def test_the_defaults_are_the_published_models(key, own):
    assert asdict(BertOptions()) == PUBLISHED
    with torch.device("meta"):
        model = create_model(key)
    assert asdict(model.options) == PUBLISHED | own
    assert (model.num_classes, model.feature_sizes) == (3862, (1024, 128))


def probabilities(model, frames, num_frames, index=None):
    with torch.no_grad():
        return model.eval()(frames, num_frames, index).probabilities


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("key", ["bert_l2h12", "bert_cross_mean_l2h8"])
def test_padding_takes_part_unless_masked(key, pooling):
    """The original never looks at num_frames; with mask_padding nothing behind it matters."""
    frames, num_frames = small_batch()
    assert num_frames.min() < 5
    noise = torch.randn_like(frames) * (torch.arange(5) >= num_frames[:, None])[:, :, None]
    open_model, masked_model = (small_model(key, pooling=pooling, mask_padding=masked) for masked in (False, True))
    change = probabilities(open_model, frames + noise, num_frames) - probabilities(open_model, frames, num_frames)
    assert change[num_frames < 5].abs().amax(1).min() > 1e-5
    masked = probabilities(masked_model, frames, num_frames)
    torch.testing.assert_close(probabilities(masked_model, frames + noise, num_frames), masked, rtol=0, atol=1e-6)
    whole = num_frames == 5
    torch.testing.assert_close(masked[whole], probabilities(open_model, frames, num_frames)[whole], rtol=0, atol=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS[1:])
def test_a_masked_video_is_scored_like_one_of_just_its_frames(pooling):
    model = small_model("bert_mean_l2h12", pooling=pooling, mask_padding=True)
    frames, num_frames = small_batch(num_steps=9)
    masked = probabilities(model, frames, num_frames)
    for row, length in enumerate(num_frames.tolist()):
        alone = probabilities(model, frames[row : row + 1, :length], num_frames[row : row + 1])
        torch.testing.assert_close(masked[row : row + 1], alone, rtol=0, atol=1e-6)


def test_a_masked_video_without_frames_is_finite():
    model = small_model("bert_mean_l2h12", mask_padding=True)
    assert probabilities(model, torch.zeros(1, 5, 96), torch.tensor([0])).isfinite().all()


@pytest.mark.parametrize("key", BERT_KEYS)
def test_frames_are_a_set_but_for_concat_and_last(key):
    model, (frames, _) = small_model(key), small_batch()
    num_frames = torch.full((4,), 5)
    change = probabilities(model, frames.flip(1), num_frames) - probabilities(model, frames, num_frames)
    ordered = model.options.pooling in ("concat", "last")
    assert (change.abs().max() > 1e-3) == ordered
    assert ordered or change.abs().max() < 1e-6


def test_last_pools_the_last_frame():
    model = small_model("bert_first_l2h12")
    frames = torch.randn(2, 5, 96)
    pooled = model.pooler(frames)
    assert torch.equal(pooled, frames[:, 4])


def test_concat_is_built_for_its_number_of_frames():
    frames, num_frames = small_batch(num_steps=7)
    with pytest.raises(ValueError, match="frames have T = 7: pooling 'concat' was built for 5"):
        probabilities(small_model("bert_l2h12"), frames, num_frames)
    seven = small_model("bert_l2h12", segment_frames=7)
    assert probabilities(seven, frames, num_frames).shape == (4, 20)
    assert seven.train()(frames, num_frames).probabilities.shape == (4, 20)


def test_dropout_acts_in_training_alone():
    frames, num_frames = small_batch()[0], torch.full((4,), 5)
    model = small_model("bert_mean_l2h12", dropout=0.5)
    assert torch.equal(probabilities(model, frames, num_frames), probabilities(model, frames, num_frames))
    model.train()
    assert not torch.equal(model(frames, num_frames).probabilities, model(frames, num_frames).probabilities)


def test_overrides_change_the_architecture():
    model = small_model("bert_cross_attn_l2h8", num_layers=3, num_heads=4, num_mixtures=2, l2=0.5)
    assert [len(e.layers) for e in (model.frame_encoder, model.audio_encoder, model.all_encoder)] == [2, 2, 1]
    assert model.head.gates.out_features == 20 * 3
    expected = 0.25 * (model.head.gates.weight.square().sum() + model.head.experts.weight.square().sum())
    torch.testing.assert_close(model.l2_penalty(), expected)
