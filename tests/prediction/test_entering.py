"""What a GPU sends of its scores, on CPU tensors: the rankings are those of all scores."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.memory_videos import MemoryVideos
from tests.prediction.test_scoring import CLASSES, SHIFTS, Toy
from yt8m_assets.errors import NonFiniteError, OutOfMemoryError
from yt8m_assets.prediction import scoring
from yt8m_assets.prediction.blocks import ScoringOptions, SegmentIndex
from yt8m_assets.prediction.entering import Entering
from yt8m_assets.prediction.scoring import CellScores, ModelCells, score_videos
from yt8m_assets.progress import NullProgress
from yt8m_assets.ranking.topk import StreamingTopK

CPU = torch.device("cpu")


def random_videos(count: int) -> MemoryVideos:
    """Videos of 5 to 300 frames."""
    draws = np.random.default_rng(3)
    names, lengths = draws.permutation(count), draws.integers(5, 301, count)
    contents = [draws.integers(0, 256, (length, 1152), dtype=np.uint8) for length in lengths]
    return MemoryVideos([f"v{number:04d}" for number in names], contents)


def score(videos: Any, model: Any, k: int, **options: Any) -> list[CellScores]:
    index = SegmentIndex.of(videos)
    cells = [CellScores(shift=shift, best=StreamingTopK(CLASSES[::-1], k, index.segments)) for shift in SHIFTS]
    members = [ModelCells(key="toy", model=model, cells=cells)]
    chosen = ScoringOptions(batch_size=64, **options)
    score_videos(videos, index, members, chosen, device=CPU, progress=NullProgress())
    return cells


def send_entering(monkeypatch: pytest.MonkeyPatch, sent: list[Entering]) -> None:
    """Let scores be sent as from a GPU."""

    def send(scores: torch.Tensor, cell: CellScores, block: Any, options: ScoringOptions) -> Entering:
        sent.append(Entering(scores, cell.best, block.edge))
        return sent[-1]

    monkeypatch.setattr(scoring, "_sent", send)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists are full after a few blocks, not after ten thousand segments."""
    monkeypatch.setattr("yt8m_assets.ranking.topk._BLOCK", 16)
    monkeypatch.setattr("yt8m_assets.ranking.topk._ENTERING", 2)
    monkeypatch.setattr("yt8m_assets.ranking.topk._SLACK", 4)


@pytest.mark.parametrize("options", [{}, {"trim_start": 2, "trim_end": 1}])
@pytest.mark.parametrize("share", [1, 8, 10**6])
def test_rankings_are_those_of_all_scores(monkeypatch: pytest.MonkeyPatch, options: dict[str, int], share: int) -> None:
    """Also where more enter than have room, and where many are equal at the end of a list."""
    videos, model = random_videos(60), Toy()
    model.weights = (model.weights * 4).round() / 4  # equal scores abound
    expected = score(videos, model, 50, **options)
    sent: list[Entering] = []
    send_entering(monkeypatch, sent)
    monkeypatch.setattr("yt8m_assets.prediction.entering._SHARE", share)
    found = score(videos, model, 50, **options)
    assert len(sent) > 20
    for cell, other in zip(expected, found, strict=True):
        assert (cell.lowest, cell.highest) == (other.lowest, other.highest)
        one, two = cell.finish(), other.finish()
        assert np.array_equal(one.class_ids, two.class_ids)
        for class_id in one.class_ids:
            for own, others in zip(one.entries(class_id), two.entries(class_id), strict=True):
                assert np.array_equal(own, others)


def test_what_enters_does_not_keep_the_room_it_was_sent_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Page-locked memory for one score in eight of every block, for as many blocks as a list gathers."""
    kept: list[np.ndarray] = []
    update = StreamingTopK.update_entering

    def entering(best: StreamingTopK, counts: np.ndarray, rows: np.ndarray, scores: np.ndarray) -> None:
        kept.extend((rows, scores))
        update(best, counts, rows, scores)

    monkeypatch.setattr(StreamingTopK, "update_entering", entering)
    sent: list[Entering] = []
    send_entering(monkeypatch, sent)
    score(random_videos(60), Toy(), 50)
    assert len(kept) > 20
    assert all(array.base is None for array in kept)


def test_a_model_whose_scores_have_no_room_on_the_device_ends_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    videos, shared = random_videos(20), Toy()
    index = SegmentIndex.of(videos)  # type: ignore[arg-type]
    members = [
        ModelCells(key=key, model=shared, cells=[CellScores(shift=0, best=StreamingTopK(CLASSES, 50, index.segments))])
        for key in ("good", "bad")
    ]
    (good,), (bad,) = (member.cells for member in members)

    def send(scores: torch.Tensor, cell: CellScores, block: Any, options: ScoringOptions) -> Any:
        if cell is bad:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return Entering(scores, cell.best, block.edge)

    monkeypatch.setattr(scoring, "_sent", send)
    score_videos(videos, index, members, ScoringOptions(batch_size=64), device=CPU, progress=NullProgress())  # type: ignore[arg-type]
    assert good.finish().score.size
    with pytest.raises(OutOfMemoryError, match=r"bad: .*lower prediction\.batch_size"):
        bad.finish()


def test_what_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A score below every list's end is seen all the same."""
    videos, model = random_videos(60), Toy()
    forward = model.forward
    calls = iter(range(10**6))

    def broken(frames: torch.Tensor, num_frames: torch.Tensor) -> Any:
        output = forward(frames, num_frames)
        if next(calls) == 100:
            output.probabilities[3, 5] = float("nan")
        return output

    monkeypatch.setattr(model, "forward", broken)
    sent: list[Entering] = []
    send_entering(monkeypatch, sent)
    cells = score(videos, model, 50)
    assert sent
    with pytest.raises(NonFiniteError, match=r"class .* for segment v.* is nan"):
        for cell in cells:
            cell.finish()


@pytest.mark.parametrize(
    ("options", "entering"),
    [({}, True), ({"trim_start": 1}, True), ({"video_weight": 0.2}, False), ({"candidate_classes": 3}, False)],
)
def test_a_gpu_sends_all_where_a_video_decides_together(options: dict[str, Any], entering: bool) -> None:
    class Elsewhere(torch.Tensor):
        device = torch.device("cuda")

    best = StreamingTopK(CLASSES, 10, SegmentIndex.of(random_videos(4)).segments)  # type: ignore[arg-type]
    scores = torch.zeros(0, len(CLASSES)).as_subclass(Elsewhere)
    made: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "Entering", lambda *_: made.append("entering"))
        patch.setattr(scoring, "Arriving", lambda *_: made.append("all"))
        block: Any = type("Block", (), {"edge": None})
        scoring._sent(scores, CellScores(shift=0, best=best), block, ScoringOptions(**options))
    assert made == ["entering" if entering else "all"]
