"""TFRecord framing, example parsing, shards and folds, segments and shifts, vocabulary, the simulator."""

from yt8m_assets.data.dataset.windows import segment_frame_index, segment_windows
from yt8m_assets.data.records.reader import ReadReport, read_shard
from yt8m_assets.data.records.video import SegmentLabels, Video

__all__ = ["ReadReport", "SegmentLabels", "Video", "read_shard", "segment_frame_index", "segment_windows"]
