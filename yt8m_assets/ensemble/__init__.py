"""Fusing rankings, and the search of the weights to fuse with."""

from yt8m_assets.ensemble.preset import ORIGINAL_W0, ORIGINAL_WEIGHTS, TTA_W0
from yt8m_assets.ensemble.search import SearchConfig, SearchResult, search_weights
from yt8m_assets.ranking.fusion import average_scores, fuse, fuse_rankings

__all__ = [
    "ORIGINAL_W0",
    "ORIGINAL_WEIGHTS",
    "SearchConfig",
    "SearchResult",
    "TTA_W0",
    "average_scores",
    "fuse",
    "fuse_rankings",
    "search_weights",
]
