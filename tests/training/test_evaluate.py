from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.training.support import NUM_CLASSES, RATED
from yt8m_assets.data.batches import Batch
from yt8m_assets.errors import DataError, NonFiniteError
from yt8m_assets.training.artifacts import ModelSpec
from yt8m_assets.training.evaluate import HoldoutEvaluation, HoldoutPairs, collect_pairs, mean_average_precision

SPEC = ModelSpec(
    architecture="mix_nextvlad_iter60",
    overrides={"num_clusters": 4, "hidden_size": 16, "num_groups": 4, "gating_reduction": 4, "num_sampled_frames": 6},
    num_classes=NUM_CLASSES,
    feature_sizes=(16, 8),
    max_frames=30,
)


def make_batches(num_segments: int = 23, size: int = 8) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    batches = []
    for first in range(0, num_segments, size):
        count = min(size, num_segments - first)
        labels, weights = torch.zeros(count, NUM_CLASSES), torch.zeros(count, NUM_CLASSES)
        for row in range(count):
            for column in (RATED[(first + row) % 4], RATED[(first + row * 2) % 3]):
                weights[row, column] = 1
                labels[row, column] = float(torch.rand((), generator=generator) > 0.4)
        batches.append(
            Batch(
                frames=torch.randint(0, 256, (count, 5, 24), dtype=torch.uint8, generator=generator),
                valid=torch.ones(count, 5, dtype=torch.bool),
                num_frames=torch.full((count,), 5),
                labels=labels,
                label_weights=weights,
                video_ids=tuple(f"v{first + row:03d}" for row in range(count)),
                starts=torch.full((count,), 5),
            )
        )
    return batches


BATCHES = make_batches()


def one_pass() -> Iterator[Batch]:
    return iter(BATCHES)


def plain_map(scores: dict[tuple[int, int], float], labels: dict[tuple[int, int], bool]) -> float:
    """The average precisions by the book, one class at a time; equal scores by segment."""
    precisions = []
    for column in sorted({c for _, c in scores}):
        ranked = sorted((s for s, c in scores if c == column), key=lambda s: (-scores[s, column], s))
        hits, total = 0, 0.0
        for rank, segment in enumerate(ranked, start=1):
            if labels[segment, column]:
                hits += 1
                total += hits / rank
        if hits:
            precisions.append(total / hits)
    return sum(precisions) / len(precisions)


def test_map_equals_the_plain_loop_with_ties_by_id() -> None:
    pairs = collect_pairs(one_pass())
    assert pairs.class_ids.tolist() == sorted(RATED)
    rng = np.random.default_rng(0)
    for digits in (1, 6):
        values = rng.random(len(pairs.rows)).round(digits)
        keys = list(zip(pairs.rows.tolist(), pairs.columns.tolist(), strict=True))
        scores = dict(zip(keys, values.tolist(), strict=True))
        labels = dict(zip(keys, pairs.positive.tolist(), strict=True))
        assert mean_average_precision(pairs, values) == pytest.approx(plain_map(scores, labels), abs=1e-12)


def test_a_class_without_a_positive_is_left_out() -> None:
    pairs = HoldoutPairs(
        rows=np.array([0, 1, 0, 1]),
        columns=np.array([0, 0, 1, 1]),
        positive=np.array([True, False, False, False]),
        class_ids=np.array([3, 7]),
        tie_order=np.array([0, 1]),
    )
    assert mean_average_precision(pairs, np.array([0.1, 0.9, 0.5, 0.5])) == 0.5


def test_scores_are_those_of_the_whole_head() -> None:
    model = SPEC.build(3)
    evaluation = HoldoutEvaluation(one_pass, torch.device("cpu"))
    scores = evaluation.scores(model.eval())
    from yt8m_assets.data.features import model_inputs

    with torch.no_grad():
        whole = torch.cat([model(model_inputs(b.frames, b.valid), b.num_frames).probabilities for b in BATCHES])
    pairs = evaluation.pairs
    np.testing.assert_allclose(scores, whole.numpy()[pairs.rows, pairs.class_ids[pairs.columns]], atol=1e-6)


def test_the_training_state_is_untouched() -> None:
    model = SPEC.build(3).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    HoldoutEvaluation(one_pass, torch.device("cpu"))(model)
    assert model.training
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert (np.random.get_state()[1] == numpy_state).all()  # type: ignore[index]
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_evaluation_fails_by_name() -> None:
    model = SPEC.build(3)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="hold-out scores are not finite, among the videos v000"):
        HoldoutEvaluation(one_pass, torch.device("cpu"))(model)
    unrated = [replace(batch, label_weights=None) for batch in BATCHES]
    with pytest.raises(DataError, match="video labels, not segment ratings"):
        collect_pairs(iter(unrated))
    negative = [replace(batch, labels=torch.zeros_like(batch.labels)) for batch in BATCHES]
    with pytest.raises(DataError, match="no positively rated segment"):
        collect_pairs(iter(negative))
