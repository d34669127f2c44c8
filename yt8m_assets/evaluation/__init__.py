"""Scores of rankings and predictions: MAP@K with intervals, GAP, Hit@1, PERR."""

from yt8m_assets.evaluation.average_precision import MapResult, average_precision, mean_average_precision
from yt8m_assets.evaluation.ranked import mean_average_precision_at_k, ranking_map, rated_places
from yt8m_assets.evaluation.ratings import Ratings
from yt8m_assets.evaluation.resampling import Interval, PairedTest, bootstrap_map, paired_test
from yt8m_assets.evaluation.video_labels import (
    global_average_precision,
    hit_at_one,
    precision_at_equal_recall_rate,
)

__all__ = [
    "Interval",
    "MapResult",
    "PairedTest",
    "Ratings",
    "average_precision",
    "bootstrap_map",
    "global_average_precision",
    "hit_at_one",
    "mean_average_precision",
    "mean_average_precision_at_k",
    "paired_test",
    "precision_at_equal_recall_rate",
    "ranking_map",
    "rated_places",
]
