"""What a training reads: streams of batches, and the held-out examples it is scored on.

What several models of a process share is loaded once.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from models.base import FrameModel
from yt8m_assets.data.dataset.batches import BatchStream
from yt8m_assets.data.dataset.datasets import PretrainingDataset
from yt8m_assets.data.dataset.folds import require_disjoint
from yt8m_assets.data.dataset.memory import load_videos
from yt8m_assets.data.dataset.packed import PackedShard
from yt8m_assets.data.dataset.parts import ids_by_shard
from yt8m_assets.data.dataset.reading import Reading
from yt8m_assets.data.dataset.segments import Mining, SegmentDataset, SegmentTable
from yt8m_assets.data.dataset.videos import Videos
from yt8m_assets.data.dataset.views import View
from yt8m_assets.training.config import TrainingConfig
from yt8m_assets.training.distributed import Team

_tables: OrderedDict[tuple[object, ...], SegmentTable] = OrderedDict()
_MAX_TABLES = 2
_videos: WeakValueDictionary[tuple[object, ...], Videos] = WeakValueDictionary()
"""What is open by a training of this process: another one beside it reads from the same."""


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The shards of a training, of whole videos or of rated segments, and how they are read."""

    rated: bool
    """Whether rated segments are trained on, not whole videos."""
    reading: Reading
    """How a record is read."""
    num_classes: int
    """Size of the vocabulary."""
    memory_budget: int
    """Bytes of frames that may be held in memory."""
    num_workers: int
    """Reader processes beside the training loop."""
    shards: tuple[PackedShard, ...]
    """What to train on, as published: no held-out video of them is meant."""
    holdout_shards: tuple[PackedShard, ...] = ()
    """The held-out videos to evaluate on: of rated segments, or with labels."""
    held_out: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Shard -> ids (S11 [n]) of every held-out video: training on one of them is refused."""
    rated_classes: np.ndarray | None = field(default=None, compare=False)
    """The rated classes, int32 [K], of which "mined" takes its negatives."""
    digest: str
    """Digest of the shards' artifact."""
    seed: int
    """Seed of order and draws: the same for all models that may read these shards together."""

    def mining(self, config: TrainingConfig) -> Mining | None:
        """The negatives that a training takes beside the rated pairs."""
        if config.label_weighting != "mined" or not self.rated:
            return None
        assert self.rated_classes is not None
        return Mining(classes=self.rated_classes, positive=config.positive_weight, negative=config.mined_weight)

    def stream(self, config: TrainingConfig, model: FrameModel, team: Team) -> BatchStream:
        """One rank's stream of what a model uses of the examples; what is read is shared by the models of this process.

        Raises DataError naming the videos when one of them is held out.
        """
        options: Any = {
            "batch_size": config.batch_size // team.size,
            "seed": self.seed % 2**32,
            "rank": team.rank,
            "num_ranks": team.size,
            "num_workers": self.num_workers,
            "pin_memory": team.device.type == "cuda",
        }
        window = None if self.rated else config.window_frames
        view = View(window_frames=window, sampling=model.sampling, num_draws=model.num_sampled_frames)
        options["views"] = (view,)
        if self.rated:
            table = self.segments(self.shards)
            require_disjoint([("the rated shards to train on", sorted(set(table.video_ids)))], self.held_out)
            return SegmentDataset(table, mining=self.mining(config), **options)
        return PretrainingDataset(
            self.videos(),
            num_classes=self.num_classes,
            shuffle_buffer=config.shuffle_buffer,
            windows_per_video=config.windows_per_video,
            **options,
        )

    def videos(self) -> Videos:
        """The videos to train on, the same object for all models that train at the same time.

        Raises DataError naming those that are held out.
        """
        key = (self.digest, self.shards, self.memory_budget, self.reading)
        videos: Videos | None = _videos.get(key)
        if videos is None:
            videos = load_videos(self.shards, self.reading, memory_budget=self.memory_budget)
            require_disjoint(ids_by_shard(videos), self.held_out)
            _videos[key] = videos
        return videos

    def holdout_videos(self, config: TrainingConfig) -> PretrainingDataset:
        """Held-out videos to evaluate on, in batches as large as those of training, read from their files each time."""
        return PretrainingDataset(
            load_videos(self.holdout_shards, self.reading),
            num_classes=self.num_classes,
            batch_size=config.examples_at_once,
            window_frames=config.window_frames,
        )

    def segments(self, shards: Sequence[PackedShard]) -> SegmentTable:
        """The rated segments of some of its shards, kept for the next model of this process."""
        key = (self.digest, tuple(shards), self.num_classes, self.memory_budget, self.reading)
        if key not in _tables:
            while len(_tables) >= _MAX_TABLES:
                _tables.popitem(last=False)
            videos = load_videos(shards, self.reading)
            _tables[key] = SegmentTable(videos, num_classes=self.num_classes, memory_budget=self.memory_budget)
        _tables.move_to_end(key)
        return _tables[key]
