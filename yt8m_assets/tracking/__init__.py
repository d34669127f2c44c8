"""Experiment tracking: what the core asks of it (`protocol`), and MLflow as a view of checkpoints and artifacts.

`record` is all that a run says, `live` shows it while it grows, `mirror` adds what one server lacks of it, `sync` does
that for a whole store. MLflow is imported only when a run starts.
"""

from yt8m_assets.tracking.live import MlflowTracking
from yt8m_assets.tracking.protocol import NullRun, NullTracking, TrackedRun, Tracking
from yt8m_assets.tracking.server import public_uri
from yt8m_assets.tracking.view import EXPERIMENT

__all__ = ["EXPERIMENT", "MlflowTracking", "NullRun", "NullTracking", "TrackedRun", "Tracking", "public_uri"]
