"""What a model scores on held-out data beside its training, without touching the training's state.

In fine-tuning the MAP of rated segments at shift 0, with the rated classes of the head alone: it is that of the full
ranking wherever the cut at 100,000 drops no rated segment. In pre-training GAP@20, Hit@1, PERR and MAP of videos.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from models.base import sees_videos
from yt8m_assets.data.dataset.datasets import PretrainingDataset
from yt8m_assets.data.dataset.segments import SegmentTable
from yt8m_assets.data.records.features import model_inputs
from yt8m_assets.device.memory import explain_memory, is_out_of_memory
from yt8m_assets.errors import NonFiniteError
from yt8m_assets.evaluation.rated_pairs import RatedPairs
from yt8m_assets.evaluation.video_labels import VideoMetrics
from yt8m_assets.training.interruption import EvaluationInterrupted, StopRequest
from yt8m_assets.training.randomness import isolated_randomness

BATCH_SIZE = 512
"""Segments that are scored together."""
WHOLE_BATCH_SIZE = 64
"""The same of segments that are scored with their whole videos."""


class Evaluation(Protocol):
    """What a training calls to score a model on held-out data.

    Weights, batch-norm statistics, mode and random generators are afterwards what they were. Raises NonFiniteError
    naming videos without finite scores, OutOfMemoryError naming settings to change, EvaluationInterrupted between two
    batches when a stop is asked for.
    """

    headline: str
    """The score by which weights are compared."""
    scores_start: bool
    """Whether the weights that training starts from are worth scoring."""

    def __call__(self, model: nn.Module, stop: StopRequest) -> dict[str, float]: ...


@contextmanager
def undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Put a model's mode and torch's generators back after the block, and compute no gradients in it."""
    training = model.training
    try:
        with isolated_randomness(device, 0), torch.no_grad():
            yield
    finally:
        model.train(training)


class HoldoutEvaluation:
    """Scores a model on the rated segments of a table."""

    headline = "map"
    scores_start = True

    def __init__(self, table: SegmentTable, device: torch.device, precision: str = "float32") -> None:
        self.table, self.device, self.precision = table, device, precision
        self.pairs = RatedPairs.of(table)

    def __call__(self, model: nn.Module, stop: StopRequest) -> dict[str, float]:
        """`map` of the model's present weights on the hold-out, and on halves of it; raises what `Evaluation` says."""
        with undisturbed(model, self.device):
            scores = self.scores(model, stop)
        return {"map": self.pairs.map(scores), **self.pairs.half_scores(scores)}

    @torch.no_grad()
    def scores(self, model: nn.Module, stop: StopRequest) -> np.ndarray:
        """Probabilities of the rated pairs, float32 [P]."""
        pairs = self.pairs
        restricted = model.restrict_classes(torch.from_numpy(pairs.class_ids))  # type: ignore[operator]
        found = []
        inputs, size = self.table.inputs, BATCH_SIZE
        if sees_videos(model):
            inputs, size = partial(inputs, whole=True), WHOLE_BATCH_SIZE
        for first in range(0, len(self.table), size):
            if stop.requested:
                raise EvaluationInterrupted
            segments = np.arange(first, min(first + size, len(self.table)))
            probabilities = infer(restricted, inputs(segments), self.device, self.precision)
            begin, end = np.searchsorted(pairs.rows, [first, first + len(segments)])
            found.append(probabilities[pairs.rows[begin:end] - first, pairs.columns[begin:end]])
            check_finite(found[-1], self.table.video_ids[first : first + 5])
        return np.concatenate(found)


class VideoEvaluation:
    """Scores a model on some of the videos of a data set of held-out shards, the same ones each time.

    Whole videos, or windows as it trains on. Memory does not grow with them but by 180 bytes each (`VideoMetrics`).
    """

    headline = "gap_at_20"
    scores_start = False

    def __init__(
        self, dataset: PretrainingDataset, num_videos: int, device: torch.device, precision: str = "float32"
    ) -> None:
        self.dataset, self.device, self.precision = dataset, device, precision
        count = min(num_videos, len(dataset.videos))
        self.numbers = np.arange(count) * len(dataset.videos) // count
        """int64 [N]: videos that are scored, spread evenly over the shards."""

    def __call__(self, model: nn.Module, stop: StopRequest) -> dict[str, float]:
        """`gap_at_20`, `hit_at_1`, `perr` and `map_at_20` of the present weights; raises what `Evaluation` says."""
        metrics, size = VideoMetrics(top_k=20), self.dataset.batch_size
        with undisturbed(model, self.device):
            model.eval()
            for first in range(0, len(self.numbers), size):
                if stop.requested:
                    raise EvaluationInterrupted
                batch = self.dataset.examples(self.numbers[first : first + size])
                inputs = (batch.frames, batch.valid, batch.num_frames)  # labels and the rest stay here
                lower = [f"lower batch_size (here {size} a forward pass)"] if size > 1 else []
                probabilities = infer(model, inputs, self.device, self.precision, lower)
                check_finite(probabilities, batch.video_ids[:5])
                metrics.add(probabilities, batch.labels.numpy())
        return {
            "gap_at_20": metrics.gap,
            "hit_at_1": metrics.hit_at_one,
            "perr": metrics.perr,
            "map_at_20": metrics.map,
        }


def infer(
    model: nn.Module, inputs: Iterable[Tensor], device: torch.device, precision: str, remedies: Sequence[str] = ()
) -> np.ndarray:
    """Probabilities float32 [B, C] of frames uint8 [B, T, F], valid bool [B, T], num_frames int64 [B], frame_index.

    The last, int64 [B, N], may be left out.

    Raises OutOfMemoryError with the remedies, and with that of a lower precision where there is one.
    """
    half = precision == "bfloat16"
    try:
        frames, valid, num_frames, *index = (part.to(device) for part in inputs)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
            output = model(model_inputs(frames, valid), num_frames, *index)
        return output.probabilities.float().cpu().numpy()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        remedies = [*remedies, *([] if half else ['set precision="bfloat16"'])]
        raise explain_memory(error, "while the hold-out was scored", remedies) from error


def check_finite(scores: np.ndarray, video_ids: Sequence[str]) -> None:
    """Raise NonFiniteError naming the videos when a score is not finite."""
    if not np.isfinite(scores).all():
        names = ", ".join(video_ids)
        raise NonFiniteError(f"the model's hold-out scores are not finite, among the videos {names} ...")
