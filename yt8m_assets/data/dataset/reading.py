"""How shards are read: one object from the recipe down to the record."""

from dataclasses import dataclass
from pathlib import Path

from yt8m_assets.data.dataset.windows import MAX_VIDEO_FRAMES
from yt8m_assets.data.records.examples import FEATURE_SIZES
from yt8m_assets.data.records.reader import OnCorrupt, ReadReport
from yt8m_assets.data.records.vocabulary import ClassView
from yt8m_assets.storage.cache import ShardCache


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What is taken from a record, and what happens where one is damaged."""

    feature_sizes: tuple[int, int] = FEATURE_SIZES
    """Bytes of rgb and audio per frame."""
    max_frames: int = MAX_VIDEO_FRAMES
    """Frames of a video that are used."""
    classes: ClassView | None = None
    """Other numbers for the classes of labels and ratings, or none for some; None: as the records have them."""
    on_corrupt: OnCorrupt = "raise"
    """"quarantine" sets damaged records aside into the report, "raise" stops at the first."""
    max_quarantined: int = 100
    """Records that may be set aside."""
    cache_path: Path | None = None
    """The cache whose notes recognise shards (see `identity`): one that turns out to be another is struck out there."""
    copies: ShardCache | None = None
    """Where copies of shards in buckets are kept; None: in the home folder."""

    def new_report(self, quiet: bool = False) -> ReadReport:
        """An empty report with this limit."""
        return ReadReport(max_quarantined=self.max_quarantined, quiet=quiet)


RELEASED = Reading()
"""The data as released, every damage an error."""
