"""TFRecord framing, example parsing, shards and folds, segments and shifts, vocabulary, the simulator."""

from yt8m_assets.data.reader import ReadReport, read_shard
from yt8m_assets.data.video import SegmentLabels, Video
from yt8m_assets.data.windows import segment_frame_index, segment_windows

__all__ = ["ReadReport", "SegmentLabels", "Video", "read_shard", "segment_frame_index", "segment_windows"]
