"""Whole courses of a class over a video: how likely each is, and draws from them. Shapes: N rows (video, class), M
appearances, T seconds, J states of the chain, D draws.

An interval begins at a constant rate, one of the gains is drawn, and it ends by the hazard of its length. So a second
is idle, or so old within an interval of some gain, or so long after one; noise is correlated over time, and a whitened
second depends on all of the course before it, of which the last interval is kept and earlier ones are left out.
"""

from dataclasses import dataclass

import numpy as np

from yt8m_assets.data.simulation.config import SimulationConfig


@dataclass(frozen=True, eq=False)
class CourseChain:
    """The chain of one config: states are idle, then gain by gain the ages, then gain by gain the seconds after."""

    gains: np.ndarray
    """float64 [G]."""
    hazard: np.ndarray
    """float64 [A]: chance that an interval of so many seconds ends."""
    gap: int
    """Least seconds between two intervals."""
    num_after: int
    """Seconds after an interval that are told apart."""
    mean_seconds: int
    """Mean length of an interval."""
    mean_intervals: float
    """Mean number of intervals."""

    @classmethod
    def of(cls, config: SimulationConfig) -> "CourseChain":
        """What the config says of intervals."""
        low, high = config.min_interval_seconds, config.max_interval_seconds
        age = np.arange(1, high + 1)
        return cls(
            gains=np.array(config.gains),
            hazard=np.where(age < low, 0.0, 1.0 / (high - age + 1)),
            gap=config.min_gap_seconds,
            num_after=max(config.min_gap_seconds, 10),
            mean_seconds=(low + high) // 2,
            mean_intervals=(1 + config.max_intervals) / 2,
        )

    @property
    def num_states(self) -> int:
        """J."""
        return 1 + len(self.gains) * (len(self.hazard) + self.num_after)

    @property
    def state_gain(self) -> np.ndarray:
        """float64 [J]: the gain in each state, 0 where not active."""
        active = np.repeat(self.gains, len(self.hazard))
        return np.concatenate([[0.0], active, np.zeros(len(self.gains) * self.num_after)])

    def whitened(self, whitening: np.ndarray) -> np.ndarray:
        """float64 [T, J]: what a state adds to a whitened second; whitening: float64 [T, T], lower triangular."""
        seconds, ages, gains = len(whitening), len(self.hazard), self.gains
        longest = max(ages, self.num_after + self.mean_seconds)
        back = np.zeros((seconds, longest + 1))  # sums over the last 0, 1, 2, ... seconds
        for t in range(seconds):
            part = np.cumsum(whitening[t, t::-1])[:longest]
            back[t, 1 : len(part) + 1] = part
            back[t, len(part) + 1 :] = part[-1]
        after = np.arange(1, self.num_after + 1)
        past = back[:, after + self.mean_seconds] - back[:, after]
        states = [np.zeros((seconds, 1))]
        states += [gain * back[:, 1 : ages + 1] for gain in gains] + [gain * past for gain in gains]
        return np.concatenate(states, axis=1)

    def rate(self, num_seconds: np.ndarray) -> np.ndarray:
        """float64 [N]: chance that an interval begins in a second in which it may, for videos of so many seconds."""
        density = self.mean_intervals / (num_seconds + self.mean_seconds)
        return density / np.maximum(1.0 - density * (self.mean_seconds + self.gap), 0.2)

    def _split(self, mass: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Views of idle [...], active [..., G, A] and after [..., G, K]."""
        num_gains, ages = len(self.gains), len(self.hazard)
        shape, end = mass.shape[:-1], 1 + len(self.gains) * len(self.hazard)
        active, after = mass[..., 1:end], mass[..., end:]
        return mass[..., 0], active.reshape(*shape, num_gains, ages), after.reshape(*shape, num_gains, self.num_after)

    def step(self, mass: np.ndarray, rate: np.ndarray) -> np.ndarray:
        """One second on: mass [N, M, J], rate [N, 1] -> [N, M, J]."""
        new = np.empty_like(mass)
        idle, active, after = self._split(mass)
        new_idle, new_active, new_after = self._split(new)
        ready = idle + after[..., self.gap - 1 :].sum(axis=(-2, -1))
        new_active[..., 0] = (rate * ready / len(self.gains))[..., None]
        new_active[..., 1:] = active[..., :-1] * (1.0 - self.hazard[:-1])
        new_after[..., 0] = (active * self.hazard).sum(axis=-1)
        new_after[..., 1:] = after[..., :-1]
        new_after[..., self.gap :] *= (1.0 - rate)[..., None, None]
        new_idle[...] = (1.0 - rate) * (idle + after[..., -1].sum(axis=-1))
        return new

    def start(self, rate: np.ndarray) -> np.ndarray:
        """float64 [N, 1, J]: the chain when it has long been running."""
        mass = np.zeros((len(rate), 1, self.num_states))
        mass[..., 0] = 1.0
        for _ in range(4 * len(self.hazard) + 100):
            mass = self.step(mass, rate)
        return mass

    def forward(
        self, evidence: np.ndarray, energy: np.ndarray, shapes: np.ndarray, rate: np.ndarray, start: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Filtered states float64 [T, N, M, J] and the log of the evidence for a course [N, M] against none.

        Arguments: evidence [N, T, M] whitened products with the class's vector, 0 past the end; energy [M] its squared
        length; shapes [N or 1, T, J] from `whitened`, 0 past the end; rate [N, 1]; start [N, 1, J].
        """
        num_seconds = evidence.shape[1]
        filtered = np.empty((num_seconds, len(evidence), evidence.shape[2], self.num_states))
        total = np.zeros(evidence.shape[::2])
        mass: np.ndarray = np.broadcast_to(start, filtered.shape[1:])
        for t in range(num_seconds):
            shape = shapes[:, t, None]
            log = shape * evidence[:, t, :, None] - 0.5 * energy[:, None] * shape**2
            top = log.max(axis=-1, keepdims=True)
            mass = (mass if t == 0 else self.step(mass, rate)) * np.exp(log - top)
            size = mass.sum(axis=-1, keepdims=True)
            filtered[t] = mass = mass / size
            total += (np.log(size) + top)[..., 0]
        return filtered, total

    def backward(
        self, filtered: np.ndarray, rows: np.ndarray, modes: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Draws of courses, gains float64 [Q, T], from what `forward` filtered, for rows [Q] and appearances [Q]."""
        num_gains, ages = len(self.gains), len(self.hazard)
        first_after = 1 + num_gains * ages
        after = first_after + np.arange(num_gains * self.num_after)
        ready = np.append(0, after[(after - first_after) % self.num_after >= self.gap - 1])
        long_after = np.append(0, after[(after - first_after) % self.num_after == self.num_after - 1])
        states = np.empty((len(filtered), len(rows)), np.int64)
        states[-1] = _choose(filtered[-1, rows, modes], rng)
        for t in range(len(filtered) - 2, -1, -1):
            later = states[t + 1]
            states[t] = later - 1
            young = (later >= 1) & (later < first_after) & ((later - 1) % ages == 0)
            ended = (later >= first_after) & ((later - first_after) % self.num_after == 0)
            for chosen, sources in ((later == 0, long_after), (young, ready)):
                if chosen.any():
                    here = np.flatnonzero(chosen)
                    weights = filtered[t][rows[here, None], modes[here, None], sources]
                    states[t, here] = sources[_choose(weights, rng)]
            if ended.any():
                here = np.flatnonzero(ended)
                sources = 1 + (later[here] - first_after)[:, None] // self.num_after * ages + np.arange(ages)
                weights = filtered[t][rows[here, None], modes[here, None], sources] * self.hazard
                states[t, here] = sources[np.arange(len(here)), _choose(weights, rng)]
        return self.state_gain[states].T


def _choose(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A column of each row of weights [Q, n], int64 [Q]."""
    cumulative = np.cumsum(weights, axis=1)
    return (rng.random((len(weights), 1)) * cumulative[:, -1:] >= cumulative).sum(axis=1).clip(max=weights.shape[1] - 1)
