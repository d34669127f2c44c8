"""The model of whole videos: each segment among the others of its video, and of no other's."""

import pytest
import torch

from models import create_model, export_tf_variables, list_models, load_tf_variables
from models.registry import VIDEO_MODELS
from tests.models.small import NUM_CLASSES, NUM_FEATURES, SIZES, small_batch, small_model, small_options

SMALL = small_options("frame_scorer")
LENGTHS = torch.tensor([17, 5, 10, 3])


def model(**more):
    return small_model("frame_scorer", **more).eval()


def videos(num_steps=20, seed=0):
    """Four videos of LENGTHS frames, padded with zeros."""
    frames, _ = small_batch(len(LENGTHS), num_steps, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    frames = torch.nn.functional.normalize(torch.randn(frames.shape, generator=generator), dim=2)
    return frames * (torch.arange(num_steps) < LENGTHS[:, None])[:, :, None]


def grid(frames, num_frames):
    """Frames as rows, the windows [B, S, 5] of every segment, and how many frames each shows."""
    batch, steps, _ = frames.shape
    index = torch.arange(batch * steps).view(batch, steps // 5, 5)
    return frames.flatten(0, 1), index, (num_frames[:, None] - 5 * torch.arange(steps // 5)).clamp(0, 5)


def scores_of(scorer, frames, num_frames=LENGTHS):
    rows, index, counts = grid(frames, num_frames)
    return scorer.score_videos(scorer.embed_frames(rows), index, counts)


def test_it_is_known_and_not_among_those_that_score_windows():
    assert VIDEO_MODELS == ("frame_scorer",)
    assert set(VIDEO_MODELS).isdisjoint(list_models())
    with pytest.raises(ValueError, match=r"no model 'frame'; choose one of .*, frame_scorer"):
        create_model("frame")
    scorer = create_model("frame_scorer", 7, (6, 2), **SMALL)
    assert scorer.train().sample_frame_index(torch.tensor([5])) is None
    with pytest.raises(TypeError, match="Bert scores windows by themselves"):
        small_model("bert_mean_l2h12").score_videos((), LENGTHS, LENGTHS)


@pytest.mark.parametrize("values", [{"width": 25, "num_heads": 5}, {"num_heads": 7}, {"num_layers": -1}, {"l2": -1.0}])
def test_options_that_do_not_fit_are_named(values):
    with pytest.raises(ValueError, match=f"^({'|'.join(values)}) = "):
        create_model("frame_scorer", 7, (6, 2), **{**SMALL, **values})


def test_a_segment_scores_the_same_asked_for_alone_or_with_all_of_its_video():
    scorer, frames = model(), videos()
    every = scores_of(scorer, frames)
    assert every.shape == (4, 4, NUM_CLASSES)
    for start, rows in ((0, [0, 1, 2, 3]), (5, [0, 2]), (10, [0]), (15, [0])):
        alone = scorer(frames, LENGTHS, frame_index=torch.full((4, 1), start)).probabilities
        torch.testing.assert_close(alone[rows], every[rows, start // 5])


def test_a_second_outside_the_video_stands_for_the_nearest_segment():
    scorer, frames = model(), videos()
    every, last = scores_of(scorer, frames), (LENGTHS - 1) // 5
    far = scorer(frames, LENGTHS, frame_index=torch.full((4, 1), 2**40)).probabilities
    torch.testing.assert_close(far, every[torch.arange(4), last])
    torch.testing.assert_close(scorer(frames, LENGTHS, frame_index=torch.full((4, 1), -9)).probabilities, every[:, 0])
    with pytest.raises(ValueError, match="2 columns: expected 1"):
        scorer(frames, LENGTHS, frame_index=torch.zeros(4, 2, dtype=torch.int64))


def test_the_video_is_the_linear_softmax_of_its_segments():
    scorer, frames = model(), videos()
    every = scores_of(scorer, frames)
    for row, length in enumerate(LENGTHS.tolist()):
        own = every[row, : -(-length // 5)]
        expected = own.square().sum(0) / own.sum(0)
        torch.testing.assert_close(scorer(frames, LENGTHS).probabilities[row], expected)


@pytest.mark.parametrize("index", [None, torch.tensor([[10], [0], [5], [0]])])
def test_padding_and_the_other_videos_of_a_batch_do_not_matter(index):
    scorer, frames = model(), videos()
    expected = scorer(frames, LENGTHS, frame_index=index).probabilities
    longer = torch.nn.functional.pad(frames, (0, 0, 0, 13))
    torch.testing.assert_close(scorer(longer, LENGTHS, frame_index=index).probabilities, expected)
    order = torch.tensor([2, 0, 3, 1])
    chosen = None if index is None else index[order]
    torch.testing.assert_close(scorer(frames[order], LENGTHS[order], chosen).probabilities, expected[order])
    cut = frames[2:3, :10]
    alone = scorer(cut, LENGTHS[2:3], None if index is None else index[2:3]).probabilities
    torch.testing.assert_close(alone, expected[2:3])


def test_what_stands_where_a_video_has_no_segment_does_not_matter():
    scorer, frames = model(), videos()
    rows, index, counts = grid(frames, LENGTHS)
    expected = scorer.score_videos(scorer.embed_frames(rows), index, counts)
    other = torch.where(counts[:, :, None] > 0, index, 7)
    found = scorer.score_videos(scorer.embed_frames(rows), other, counts)
    torch.testing.assert_close(found[counts > 0], expected[counts > 0])


def test_context_is_seen_where_there_are_layers_and_by_its_place():
    frames = videos()
    changed = frames.clone()
    changed[0, 10:15] = frames[0, 10:15].flip(1)
    swapped = frames.clone()
    swapped[0, 5:10], swapped[0, 10:15] = frames[0, 10:15], frames[0, 5:10]
    for layers, sees in ((2, True), (0, False)):
        scorer = model(num_layers=layers)
        before = scores_of(scorer, frames)
        for other in (changed, swapped):
            after = scores_of(scorer, other)
            assert bool(torch.allclose(after[0, 0], before[0, 0], atol=1e-6)) is not sees
            torch.testing.assert_close(after[1:], before[1:])


def test_every_weight_learns_and_a_video_only_from_its_own_frames():
    scorer = model().train()
    for index in (None, torch.tensor([[10], [0], [5], [0]])):
        scorer.zero_grad()
        frames = videos().requires_grad_()
        scorer(frames, LENGTHS, frame_index=index).probabilities[0].sum().backward()
        assert all(value.grad is not None and bool(value.grad.abs().sum() > 0) for value in scorer.parameters())
        assert bool((frames.grad[0, :17].abs().sum(1) > 0).all())
        assert not frames.grad[1:].any()


def test_classes_are_kept_and_weights_come_back():
    scorer, frames = model(), videos()
    kept = torch.tensor([6, 0, 11])
    restricted = scorer.restrict_classes(kept)
    torch.testing.assert_close(scores_of(restricted, frames), scores_of(scorer, frames)[:, :, kept])
    torch.testing.assert_close(
        restricted(frames, LENGTHS).probabilities, scorer(frames, LENGTHS).probabilities[:, kept]
    )
    other = create_model("frame_scorer", NUM_CLASSES, SIZES, **SMALL).eval()
    load_tf_variables(other, export_tf_variables(scorer))
    assert torch.equal(scores_of(other, frames), scores_of(scorer, frames))


def test_bfloat16_stays_near_and_an_empty_video_is_finite():
    scorer, frames = model(), videos()
    expected = scores_of(scorer, frames)
    held = scorer.restrict_classes(torch.arange(NUM_CLASSES)).hold_linear_weights(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = scores_of(held, frames)
    there = grid(frames, LENGTHS)[2] > 0
    assert (found.float() - expected)[there].abs().max() < 0.05
    empty = model()(torch.zeros(2, 0, NUM_FEATURES), torch.tensor([0, 0]))
    assert empty.probabilities.shape == (2, NUM_CLASSES)
    assert bool(empty.probabilities.isfinite().all())
