"""Frame sampling: the original's draws from uniforms, even spacing at inference, counts instead of copies."""

import numpy as np
import pytest
import torch

from models.sampling import distinct_frames, evenly_spaced, gather_frames, random_frames, random_sequence
from tests.models.golden_harness import CASES, Golden
from tests.models.small import BERT_KEYS, KEYS, VLAD_KEYS, small_batch, small_model

GOLDEN_RUNS = [(case, run) for case in CASES for run, info in Golden(case).info["runs"].items()]


@pytest.mark.parametrize(("case", "run"), GOLDEN_RUNS)
def test_draws_from_the_golden_uniforms(case, run):
    golden = Golden(case)
    if "sample_uniform" not in golden.info["runs"][run]["fetched"]:
        assert not run.startswith("train"), "only inference of sequence models draws nothing"
        return
    uniform = torch.from_numpy(golden.arrays[f"{run}/sample_uniform"])
    num_frames = torch.tensor(golden.info["runs"][run]["num_frames"])
    expected = golden.arrays[f"{run}/sample_index"]
    drawn = random_frames(uniform, num_frames) if "vlad" in case else random_sequence(uniform, num_frames, 5)
    np.testing.assert_array_equal(drawn, expected)


def test_the_largest_uniform_stays_inside():
    uniform = torch.full((300, 1), 1 - 2**-24)
    num_frames = torch.arange(1, 301)
    assert torch.equal(random_frames(uniform, num_frames)[:, 0], num_frames - 1)
    assert (random_sequence(uniform, num_frames, 5)[:, -1] == num_frames - 1).all()


def test_a_video_without_frames_reads_its_padding():
    assert random_frames(torch.rand(1, 4), torch.tensor([0])).tolist() == [[0, 0, 0, 0]]
    assert random_sequence(torch.rand(1, 1), torch.tensor([0]), 3).tolist() == [[0, 0, 0]]
    assert evenly_spaced(torch.tensor([0]), 3).tolist() == [[0, 0, 0]]


def test_even_spacing():
    assert evenly_spaced(torch.tensor([5, 3, 10]), 5).tolist() == [[0, 1, 2, 3, 4], [0, 0, 1, 1, 2], [0, 2, 4, 6, 8]]


def test_counts_replace_copies_where_that_is_cheaper():
    frames, index = torch.randn(2, 3, 4), torch.tensor([[0, 2, 2, 2], [1, 1, 0, 2]])
    same, counts = distinct_frames(frames, index)
    assert same is frames
    assert counts.tolist() == [[1, 0, 3], [1, 2, 1]]
    drawn, counts = distinct_frames(frames, index[:, :2])
    assert counts is None
    assert torch.equal(drawn, gather_frames(frames, index[:, :2]))


@pytest.mark.parametrize("key", KEYS)
def test_inference_is_reproducible_and_frame_index_overrides_it(key):
    model, (frames, num_frames) = small_model(key).eval(), small_batch()
    index = model.sample_frame_index(num_frames, torch.Generator().manual_seed(1))
    if key in VLAD_KEYS:
        expected = (torch.arange(model.num_sampled_frames) * num_frames[:, None]).div(
            model.num_sampled_frames, rounding_mode="floor"
        )
        assert torch.equal(index, expected)
    else:
        assert index is None
        index = torch.arange(5).expand(4, 5)
    with torch.no_grad():
        first, second, given = (model(frames, num_frames, i).probabilities for i in (None, None, index))
        other = model(frames, num_frames, index.flip(1) * 0).probabilities
    assert torch.equal(first, second)
    torch.testing.assert_close(first, given, rtol=0, atol=1e-6)
    assert (first - other).abs().max() > 1e-4


@pytest.mark.parametrize("key", KEYS)
def test_training_draws_come_from_the_generator(key):
    model = small_model(key, dropout=0.0) if key != "gated_netvlad_h1024c16" else small_model(key)
    model.train()
    frames, num_frames = small_batch(num_steps=40)
    draws = [model.sample_frame_index(num_frames, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert draws[0].shape == (4, model.num_sampled_frames)
    assert (draws[0] < num_frames[:, None]).all()
    drawn = model(frames, num_frames, generator=torch.Generator().manual_seed(1)).probabilities
    given = model(frames, num_frames, frame_index=draws[0]).probabilities
    assert torch.equal(drawn, given)
    torch.manual_seed(5)
    first = model(frames, num_frames).probabilities
    torch.manual_seed(5)
    assert torch.equal(first, model(frames, num_frames).probabilities)


@pytest.mark.parametrize("key", BERT_KEYS)
def test_a_whole_segment_is_its_own_sequence(key):
    model = small_model(key, dropout=0.0)
    frames, _ = small_batch()
    num_frames = torch.full((4,), 5)
    training = model.train()(frames, num_frames).probabilities
    torch.testing.assert_close(training, model.eval()(frames, num_frames).probabilities, rtol=0, atol=1e-6)


@pytest.mark.parametrize("key", BERT_KEYS)
def test_training_draws_one_stretch_of_a_video(key):
    """Neighbouring frames, one draw a video, from its first frame to its last."""
    model, num_frames = small_model(key).train(), torch.full((400,), 12)
    index = model.sample_frame_index(num_frames, torch.Generator().manual_seed(3))
    assert (index.diff() == 1).all()
    assert set(index[:, 0].tolist()) == set(range(12 - index.shape[1] + 1))
    draws = torch.rand(400, 1, generator=torch.Generator().manual_seed(3))
    assert torch.equal(index, random_sequence(draws, num_frames, index.shape[1]))


@pytest.mark.parametrize("key", KEYS)
def test_shapes_that_do_not_belong_together_are_refused(key):
    model, (frames, num_frames) = small_model(key).eval(), small_batch()
    with pytest.raises(ValueError, match=r"frames have shape \(4, 5, 95\): expected \[B, T, 96\]"):
        model(frames[..., 1:], num_frames)
    with pytest.raises(ValueError, match=r"num_frames has shape \(3,\): expected \[4\]"):
        model(frames, num_frames[1:])
    with pytest.raises(ValueError, match=r"frame_index has shape \(4,\)"):
        model(frames, num_frames, num_frames)
    if key in VLAD_KEYS:
        with pytest.raises(ValueError, match=r"frame_index has 2 columns"):
            model(frames, num_frames, torch.zeros(4, 2, dtype=torch.int64))
