"""Held-out GAP@20, Hit@1, PERR and MAP beside pre-training, on whole videos or windows as it trains on."""

import numpy as np
import torch
from torch import nn

from yt8m_assets.data.dataset.datasets import PretrainingDataset
from yt8m_assets.data.dataset.shards import ShardManifest
from yt8m_assets.data.records.features import model_inputs
from yt8m_assets.errors import NonFiniteError
from yt8m_assets.evaluation.video_labels import VideoMetrics
from yt8m_assets.training.evaluate import undisturbed
from yt8m_assets.training.interruption import EvaluationInterrupted, StopRequest


def shards_to_score(shards: ShardManifest, num_videos: int) -> list[str]:
    """As many shards as hold `num_videos` held-out videos: shards are random parts of the data, and few are read."""
    found, videos = [], 0
    for shard in shards.shards:
        if shard.num_held_out and videos < num_videos:
            found.append(shard.uri)
            videos += shard.num_held_out
    return found


class VideoEvaluation:
    """Scores a model on some of the videos of a data set of held-out shards, the same ones each time.

    Memory does not grow with the videos but by 180 bytes each (`VideoMetrics`).
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

    def __call__(self, model: nn.Module, stop: StopRequest | None = None) -> dict[str, float]:
        """`gap_at_20`, `hit_at_1`, `perr` and `map_at_20` of the present weights; raises what `Evaluation` says."""
        metrics = VideoMetrics(top_k=20)
        with undisturbed(model, self.device):
            model.eval()
            for first in range(0, len(self.numbers), self.dataset.batch_size):
                if stop is not None and stop.requested:
                    raise EvaluationInterrupted
                self.score(model, self.numbers[first : first + self.dataset.batch_size], metrics)
        return {
            "gap_at_20": metrics.gap,
            "hit_at_1": metrics.hit_at_one,
            "perr": metrics.perr,
            "map_at_20": metrics.map,
        }

    def score(self, model: nn.Module, numbers: np.ndarray, metrics: VideoMetrics) -> None:
        """Score one batch; only its frames go to the device."""
        batch = self.dataset.examples(numbers)
        frames, valid, num_frames = (part.to(self.device) for part in (batch.frames, batch.valid, batch.num_frames))
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16"):
            output = model(model_inputs(frames, valid), num_frames)
        probabilities = output.probabilities.float().cpu().numpy()
        if not np.isfinite(probabilities).all():
            names = ", ".join(batch.video_ids[:5])
            raise NonFiniteError(f"the model's hold-out scores are not finite, among the videos {names} ...")
        metrics.add(probabilities, batch.labels.numpy())
