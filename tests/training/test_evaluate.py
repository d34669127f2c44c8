from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.support import FEATURE_SIZES, NUM_CLASSES, RATED
from yt8m_assets.data.dataset.memory import load_videos
from yt8m_assets.data.dataset.reading import Reading
from yt8m_assets.data.dataset.segments import SegmentTable
from yt8m_assets.data.records.features import model_inputs
from yt8m_assets.errors import DataError, NonFiniteError
from yt8m_assets.evaluation.picking import whole_scores
from yt8m_assets.training import evaluate
from yt8m_assets.training.artifacts import ModelSpec
from yt8m_assets.training.evaluate import (
    NUM_DIVISIONS,
    HoldoutEvaluation,
    HoldoutPairs,
    half_scores,
    mean_average_precision,
    rated_pairs,
)
from yt8m_assets.training.interruption import EvaluationInterrupted, StopRequest

SPEC = ModelSpec(
    architecture="mix_nextvlad_iter60",
    overrides={"num_clusters": 4, "hidden_size": 16, "num_groups": 4, "gating_reduction": 4, "num_sampled_frames": 6},
    num_classes=NUM_CLASSES,
    feature_sizes=(16, 8),
    max_frames=30,
)


@pytest.fixture(scope="module")
def table(shards: Path) -> SegmentTable:
    return segment_table(shards)


def segment_table(shards: Path) -> SegmentTable:
    uris = sorted(map(str, shards.glob("validate*.tfrecord")))
    videos = load_videos(uris, Reading(max_frames=30, feature_sizes=FEATURE_SIZES))
    return SegmentTable(videos, num_classes=NUM_CLASSES)


@pytest.fixture(autouse=True)
def several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "BATCH_SIZE", 20)  # of 72 segments


def plain_map(scores: dict[tuple[int, int], float], labels: dict[tuple[int, int], bool], ids: list[Any]) -> float:
    """The average precisions by the book, one class at a time; equal scores by id."""
    precisions = []
    for column in sorted({c for _, c in scores}):
        ranked = sorted((s for s, c in scores if c == column), key=lambda s: (-scores[s, column], ids[s]))
        hits, total = 0, 0.0
        for rank, segment in enumerate(ranked, start=1):
            if labels[segment, column]:
                hits += 1
                total += hits / rank
        if hits:
            precisions.append(total / hits)
    return sum(precisions) / len(precisions)


def test_map_equals_the_plain_loop_with_ties_by_id(table: SegmentTable) -> None:
    pairs = rated_pairs(table)
    assert pairs.class_ids.tolist() == sorted(RATED)
    ids = list(zip(table.video_ids, table.starts.tolist(), strict=True))
    rng = np.random.default_rng(0)
    for digits in (1, 6):
        values = rng.random(len(pairs.rows)).round(digits)
        keys = list(zip(pairs.rows.tolist(), pairs.columns.tolist(), strict=True))
        scores = dict(zip(keys, values.tolist(), strict=True))
        labels = dict(zip(keys, pairs.positive.tolist(), strict=True))
        assert mean_average_precision(pairs, values) == pytest.approx(plain_map(scores, labels, ids), abs=1e-12)


def test_a_class_without_a_positive_is_left_out() -> None:
    pairs = HoldoutPairs(
        rows=np.array([0, 1, 0, 1]),
        columns=np.array([0, 0, 1, 1]),
        positive=np.array([True, False, False, False]),
        class_ids=np.array([3, 7]),
        tie_order=np.array([0, 1]),
        in_first_half=np.zeros((1, 4), bool),
    )
    assert mean_average_precision(pairs, np.array([0.1, 0.9, 0.5, 0.5])) == 0.5
    assert half_scores(pairs, np.array([0.1, 0.9, 0.5, 0.5])) == {}  # nothing lies in the first half


def test_scores_on_halves_are_those_of_half_of_the_videos(table: SegmentTable) -> None:
    pairs = rated_pairs(table)
    values = np.random.default_rng(0).random(len(pairs.rows))
    found = half_scores(pairs, values)
    assert set(found) == {f"half_{number}{side}" for number in range(NUM_DIVISIONS) for side in "ab"}
    ids = list(zip(table.video_ids, table.starts.tolist(), strict=True))
    videos = np.array(table.video_ids)[pairs.rows]
    for number, first in enumerate(pairs.in_first_half):
        assert not set(videos[first]) & set(videos[~first])  # a video is on one side, and half of them on each
        assert len(set(table.video_ids)) // 2 - 2 <= len(set(videos[first])) <= len(set(table.video_ids)) // 2
        for side, chosen in (("a", first), ("b", ~first)):
            keys = list(zip(pairs.rows[chosen].tolist(), pairs.columns[chosen].tolist(), strict=True))
            scores = dict(zip(keys, values[chosen].tolist(), strict=True))
            labels = dict(zip(keys, pairs.positive[chosen].tolist(), strict=True))
            assert found[f"half_{number}{side}"] == pytest.approx(plain_map(scores, labels, ids), abs=1e-12)
    assert len({tuple(first) for first in pairs.in_first_half.tolist()}) == NUM_DIVISIONS


def test_the_pairs_are_the_ratings_of_the_table(table: SegmentTable) -> None:
    pairs, ratings = rated_pairs(table), table.ratings
    found = zip(pairs.rows.tolist(), pairs.class_ids[pairs.columns].tolist(), pairs.positive.tolist(), strict=True)
    segments = table.rating_segments.tolist()
    assert sorted(found) == sorted(zip(segments, ratings.class_ids.tolist(), ratings.scores > 0, strict=True))
    named = sorted(range(len(table)), key=lambda segment: (table.video_ids[segment], table.starts[segment]))
    assert pairs.tie_order[named].tolist() == list(range(len(table)))


def test_scores_are_those_of_the_whole_head(table: SegmentTable) -> None:
    model = SPEC.build(3)
    evaluation = HoldoutEvaluation(table, torch.device("cpu"))
    scores = evaluation.scores(model.eval())
    batch = table.batch(np.arange(len(table)))
    with torch.no_grad():
        whole = model(model_inputs(batch.frames, batch.valid), batch.num_frames).probabilities
    pairs = evaluation.pairs
    np.testing.assert_allclose(scores, whole.numpy()[pairs.rows, pairs.class_ids[pairs.columns]], atol=1e-6)


def test_only_frames_are_made_and_shipped(table: SegmentTable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dense labels of 3862 classes cost many times what the frames of a segment do, and nothing needs them."""
    evaluation = HoldoutEvaluation(table, torch.device("cpu"))
    score = evaluation(SPEC.build(3))
    monkeypatch.delattr(SegmentTable, "annotations")
    assert HoldoutEvaluation(table, torch.device("cpu"))(SPEC.build(3)) == score
    assert set(whole_scores(score)) == {"map"}


def test_the_training_state_is_untouched(table: SegmentTable) -> None:
    model = SPEC.build(3).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    HoldoutEvaluation(table, torch.device("cpu"))(model)
    assert model.training
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert (np.random.get_state()[1] == numpy_state).all()  # type: ignore[index]
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_an_evaluation_is_left_between_two_batches(table: SegmentTable, monkeypatch: pytest.MonkeyPatch) -> None:
    stop, read, inputs = StopRequest(), [], SegmentTable.inputs

    def stopping(self: SegmentTable, segments: np.ndarray) -> Any:
        read.append(int(segments[0]))
        if len(read) == 2:
            stop.set()
        return inputs(self, segments)

    monkeypatch.setattr(SegmentTable, "inputs", stopping)
    model = SPEC.build(3).train()
    with pytest.raises(EvaluationInterrupted):
        HoldoutEvaluation(table, torch.device("cpu"))(model, stop)
    assert read == [0, 20]
    assert model.training


def test_evaluation_fails_by_name(shards: Path) -> None:
    table = segment_table(shards)
    model = SPEC.build(3)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    first = table.video_ids[0]
    with pytest.raises(NonFiniteError, match=f"hold-out scores are not finite, among the videos {first}"):
        HoldoutEvaluation(table, torch.device("cpu"))(model)
    table.ratings = replace(table.ratings, scores=np.zeros_like(table.ratings.scores))
    with pytest.raises(DataError, match="no positively rated segment"):
        rated_pairs(table)
