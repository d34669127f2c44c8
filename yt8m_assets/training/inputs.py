"""From artifacts of shards to streams of batches; what several models of a process share is loaded once."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from yt8m_assets.data.config import DataConfig
from yt8m_assets.data.dataset.batches import BatchStream
from yt8m_assets.data.dataset.datasets import PretrainingDataset
from yt8m_assets.data.dataset.folds import require_disjoint
from yt8m_assets.data.dataset.memory import load_videos
from yt8m_assets.data.dataset.reading import Reading
from yt8m_assets.data.dataset.segments import SegmentDataset, SegmentTable
from yt8m_assets.data.dataset.videos import ids_by_shard
from yt8m_assets.training.config import TrainingConfig
from yt8m_assets.training.randomness import derive_seed
from yt8m_assets.training.team import Team


@dataclass(frozen=True)
class HeldOut:
    """The videos that are kept from a training."""

    dropped: tuple[str, ...] = ()
    """Ids that are dropped from the shards to train on."""
    by_shard: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Shard -> ids of every held-out video: training on one of them is refused."""


_tables: OrderedDict[tuple[object, ...], SegmentTable] = OrderedDict()
_MAX_TABLES = 2


def pretraining_source(
    reading: Reading,
    data: DataConfig,
    config: TrainingConfig,
    uris: Sequence[str],
    digest: str,
    seed: int,
    team: Team,
    pin: bool,
    held_out: HeldOut,
) -> BatchStream:
    """Windows of whole videos for one rank; frames in memory are shared by the models of this process.

    Raises DataError naming the videos when one of them is held out.
    """
    videos = load_videos(uris, reading, memory_budget=data.memory_budget, excluded_ids=held_out.dropped)
    require_disjoint(ids_by_shard(videos), held_out.by_shard)
    return PretrainingDataset(
        videos,
        num_classes=data.num_classes,
        batch_size=config.batch_size // team.size,
        window_frames=config.window_frames,
        seed=derive_seed(seed, "order") % 2**32,
        shuffle_buffer=config.shuffle_buffer,
        windows_per_video=config.windows_per_video,
        rank=team.rank,
        num_ranks=team.size,
        num_workers=data.num_workers,
        pin_memory=pin,
    )


def holdout_videos(
    reading: Reading, data: DataConfig, config: TrainingConfig, uris: Sequence[str], held_out: HeldOut
) -> PretrainingDataset:
    """Held-out videos to evaluate on, in batches as large as those of training, read from their files each time."""
    return PretrainingDataset(
        load_videos(uris, reading, only_ids=held_out.dropped),
        num_classes=data.num_classes,
        batch_size=config.batch_size // (config.num_processes * config.accumulation),
        window_frames=config.window_frames,
    )


def segment_source(
    reading: Reading,
    data: DataConfig,
    config: TrainingConfig,
    uris: Sequence[str],
    digest: str,
    seed: int,
    team: Team,
    pin: bool,
    held_out: HeldOut,
) -> BatchStream:
    """Rated segments for one rank. Raises DataError naming the videos when one of them is held out."""
    table = load_segment_table(reading, data, uris, digest)
    require_disjoint({"the rated shards to train on": sorted(set(table.video_ids))}, held_out.by_shard)
    return SegmentDataset(
        table,
        batch_size=config.batch_size // team.size,
        seed=derive_seed(seed, "order") % 2**32,
        rank=team.rank,
        num_ranks=team.size,
        num_workers=data.num_workers,
        pin_memory=pin,
    )


def load_segment_table(reading: Reading, data: DataConfig, uris: Sequence[str], digest: str) -> SegmentTable:
    """The rated segments of shards whose artifact has this digest, kept for the next model of this process."""
    key = (digest, tuple(uris), data.num_classes, data.memory_budget, reading)
    if key not in _tables:
        while len(_tables) >= _MAX_TABLES:
            _tables.popitem(last=False)
        videos = load_videos(uris, reading)
        _tables[key] = SegmentTable(videos, num_classes=data.num_classes, memory_budget=data.memory_budget)
    _tables.move_to_end(key)
    return _tables[key]
