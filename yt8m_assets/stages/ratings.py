"""Ratings from whatever of the project holds them: a CSV of either kind, or shards with segment ratings."""

import glob
from pathlib import Path

import numpy as np

from yt8m_assets.data.config import DataConfig
from yt8m_assets.errors import DataError, MissingDataError
from yt8m_assets.evaluation import Ratings
from yt8m_assets.storage.cache import Cache

_LOOKED_AT = 4096


def read_ratings(path: Path, data: DataConfig) -> Ratings:
    """Ratings of a CSV (`video_id:start,class,score`, or the simulator's `video_id,start,class_id,score`) or of shards.

    path: a CSV, a shard, a pattern of shards, or a folder (every *.tfrecord below it). Raises DataError naming the
    file, and the line of a CSV or the record of a shard; MissingDataError.
    """
    from yt8m_assets.data.dataset.memory import load_videos
    from yt8m_assets.data.dataset.ratings import collect_ratings
    from yt8m_assets.data.dataset.reading import Reading
    from yt8m_assets.data.dataset.shards import expand_patterns

    if path.is_file():
        with path.open("rb") as file:
            beginning = file.read(_LOOKED_AT)
        if b"\0" not in beginning:
            return Ratings.read_csv(path)
    elif not path.is_dir() and not glob.has_magic(path.name):
        raise MissingDataError(f"{path}: no such file")
    uris = expand_patterns(str(path / "**" / "*.tfrecord" if path.is_dir() else path))
    try:
        view = data.class_view(Cache())
        strict = Reading(max_frames=data.max_frames, feature_sizes=data.feature_sizes, classes=view)
        _, found = collect_ratings(load_videos(uris, strict))
    except DataError as error:
        raise DataError(f"{path}: neither a CSV of ratings nor shards of this recipe: {error}") from error
    if not len(found):
        raise DataError(f"{path}: holds no segment ratings; test shards have none")
    video_ids, video = np.unique(np.array(found.video_ids, dtype=str), return_inverse=True)
    return Ratings.from_arrays(video_ids, video, found.starts, found.class_ids, found.scores)
