"""Writes the simulated dataset as real-format TFRecords in the layout of the real one, shard by shard."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from yt8m_assets.data.records.examples import encode_sequence_example
from yt8m_assets.data.records.framing import RecordWriter
from yt8m_assets.data.records.video import SegmentLabels
from yt8m_assets.data.simulation.config import SPLITS, SimulationConfig
from yt8m_assets.data.simulation.frames import draw_frames
from yt8m_assets.data.simulation.scripts import SHARD_ALPHABET, Script, shard_scripts, shard_sizes
from yt8m_assets.data.simulation.truth import TRUTH_HEADER, test_ratings
from yt8m_assets.data.simulation.world import World, build_world
from yt8m_assets.errors import ConfigError
from yt8m_assets.progress import NullProgress, Progress
from yt8m_assets.storage import atomic_write

NO_LABELS = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class DatasetPaths:
    """Where everything of a simulated dataset lies; shards in the order of their names (SPEC section 8)."""

    train: tuple[Path, ...]
    """2/frame/train: video labels."""
    validate: tuple[Path, ...]
    """2/frame/validate: video labels."""
    segments: tuple[Path, ...]
    """3/frame/validate: the same videos as `validate`, shard by shard, with segment ratings."""
    test: tuple[Path, ...]
    """3/frame/test: no labels."""
    segment_label_ids: Path
    """CSV with the header `Index`: the rated classes."""
    vocabulary: Path
    """CSV in the layout of the real vocabulary."""
    test_ratings: Path
    """CSV video_id,start,class_id,score: the hidden ratings of `test`, for evaluation alone."""

    def of_split(self, split: str) -> tuple[Path, ...]:
        """The shards written for "train", "validate" (both of its forms) or "test"."""
        return {"train": self.train, "validate": self.validate + self.segments, "test": self.test}[split]


def shard_name(split: str, index: int) -> str:
    """`train00`, `train10`, ...: two characters over 0-9a-zA-Z, the first runs fastest (SPEC section 8)."""
    outer, inner = divmod(index, len(SHARD_ALPHABET))
    return f"{split}{SHARD_ALPHABET[inner]}{SHARD_ALPHABET[outer]}"


def dataset_paths(config: SimulationConfig, root: Path) -> DatasetPaths:
    """Where `write_dataset` puts the files; nothing is touched."""

    def shards(release: str, split: str) -> tuple[Path, ...]:
        folder = root / release / "frame" / split
        return tuple(folder / f"{shard_name(split, i)}.tfrecord" for i in range(config.num_shards(split)))

    return DatasetPaths(
        train=shards("2", "train"),
        validate=shards("2", "validate"),
        segments=shards("3", "validate"),
        test=shards("3", "test"),
        segment_label_ids=root / "segment_label_ids.csv",
        vocabulary=root / "vocabulary.csv",
        test_ratings=root / "truth" / "test_ratings.csv",
    )


def write_dataset(
    config: SimulationConfig,
    root: Path,
    splits: Sequence[str] = SPLITS,
    progress: Progress | None = None,
    num_workers: int = 1,
) -> DatasetPaths:
    """Write the shards of some splits under `root`, the two CSV files and, with "test", its hidden ratings.

    The bytes depend on the config alone, not on `num_workers` or on what was written before. A shard takes its name
    only when it is whole, so shards that exist are kept and an interrupted call continues. Raises ConfigError for an
    unknown split and where `root` already holds a dataset of another config.
    """
    unknown = sorted(set(splits) - set(SPLITS))
    if unknown:
        raise ConfigError(f"unknown split {unknown[0]!r}; the simulated dataset has {', '.join(SPLITS)}")
    if num_workers < 1:
        raise ConfigError(f"num_workers must be at least 1, got {num_workers}")
    paths = dataset_paths(config, root)
    _claim(config, root)
    world = build_world(config)
    _write_csv(paths.segment_label_ids, ["Index"], ([c] for c in world.rated_classes))
    _write_vocabulary(config, world, paths.vocabulary)
    jobs = [(split, i) for split in splits for i in range(config.num_shards(split))]
    total = sum(config.num_videos(split) for split in splits)
    with (progress or NullProgress()).task("simulated dataset", total=total, unit="videos") as task:
        for count in _run_jobs(config, root, jobs, num_workers):
            task.advance(count)
    if "test" in splits:
        rows = ([*key[0].split(":"), key[1], score] for key, score in sorted(test_ratings(config).items()))
        _write_csv(paths.test_ratings, TRUTH_HEADER, rows)
    return paths


def _run_jobs(config: SimulationConfig, root: Path, jobs: list[tuple[str, int]], num_workers: int) -> Iterator[int]:
    if num_workers == 1:
        for split, shard in jobs:
            yield _write_shard(config, root, split, shard)
        return
    # spawned, not forked: a fork of a process with threads (torch, Dagster) may hang
    with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(_write_shard, config, root, split, shard) for split, shard in jobs]
        try:
            for future in futures:
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _write_shard(config: SimulationConfig, root: Path, split: str, shard: int) -> int:
    """One shard of a split, for "validate" in both its forms; returns its number of videos."""
    paths = dataset_paths(config, root)
    forms = {"train": [paths.train], "validate": [paths.validate, paths.segments], "test": [paths.test]}[split]
    missing = [form for form in forms if not form[shard].exists()]
    if not missing:
        return shard_sizes(config, split)[shard]
    world = build_world(config)
    with ExitStack() as stack:  # one video in memory at a time, whatever the shard's size
        writers = [(form is paths.segments, stack.enter_context(RecordWriter(form[shard]))) for form in missing]
        for script, rng in shard_scripts(config, world, split, shard):
            frames = draw_frames(config, world, script, rng)
            labels = NO_LABELS if split == "test" else np.array(script.labels, dtype=np.int64)
            for rated, writer in writers:
                segments = _segment_labels(script) if rated else None
                writer.write(encode_sequence_example(script.video_id, frames, labels, segments))
    return shard_sizes(config, split)[shard]


def _segment_labels(script: Script) -> SegmentLabels:
    ratings = np.array(script.ratings, dtype=np.int64).reshape(-1, 3)
    return SegmentLabels(start_times=ratings[:, 0], class_ids=ratings[:, 1], scores=ratings[:, 2].astype(np.float32))


def _claim(config: SimulationConfig, root: Path) -> None:
    """Note the config in `root`, or check that it is the one noted there."""
    text = json.dumps(config.identity(), indent=1, sort_keys=True) + "\n"
    note = root / "simulation.json"
    if not note.exists():
        _write_text(note, text)
    elif note.read_bytes() != text.encode("ascii"):
        raise ConfigError(f"{root} holds a simulated dataset of another config; remove it or choose another folder")


def _write_vocabulary(config: SimulationConfig, world: World, path: Path) -> None:
    """TrainVideoCount is the expected number: the real one would need all shards."""
    labels = config.num_train_videos * (1.0 + config.mean_extra_labels) * (1.0 - config.missing_label_probability)
    header = ["Index", "TrainVideoCount", "KnowledgeGraphId", "Name", "Vertical1", "Vertical2", "Vertical3"]
    rows = (
        [c, round(labels * share), f"/m/sim{c:04d}", world.class_name(c), f"Group {world.groups[c]:02d}", "", ""]
        for c, share in enumerate(world.frequencies)
    )
    _write_csv(path, header, rows)


def _write_csv(path: Path, header: list[str], rows: Iterable[list]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    _write_text(path, text.getvalue())


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="ascii", newline="")
