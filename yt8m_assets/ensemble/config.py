"""How the ensemble's weights are searched."""

from dataclasses import dataclass

from yt8m_assets.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Length, bounds and seed of the search of w0 and the models' weights (SPEC section 11)."""

    num_trials: int = 2000
    """Trials in all: the first points, the starts and every step of the climbs; milliseconds each."""
    num_initial_points: int = 12
    """Random trials before the Gaussian process proposes a start, beside the presets."""
    num_starts: int = 6
    """Climbs from points that the Gaussian process proposes, beside those from equal weights and the best preset."""
    w0_bounds: tuple[float, float] = (0.1, 1000.0)
    """Range of the rank-fusion constant, searched on a logarithmic scale (the original's reached 10)."""
    num_folds: int = 5
    """Folds over hold-out videos, by which weights are shrunk towards equal ones; 0: the search is taken as it is."""
    seed: int = 7
    """Seed of the search."""

    def __post_init__(self) -> None:
        for name in ("num_trials", "num_initial_points"):
            if getattr(self, name) < 1:
                raise ConfigError(f"search.{name} = {getattr(self, name)}: must be at least 1")
        if self.num_starts < 0:
            raise ConfigError(f"search.num_starts = {self.num_starts}: must not be negative")
        if self.num_folds < 0 or self.num_folds == 1:
            raise ConfigError(f"search.num_folds = {self.num_folds}: must be 0, or at least 2")
        low, high = self.w0_bounds
        if not 0 < low < high:
            raise ConfigError(f"search.w0_bounds = {self.w0_bounds}: must satisfy 0 < low < high")
