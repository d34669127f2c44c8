"""A trained model for others: as MLflow loads it."""

from yt8m_assets.serving.classifier import SegmentClassifier, save_servable

__all__ = ["SegmentClassifier", "save_servable"]
