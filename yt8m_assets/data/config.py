"""What a recipe says of the data: where the shards are, what a record holds, and what is held out."""

from dataclasses import dataclass, field
from typing import Literal

from yt8m_assets.data.dataset.reading import Reading
from yt8m_assets.data.records.vocabulary import ClassView, load_label_map, load_segment_classes
from yt8m_assets.data.simulation.config import SimulationConfig
from yt8m_assets.errors import ConfigError
from yt8m_assets.storage.cache import Cache


@dataclass(frozen=True, kw_only=True)
class HoldoutConfig:
    """Which validate shards are held out of every training, for OOF predictions and the ensemble."""

    rule: Literal["original", "seeded"] = "original"
    """The original's first 300 of 3844 shards in its own order, or a seeded share of the shards."""
    num_shards: int = 300
    """Shards held out under the original's rule."""
    fraction: float = 1 / 3
    """Share of the shards held out under the seeded rule."""
    seed: int = 7
    """Seed of the seeded rule."""

    def __post_init__(self) -> None:
        if self.rule not in ("original", "seeded"):
            raise ConfigError(f"holdout.rule = {self.rule!r}: choose 'original' or 'seeded'")
        if self.num_shards < 1:
            raise ConfigError(f"holdout.num_shards = {self.num_shards}: must be at least 1")
        if not 0 < self.fraction < 1:
            raise ConfigError(f"holdout.fraction = {self.fraction}: must lie between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the shards are and what a record holds."""

    pretraining: tuple[str, ...] = ()
    """Patterns (local or gs://) of frame-level shards with video labels; hold-out shards among them are left out."""
    segments: tuple[str, ...] = ()
    """Patterns of the shards with segment ratings."""
    test: tuple[str, ...] = ()
    """Patterns of the unlabelled test shards."""
    segment_classes_uri: str = ""
    """File with the rated classes, one index a line under the header `Index`."""
    vocabulary_uri: str | None = None
    """File with the classes' names (for reports); None: classes are shown by number."""
    num_classes: int = 3862
    """Size of the vocabulary of video labels."""
    label_map_uri: str | None = None
    """CSV `Index,NewIndex`: classes as the shards number them -> as this recipe does; labels and ratings of others are
    left out. None: as they are."""
    unlisted_ratings: Literal["raise", "drop"] = "raise"
    """Ratings of classes that segment_classes_uri does not name: stop at the first that is held out and train on the
    others, or leave all of them out."""
    feature_sizes: tuple[int, int] = (1024, 128)
    """Bytes per second of rgb and audio; 0: the records have no such list."""
    shard_share: float = 1.0
    """Share of the shards that is used, drawn by their names, alike in every release: for a first try on real data."""
    max_frames: int = 300
    """Frames of a video that are used."""
    holdout: HoldoutConfig = field(default_factory=HoldoutConfig)
    """The hold-out rule."""
    simulation: SimulationConfig | None = None
    """When set, the *_shards assets simulate the shards; patterns and class files are then left empty."""
    memory_budget: int = 4 * 2**30
    """Bytes of frames that may be held in memory; above it data is streamed."""
    on_corrupt: Literal["raise", "quarantine"] = "raise"
    """Stop at the first damaged record, or set it aside into a report."""
    max_quarantined: int = 100
    """Records that may be set aside before reading fails; behind a damaged header they are estimated."""
    num_workers: int = 0
    """Reader processes beside the training loop; 0 reads in the loop itself."""

    def __post_init__(self) -> None:
        for name in ("pretraining", "segments", "test", "segment_classes_uri"):
            value = getattr(self, name)
            if self.simulation is not None and value:
                cure = 'write "simulation": null in a JSON recipe, simulation=None in Python'
                raise ConfigError(f"data.{name} = {value!r}, but the data is simulated. For data of your own {cure}")
            if self.simulation is None and (not value or (isinstance(value, str) and name != "segment_classes_uri")):
                raise ConfigError(f"data.{name} = {value!r}: say where the data is (patterns as a tuple)")
        for name in ("num_classes", "max_frames", "memory_budget"):
            if getattr(self, name) < 1:
                raise ConfigError(f"data.{name} = {getattr(self, name)}: must be at least 1")
        if self.max_quarantined < 0:
            raise ConfigError(f"data.max_quarantined = {self.max_quarantined}: must not be negative")
        if len(self.feature_sizes) != 2 or min(self.feature_sizes) < 0 or not sum(self.feature_sizes):
            raise ConfigError(f"data.feature_sizes = {self.feature_sizes}: the bytes of rgb and of audio, one above 0")
        if self.num_workers < 0:
            raise ConfigError(f"data.num_workers = {self.num_workers}: must not be negative")
        if self.unlisted_ratings not in ("raise", "drop"):
            raise ConfigError(f"data.unlisted_ratings = {self.unlisted_ratings!r}: choose 'raise' or 'drop'")
        if not 0 < self.shard_share <= 1:
            raise ConfigError(f"data.shard_share = {self.shard_share}: must be above 0, and at most 1")
        if self.simulation is not None and (self.shard_share < 1 or self.label_map_uri):
            raise ConfigError("data.shard_share and data.label_map_uri are for real shards, and the data is simulated")
        if self.on_corrupt not in ("raise", "quarantine"):
            raise ConfigError(f"data.on_corrupt = {self.on_corrupt!r}: choose 'raise' or 'quarantine'")

    def reading(self, cache: Cache) -> Reading:
        """How the shards are read, with copies and notes in this machine's cache."""
        return Reading(
            feature_sizes=self.feature_sizes,
            classes=self.class_view(cache),
            max_frames=self.max_frames,
            on_corrupt=self.on_corrupt,
            max_quarantined=self.max_quarantined,
            cache_path=cache.path,
            copies=cache.shards,
        )

    def class_view(self, cache: Cache) -> ClassView | None:
        """What the classes of labels and ratings become when they are read; None: they stay. Raises VocabularyError."""
        mapping, rated = None, None
        if self.label_map_uri is not None:
            mapping = tuple(load_label_map(self.label_map_uri, self.num_classes, cache.shards).items())
        if self.unlisted_ratings == "drop" and self.simulation is None:
            classes = load_segment_classes(self.segment_classes_uri, self.num_classes, cache.shards)
            rated = frozenset(classes.tolist())
        return None if mapping is rated is None else ClassView(mapping, rated)
