"""Rows of bench_scale about what is published once: the index, listings, and what planning asks of a bucket."""

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tests.data.factory import encode, frame_record
from tests.slow_bucket import SlowBucket, slow_bucket
from tests.tiny import TRAINING, tiny_model, tiny_recipe
from yt8m_assets.data.config import DataConfig, HoldoutConfig
from yt8m_assets.data.dataset.datasets import PretrainingDataset
from yt8m_assets.data.dataset.packed import ROW, PackedShard
from yt8m_assets.data.dataset.videos import IndexedVideos
from yt8m_assets.data.records.video import SegmentLabels, Video
from yt8m_assets.progress import Counter, NullProgress
from yt8m_assets.recipes import load_recipe
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.data import make_holdout_ratings, make_shards, read_shards
from yt8m_assets.stages.lineage import resolve_inputs
from yt8m_assets.stages.nodes import ASSETS, all_nodes
from yt8m_assets.stages.training import pretrain
from yt8m_assets.storage import ArtifactStore
from yt8m_assets.tracking import NullTracking

SIZES = (64, 32)
QUIET = NullProgress()
LATENCY_MS = 40.0


def write_data(folder: Path, num_shards: int, videos_a_shard: int, num_frames: int) -> None:
    """`train*` with video labels, and four each of `validate*` (rated) and `test*`, of `num_frames` frames a video."""
    generator = np.random.default_rng(3)
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in {"train": num_shards, "validate": 4, "test": 4}.items():
        for shard in range(count):
            records = []
            for number in range(videos_a_shard if name == "train" else 2):
                frames = generator.integers(0, 256, (num_frames, sum(SIZES)), dtype=np.uint8)
                one = SegmentLabels(np.array([0, 5]), np.array([1, 2]), np.array([1, 0], np.float32))
                labels = np.array([number % 8] if name == "train" else [], np.int64)
                video = Video(f"{name[:2]}{shard:04d}{number:04d}", frames, labels, one if name == "validate" else None)
                records.append(frame_record(encode(video, SIZES)))
            (folder / f"{name}{shard:04d}.tfrecord").write_bytes(b"".join(records))
    (folder / "classes.csv").write_text("Index\n1\n2\n")


def recipe_over(root: str, num_steps: int, window: int) -> Recipe:
    """One narrow model over the data below `root`, shuffled in a window of so many videos."""
    data = DataConfig(
        pretraining=(f"{root}/train*.tfrecord",),
        segments=(f"{root}/validate*.tfrecord",),
        test=(f"{root}/test*.tfrecord",),
        segment_classes_uri=f"{root}/classes.csv",
        num_classes=8,
        feature_sizes=SIZES,
        holdout=HoldoutConfig(rule="seeded", fraction=0.5),
        memory_budget=1,
    )
    training = replace(TRAINING, num_steps=num_steps, shuffle_buffer=window, checkpoint_every=10**6)
    return tiny_recipe(data=data, models=(tiny_model("one", (0,), pretraining=training),))


class FirstStep(NullProgress):
    """Notes what the bucket had handed out when the first step of a training was done."""

    def __init__(self, bucket: SlowBucket) -> None:
        self.bucket, self.bytes = bucket, 0

    @contextmanager
    def task(self, title: str, total: int | None = None, unit: str = "it") -> Iterator[Any]:
        outer = self

        class Noting(Counter):
            def advance(self, count: int = 1) -> None:
                if title.startswith("pretraining") and not self.count:
                    outer.bytes = outer.bucket.counts().bytes
                super().advance(count)

        yield Noting()


def train(recipe: Recipe, store: ArtifactStore, progress: Any = QUIET) -> None:
    """Pre-train the recipe's model."""
    pretrain(recipe, store, "one", tracking=NullTracking(), progress=progress, run_tags={})


def make_data(recipe: Recipe, store: ArtifactStore) -> None:
    """Publish what training needs to know of the data."""
    for asset in ("pretraining_shards", "segment_shards"):
        make_shards(recipe, store, asset, progress=QUIET)
    make_holdout_ratings(recipe, store, progress=QUIET)


def first_step(folder: Path, latency_ms: float = LATENCY_MS, num_frames: int = 200) -> float:
    """Bytes an empty machine fetches before step 1 / bytes of the training shards: 20, of which 2 are in use at a time.

    A record is moved by up to a shard, so the first positions are of two shards, which are fetched ahead.
    """
    write_data(folder / "data", 20, 32, num_frames)
    with slow_bucket() as bucket:
        recipe = recipe_over(bucket.load(folder / "data", "yt/data"), num_steps=2, window=32)
        make_data(recipe, ArtifactStore("gs://yt/store", folder / "first machine"))
        bucket.pace(latency_ms)
        bucket.reset()
        progress = FirstStep(bucket)
        train(recipe, ArtifactStore("gs://yt/store", folder / "second machine"), progress)
    size = sum(path.stat().st_size for path in (folder / "data").glob("train*"))
    return progress.bytes / size


def requests(folder: Path, few: int = 20, many: int = 40) -> float:
    """Requests besides reads that each further shard costs, from the listing through the index to one epoch."""
    asked = {}
    for num_shards in (few, many):
        home = folder / str(num_shards)
        write_data(home / "data", num_shards, 8, 20)
        with slow_bucket() as bucket:
            recipe = recipe_over(bucket.load(home / "data", "yt/data"), num_steps=num_shards, window=16)
            store = ArtifactStore("gs://yt/store", home / "machine")
            make_data(recipe, store)
            train(recipe, store)
            asked[num_shards] = bucket.counts().asked
    return (asked[many] - asked[few]) / (many - few)


def replaced_shard(folder: Path, num_shards: int = 60) -> float:
    """Bytes that another machine reads where one shard was replaced / bytes of that shard."""
    write_data(folder / "data", num_shards, 4, 20)
    with slow_bucket() as bucket:
        recipe = recipe_over(bucket.load(folder / "data", "yt/data"), num_steps=1, window=8)
        root = str(folder / "store")  # here, so that the bucket counts the shards' bytes alone
        make_data(recipe, ArtifactStore(root, folder / "first machine"))
        write_data(folder / "new", 1, 5, 20)
        for path in (folder / "new").iterdir():
            if path.name != "train0000.tfrecord":
                path.unlink()
        bucket.load(folder / "new", "yt/data")
        bucket.reset()
        result = make_shards(
            recipe, ArtifactStore(root, folder / "second machine"), "pretraining_shards", progress=QUIET
        )
        assert not result.reused
        return bucket.counts().bytes / (folder / "new" / "train0000.tfrecord").stat().st_size


def listing(folder: Path, num_shards: int = 3844, latency_ms: float = 60.0) -> float:
    """Seconds until a machine that has seen nothing knows that the published list of so many shards still holds."""
    write_data(folder / "data", num_shards, 1, 2)
    with slow_bucket() as bucket:
        recipe = recipe_over(bucket.load(folder / "data", "yt/data"), num_steps=1, window=8)
        make_data(recipe, ArtifactStore("gs://yt/store", folder / "first machine"))
        bucket.pace(latency_ms)
        bucket.reset()
        began = time.perf_counter()
        result = make_shards(
            recipe, ArtifactStore("gs://yt/store", folder / "second machine"), "pretraining_shards", progress=QUIET
        )
        seconds = time.perf_counter() - began
        assert result.reused
        assert (
            len(read_shards(recipe, ArtifactStore("gs://yt/store", folder / "m"), result.manifest).shards) == num_shards
        )
    return seconds


def publish_everything(recipe: Recipe, store: ArtifactStore) -> int:
    """A small artifact for every node but the data's, which is made; how many there are."""
    for asset in ("pretraining_shards", "segment_shards", "test_shards"):
        make_shards(recipe, store, asset, progress=QUIET)
    nodes = all_nodes(recipe)
    for node in nodes:
        if ASSETS[node.asset].files != "shards":
            with store.publish(node.key, **resolve_inputs(recipe, store, node).publish_arguments()) as publication:
                (publication.path / "file").write_text(node.key)
                (publication.report_path / "file").write_text(node.key)
    return len(nodes)


def _status(folder: Path, latency_ms: float) -> tuple[float, int]:
    """Seconds and requests of `yt8m status` of the challenge over a bucket."""
    from orchestration.status import status_report  # the others are measured where there is no Dagster, too

    write_data(folder / "data", 4, 4, 20)
    with slow_bucket() as bucket:
        data = recipe_over(bucket.load(folder / "data", "yt/data"), num_steps=1, window=8).data
        recipe = replace(load_recipe("challenge"), data=data)
        assert publish_everything(recipe, ArtifactStore("gs://yt/store", folder / "first machine")) == 101
        bucket.pace(latency_ms)
        bucket.reset()
        store = ArtifactStore("gs://yt/store", folder / "second machine")
        began = time.perf_counter()
        table, *rest = status_report(recipe, store)
        seconds = time.perf_counter() - began
        assert not rest, rest
        assert table.row_count > 9
        counts = bucket.counts()
    return seconds, counts.asked + counts.reads


def status(folder: Path, latency_ms: float = 60.0) -> float:
    """Seconds of `yt8m status` of the challenge over a bucket, on a machine that has seen nothing yet."""
    return _status(folder, latency_ms)[0]


def status_requests(folder: Path) -> float:
    """Requests of it beyond one for each manifest."""
    return _status(folder, 0)[1] - 101


NUM_SHARDS, VIDEOS_A_SHARD, NUM_WORKERS = 3844, 1457, 8


def synthetic_index(folder: Path, num_shards: int) -> list[PackedShard]:
    """The published index of shards that do not exist, one file of rows; a thousandth of the videos is held out."""
    rows = np.zeros(VIDEOS_A_SHARD, ROW)
    rows["length"], rows["rgb_start"], rows["audio_start"] = 265_000, 100, 235_000
    rows["num_frames"] = 100 + np.arange(VIDEOS_A_SHARD) % 200
    rows["num_frames"][7] |= 1 << 31
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "0000.rows").open("wb") as file:
        for shard in range(num_shards):
            rows["id"] = np.char.add(f"{shard:04d}".encode(), np.arange(VIDEOS_A_SHARD).astype("S4"))
            file.write(rows.tobytes())
    shared: Any = {"feature_sizes": (1024, 128), "path": folder / "0000.rows", "num_rows": VIDEOS_A_SHARD}
    shared |= {"num_records": VIDEOS_A_SHARD, "num_held_out": 1, "held_out": False, "size": 390_000_000}
    return [
        PackedShard(uri=f"gs://yt/train{n:04d}.tfrecord", checksum=f"{n}", first=n * rows.nbytes, **shared)
        for n in range(num_shards)
    ]


def _work(dataset: PretrainingDataset, answers: Any, wait: Any) -> None:
    """What a reader process does before its first byte of a shard, and what memory it then has for itself alone."""
    began = time.perf_counter()
    plan = dataset._plan(1)
    numbers = np.array(
        [plan.order[place] for place in range(dataset.num_examples // 2, dataset.num_examples // 2 + 512)]
    )
    lengths = dataset.videos.num_frames[numbers]
    names = [dataset.videos.video_ids[number] for number in numbers.tolist()]
    seconds = time.perf_counter() - began
    answers.put((psutil.Process().memory_full_info().uss, seconds, len(set(names)), int(lengths.max())))
    wait.wait()


def _memory_of_workers(dataset: PretrainingDataset) -> tuple[float, float]:
    """Bytes of the largest of eight workers, and seconds until all were ready."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["yt8m_assets.data.dataset.datasets", "torch"])
    answers, wait = context.Queue(), context.Event()
    began = time.perf_counter()
    workers = [context.Process(target=_work, args=(dataset, answers, wait)) for _ in range(NUM_WORKERS)]
    for worker in workers:
        worker.start()
    found = [answers.get(timeout=300) for _ in workers]
    seconds = time.perf_counter() - began
    wait.set()
    for worker in workers:
        worker.join()
    return max(used for used, *_ in found), seconds


def _dataset(folder: Path, num_shards: int) -> PretrainingDataset:
    videos = IndexedVideos(synthetic_index(folder, num_shards))
    return PretrainingDataset(videos, num_classes=3862, batch_size=128, window_frames=5, num_workers=NUM_WORKERS)


def worker_memory(folder: Path, num_shards: int = NUM_SHARDS) -> float:
    """Megabytes that each of eight reader processes has more for the index of all shards than for that of 8."""
    little, _ = _memory_of_workers(_dataset(folder / "little", 8))
    much, _ = _memory_of_workers(_dataset(folder / "much", num_shards))
    return (much - little) / 1e6


def worker_start(folder: Path, num_shards: int = NUM_SHARDS) -> float:
    """Seconds until eight reader processes of the whole index know what to read first."""
    return _memory_of_workers(_dataset(folder, num_shards))[1]
