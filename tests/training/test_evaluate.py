from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.support import FEATURE_SIZES, NUM_CLASSES, SCORER
from yt8m_assets.data.dataset.memory import load_videos
from yt8m_assets.data.dataset.reading import Reading
from yt8m_assets.data.dataset.segments import SegmentTable
from yt8m_assets.data.records.features import model_inputs
from yt8m_assets.errors import NonFiniteError, OutOfMemoryError
from yt8m_assets.evaluation.picking import whole_scores
from yt8m_assets.training import evaluate
from yt8m_assets.training.evaluate import HoldoutEvaluation
from yt8m_assets.training.interruption import EvaluationInterrupted, StopRequest
from yt8m_assets.training.model_files import ModelSpec

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


def test_scores_are_those_of_the_whole_head(table: SegmentTable) -> None:
    model = SPEC.build(3)
    evaluation = HoldoutEvaluation(table, torch.device("cpu"))
    scores = evaluation.scores(model.eval(), StopRequest())
    batch = table.batch(np.arange(len(table)))
    with torch.no_grad():
        whole = model(model_inputs(batch.frames, batch.valid), batch.num_frames).probabilities
    pairs = evaluation.pairs
    np.testing.assert_allclose(scores, whole.numpy()[pairs.rows, pairs.class_ids[pairs.columns]], atol=1e-6)


def test_a_model_of_whole_videos_scores_each_segment_within_its_own(
    table: SegmentTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "WHOLE_BATCH_SIZE", 20)
    spec = replace(SPEC, architecture="frame_scorer", overrides=SCORER.overrides)
    model = spec.build(3).eval()
    evaluation = HoldoutEvaluation(table, torch.device("cpu"))
    scores = evaluation.scores(model, StopRequest())
    pairs, batch = evaluation.pairs, table.batch(np.arange(len(table)), whole=True)
    with torch.no_grad():
        inputs = model_inputs(batch.frames, batch.valid), batch.num_frames
        found = [model(*inputs, index).probabilities for index in (batch.frame_index, None)]
    segments, videos = (each.numpy()[pairs.rows, pairs.class_ids[pairs.columns]] for each in found)
    np.testing.assert_allclose(scores, segments, atol=1e-6)
    assert np.abs(scores - videos).max() > 1e-3


def test_only_frames_are_made_and_shipped(table: SegmentTable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dense labels of 3862 classes cost many times what the frames of a segment do, and nothing needs them."""
    evaluation = HoldoutEvaluation(table, torch.device("cpu"))
    score = evaluation(SPEC.build(3), StopRequest())
    monkeypatch.delattr(SegmentTable, "annotations")
    assert HoldoutEvaluation(table, torch.device("cpu"))(SPEC.build(3), StopRequest()) == score
    assert set(whole_scores(score)) == {"map"}


def test_the_training_state_is_untouched(table: SegmentTable) -> None:
    model = SPEC.build(3).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    HoldoutEvaluation(table, torch.device("cpu"))(model, StopRequest())
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


@pytest.mark.parametrize(
    ("precision", "advice"), [("float32", 'set precision="bfloat16"'), ("bfloat16", "take a smaller model")]
)
def test_f51_out_of_memory_says_what_can_help(table: SegmentTable, precision: str, advice: str) -> None:
    model = SPEC.build(3)
    failure = RuntimeError("CUDA error: out of memory")

    def exhausted(*_: Any) -> None:
        raise failure

    handle = model.register_forward_pre_hook(exhausted)
    evaluation = HoldoutEvaluation(table, torch.device("cpu"), precision)
    with pytest.raises(OutOfMemoryError, match=rf"while the hold-out was scored \(CUDA .*\): {advice}"):
        evaluation(model, StopRequest())
    failure = RuntimeError("another")
    with pytest.raises(RuntimeError, match=r"^another$"):
        evaluation(model, StopRequest())
    handle.remove()


def test_evaluation_fails_by_name(shards: Path) -> None:
    table = segment_table(shards)
    model = SPEC.build(3)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    first = table.video_ids[0]
    with pytest.raises(NonFiniteError, match=f"hold-out scores are not finite, among the videos {first}"):
        HoldoutEvaluation(table, torch.device("cpu"))(model, StopRequest())
