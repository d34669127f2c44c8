"""Models of whole videos in a pass over blocks: every video by itself, at every shift, as scored alone."""

import numpy as np
import pytest
import torch

from models import FrameModel, create_model
from tests.prediction.test_scoring import CLASSES, SHIFTS, Toy, run, videos
from yt8m_assets.data.dataset.windows import segment_frame_index, take_frames
from yt8m_assets.data.records.features import model_inputs
from yt8m_assets.prediction.whole_videos import scorer_of, video_grids

__all__ = ["videos"]


def scorer() -> FrameModel:
    torch.manual_seed(0)
    return create_model("frame_scorer", len(CLASSES), width=16, num_layers=1, num_heads=2, intermediate_size=8).eval()


def alone(model: FrameModel, frames: np.ndarray, shift: int, edges: str) -> np.ndarray:
    """Scores [S, R] of one video, by `forward` on the frames that its shifted windows show, one after the other."""
    index, starts, _ = segment_frame_index(len(frames), shift, edges)
    shown, valid = (torch.from_numpy(part.reshape(1, -1, *part.shape[2:])) for part in take_frames(frames, index))
    inputs = model_inputs(shown, valid)
    count = torch.tensor([5 * len(starts)])
    with torch.inference_mode():
        rows = [model(inputs, count, frame_index=torch.tensor([[5 * n]])).probabilities for n in range(len(starts))]
    return torch.cat(rows).numpy()


@pytest.mark.parametrize("edges", ["clamp", "wrap"])
@pytest.mark.parametrize("batch_size", [1, 40, 10_000])
def test_every_segment_scores_what_its_video_alone_gives(videos, edges, batch_size):
    model = scorer()
    cells = run(videos, {"scorer": model}, edges=edges, batch_size=batch_size)
    expected = {shift: {} for shift in SHIFTS}
    for number in range(len(videos)):
        for shift in SHIFTS:
            for place, row in enumerate(alone(model, videos.read(number), shift, edges)):
                expected[shift][f"{videos.video_ids[number]}:{5 * place}"] = row
    for shift in SHIFTS:
        ranking = cells["scorer", shift].finish()
        ids = ranking.segments.ids()
        assert set(ids.tolist()) == set(expected[shift])
        for column, class_id in enumerate(ranking.class_ids.tolist()):
            segment, score = ranking.entries(class_id)
            given = [expected[shift][name][column] for name in ids[segment].tolist()]
            np.testing.assert_allclose(score, given, atol=2e-6)


def test_windows_beside_it_rank_as_without_it(videos):
    together = run(videos, {"toy": Toy(), "scorer": scorer()}, (0, 1))
    plain = run(videos, {"toy": Toy()}, (0, 1))
    for cell, scores in plain.items():
        ours, theirs = together[cell].finish(), scores.finish()
        assert ours.segment.tolist() == theirs.segment.tolist()
        assert ours.score.tolist() == theirs.score.tolist()
    assert scorer_of(model := scorer()) == model.score_videos
    assert scorer_of(toy := Toy()) == toy.score_windows


def test_a_videos_windows_follow_each_other_in_every_shift():
    grid, there = video_grids(np.array([0, 3, 4]), 6)
    assert grid.tolist() == [[0, 1, 2], [3, 3, 3], [4, 5, 5]]
    assert grid[there].tolist() == list(range(6))
