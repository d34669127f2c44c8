"""What happens in each simulated video: true labels, when they are active, what is published, how raters judge."""

import string
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from yt8m_assets.data.simulation.config import SPLITS, SimulationConfig
from yt8m_assets.data.simulation.world import World

SEGMENT_SECONDS = 5
_SCRIPT_STREAM, _NOISE_STREAM, _LABEL_ONLY_STREAM = 1, 2, 3
SHARD_ALPHABET = string.digits + string.ascii_lowercase + string.ascii_uppercase
_ID_LENGTH = 4


@dataclass(frozen=True, kw_only=True)
class Activity:
    """One true label of a video: the appearance it takes and its intervals."""

    class_id: int
    mode: int
    intervals: tuple[tuple[int, int, float], ...]
    """(start, end, gain), in seconds, end exclusive; may reach past both ends of the video."""

    def profile(self, start: int, end: int) -> np.ndarray:
        """float32 [end - start]: the gain in each second of [start, end), 0 where the class is not active."""
        gains = np.zeros(end - start, dtype=np.float32)
        for begin, stop, gain in self.intervals:
            gains[max(begin - start, 0) : max(stop - start, 0)] = gain
        return gains


@dataclass(frozen=True, kw_only=True)
class Script:
    """A video before its frames are drawn."""

    video_id: str
    num_seconds: int
    activities: tuple[Activity, ...]
    labels: tuple[int, ...]
    """The published video labels, ascending: some true ones missing, some spurious."""
    ratings: tuple[tuple[int, int, int], ...]
    """(start second, class id, 0 or 1) of every rated segment, ascending."""

    def activity(self, class_id: int) -> Activity | None:
        """The activity of a class, None where it is not a true label."""
        return next((a for a in self.activities if a.class_id == class_id), None)


def shard_sizes(config: SimulationConfig, split: str) -> list[int]:
    """Videos in each shard of a split, as even as can be."""
    videos, shards = config.num_videos(split), config.num_shards(split)
    return [videos // shards + (i < videos % shards) for i in range(shards)]


def video_id(config: SimulationConfig, number: int) -> str:
    """The id of the `number`-th video of the whole dataset: a bijection, so unique over all splits."""
    total = sum(config.num_videos(split) for split in SPLITS)
    length = _ID_LENGTH
    while len(SHARD_ALPHABET) ** length < total:
        length += 1
    size = len(SHARD_ALPHABET) ** length
    # affine map modulo 62^length; 7919 shares no factor with 62 = 2 * 31, nor does any power of it
    number = (number * 7919**3 + 1_000_003 * (config.seed + 1)) % size
    text = ""
    for _ in range(length):
        number, digit = divmod(number, len(SHARD_ALPHABET))
        text += SHARD_ALPHABET[digit]
    return text


def shard_scripts(
    config: SimulationConfig, world: World, split: str, shard: int
) -> Iterator[tuple[Script, np.random.Generator]]:
    """Each video of a shard with the generator of its noise; the same whoever asks, in whatever order."""
    split_index = SPLITS.index(split)
    sizes = shard_sizes(config, split)
    first = sum(config.num_videos(s) for s in SPLITS[:split_index]) + sum(sizes[:shard])
    for number in range(sizes[shard]):
        key = (split_index, shard, number)
        script_seed, noise_seed = (
            np.random.SeedSequence(config.seed, spawn_key=(stream, *key)) for stream in (_SCRIPT_STREAM, _NOISE_STREAM)
        )
        name = video_id(config, first + number)
        yield draw_script(config, world, np.random.default_rng(script_seed), name), np.random.default_rng(noise_seed)


def label_only_scripts(config: SimulationConfig, world: World, count: int) -> Iterator[Script]:
    """Videos of no split, without frames: for tables of what is likely."""
    rng = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(_LABEL_ONLY_STREAM,)))
    for _ in range(count):
        yield draw_script(config, world, rng, "")


def draw_script(config: SimulationConfig, world: World, rng: np.random.Generator, name: str) -> Script:
    """One video's labels, intervals and ratings."""
    num_seconds = int(rng.integers(config.min_seconds, config.max_seconds + 1))
    true = _draw_labels(config, world, rng)
    activities: list[Activity] = []
    for class_id in true:
        mode = int(rng.integers(config.num_modes))
        intervals = _draw_intervals(config, rng, num_seconds)
        if activities and config.together_probability and rng.random() < config.together_probability:
            other = activities[rng.integers(len(activities))]
            intervals = tuple((a, b, config.gains[rng.integers(len(config.gains))]) for a, b, _ in other.intervals)
        activities.append(Activity(class_id=class_id, mode=mode, intervals=intervals))
    published = [c for c in true if rng.random() >= config.missing_label_probability]
    spurious = rng.choice(len(world.frequencies), rng.poisson(config.mean_spurious_labels), p=world.frequencies)
    published += [int(c) for c in spurious if c not in true]
    labels = tuple(sorted(set(published)))
    by_class = {a.class_id: a for a in activities}
    ratings = []
    for class_id in labels:
        if class_id in world.rated_classes:
            ratings += _draw_ratings(config, rng, num_seconds, by_class.get(class_id), class_id)
    return Script(
        video_id=name,
        num_seconds=num_seconds,
        activities=tuple(activities),
        labels=labels,
        ratings=tuple(sorted(ratings)),
    )


def _draw_labels(config: SimulationConfig, world: World, rng: np.random.Generator) -> list[int]:
    """True labels: by frequency, or from the group of an earlier label."""
    count = min(1 + rng.poisson(config.mean_extra_labels), config.max_labels, config.num_classes)
    labels: list[int] = []
    free = world.frequencies.copy()
    for _ in range(count):
        weights = free
        if labels and rng.random() < config.same_group_probability:
            siblings = np.where(world.groups == world.groups[labels[rng.integers(len(labels))]], free, 0.0)
            weights = siblings if siblings.any() else free
        cumulative = np.cumsum(weights)
        label = int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
        labels.append(label)
        free[label] = 0.0
    return labels


def _draw_intervals(
    config: SimulationConfig, rng: np.random.Generator, num_seconds: int
) -> tuple[tuple[int, int, float], ...]:
    """Intervals anywhere they touch the video: a second at its edge is about as likely to be active as any."""
    intervals: list[tuple[int, int, float]] = []
    gap = config.min_gap_seconds
    for _ in range(int(rng.integers(1, config.max_intervals + 1))):
        for _ in range(20):  # tries; a crowded short video just gets fewer intervals
            length = int(rng.integers(config.min_interval_seconds, config.max_interval_seconds + 1))
            start = int(rng.integers(1 - length, num_seconds))
            if all(start + length + gap <= a or b + gap <= start for a, b, _ in intervals):
                intervals.append((start, start + length, config.gains[rng.integers(len(config.gains))]))
                break
    return tuple(sorted(intervals))


def _draw_ratings(
    config: SimulationConfig, rng: np.random.Generator, num_seconds: int, activity: Activity | None, class_id: int
) -> list[tuple[int, int, int]]:
    """Whole segments of the video, drawn with a preference for active ones (unless ratings are uniform), judged by a
    rater with limits."""
    starts = np.arange(0, num_seconds - SEGMENT_SECONDS + 1, SEGMENT_SECONDS)
    weights = np.ones(len(starts))
    if activity is not None and not config.uniform_ratings:
        seconds = activity.profile(0, len(starts) * SEGMENT_SECONDS).reshape(-1, SEGMENT_SECONDS)
        active = (seconds > 0).mean(axis=1) >= 0.5
        if 0 < active.sum() < len(starts):
            share = config.active_probability
            weights = np.where(active, share / active.sum(), (1.0 - share) / (~active).sum())
    # smallest exponential clocks = weighted draw without replacement
    clocks = rng.standard_exponential(len(starts)) / np.maximum(weights, 1e-12)
    chosen = starts[np.argsort(clocks, kind="stable")[: config.num_ratings]]
    covered = np.zeros(len(chosen))
    for begin, stop, _ in activity.intervals if activity is not None else ():
        seen_begin = begin + config.rater_sd_seconds * rng.standard_normal(len(chosen))
        seen_stop = stop + config.rater_sd_seconds * rng.standard_normal(len(chosen))
        covered += np.clip(np.minimum(seen_stop, chosen + SEGMENT_SECONDS) - np.maximum(seen_begin, chosen), 0.0, None)
    positive = covered >= config.positive_share * SEGMENT_SECONDS
    positive ^= rng.random(len(chosen)) < config.flip_probability
    return [(int(start), class_id, int(score)) for start, score in zip(chosen, positive, strict=True)]
