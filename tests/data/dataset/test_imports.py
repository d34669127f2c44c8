"""Features of others' extractors as shards of this project."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.factory import SIZES
from yt8m_assets.data import read_shard
from yt8m_assets.data.dataset import imports
from yt8m_assets.data.dataset.imports import import_features, legal_id, read_ids, read_labels
from yt8m_assets.data.dataset.windows import dequantise
from yt8m_assets.data.records.foreign import Whitening, read_whitening
from yt8m_assets.data.records.framing import RecordWriter
from yt8m_assets.data.records.wire import bytes_feature, field, float_feature, map_entry
from yt8m_assets.errors import ConfigError, CorruptShardError, DataError, SchemaMismatchError
from yt8m_assets.progress import NullProgress

MEDIAPIPE = ("RGB/feature/floats", "AUDIO/feature/floats")
STARTER = ("rgb", "audio")
PATH = "/videos/a cat, sleeping.mp4"
GENERATOR = np.random.default_rng(3)


def foreign(name: str, lists: dict[str, Any], id_feature: str = "id") -> bytes:
    """A record as an extractor writes it: float or byte rows by name of the list."""
    entries = b""
    for key, rows in lists.items():
        features = [bytes_feature(row.tobytes()) if row.dtype == np.uint8 else float_feature(row) for row in rows]
        entries += map_entry(key, b"".join(field(1, feature) for feature in features))
    return field(1, map_entry(id_feature, bytes_feature(name.encode()))) + field(2, entries)


def write(path: Path, *records: bytes) -> str:
    with RecordWriter(path) as writer:
        for record in records:
            writer.write(record)
    return str(path)


def floats(num_frames: int, size: int) -> np.ndarray:
    return GENERATOR.normal(size=(num_frames, size)).astype(np.float32)


def run(uri: str, target: Path, **options: Any) -> Any:
    return import_features([uri], target, feature_sizes=SIZES, progress=NullProgress(), **options)


def videos(target: Path) -> list[Any]:
    return [v for path in sorted(target.glob("*.tfrecord")) for v in read_shard(str(path), feature_sizes=SIZES)]


def test_mediapipes_floats_are_quantised_as_the_data_set(tmp_path: Path):
    """What the models read of them is within half a step of the floats, and within [-2, 2]; the longer list is cut."""
    rgb, audio = floats(6, 8) * 2, floats(5, 4)
    uri = write(
        tmp_path / "a.tfrecord", foreign(PATH, dict(zip(MEDIAPIPE, (rgb, audio), strict=True)), "clip/data_path")
    )
    found = run(uri, tmp_path / "mine")
    assert (found.num_videos, found.num_seconds, found.num_labelled) == (1, 5, 0)
    (video,) = videos(tmp_path / "mine")
    read = dequantise(video.frames)
    expected = np.clip(np.concatenate([rgb[:5], audio], axis=1), -2, 2)
    assert np.abs(read - expected).max() <= 2 / 255 + 1e-3
    assert video.frames[expected == 2].tolist() == [255] * int((expected == 2).sum())
    assert video.frames[expected == -2].tolist() == [0] * int((expected == -2).sum())
    assert abs(float((read - expected)[np.abs(expected) < 2].mean())) < 2e-3  # no bias: half a step would be 0.008
    assert video.labels.size == 0


def test_the_starters_bytes_stay_as_they_are(tmp_path: Path):
    rgb, audio = (GENERATOR.integers(0, 256, (7, size), dtype=np.uint8) for size in SIZES)
    uri = write(tmp_path / "a.tfrecord", foreign("abcd", dict(zip(STARTER, (rgb, audio), strict=True))))
    run(uri, tmp_path / "mine")
    (video,) = videos(tmp_path / "mine")
    assert video.video_id == "abcd"
    np.testing.assert_array_equal(video.frames, np.concatenate([rgb, audio], axis=1))


def test_a_projection_whitens_floats(tmp_path: Path):
    """Correlated features come out with the unit covariance that their own statistics give."""
    mixed = floats(4000, 12) @ GENERATOR.normal(size=(12, 12)) / 4 + 3
    values, vectors = np.linalg.eigh(np.cov(mixed, rowvar=False))
    best = np.argsort(values)[::-1][:8]
    path = tmp_path / "pca.npz"
    np.savez(path, rgb_mean=mixed.mean(0), rgb_components=vectors[:, best].T, rgb_eigenvalues=values[best])
    whitened = read_whitening(path)["rgb"](mixed)
    np.testing.assert_allclose(np.cov(whitened, rowvar=False), np.eye(8), atol=0.02)
    rows = mixed[:9].astype(np.float32)
    record = foreign(PATH, {MEDIAPIPE[0]: rows, MEDIAPIPE[1]: floats(9, 4)})
    uri = write(tmp_path / "a.tfrecord", record)
    run(uri, tmp_path / "mine", whitening=read_whitening(path))
    (video,) = videos(tmp_path / "mine")
    np.testing.assert_allclose(dequantise(video.frames)[:, :8], np.clip(whitened[:9], -2, 2), atol=0.02)
    with pytest.raises(
        DataError, match=r"a\.tfrecord: record 0 at byte 0: rgb: 12 features a frame, expected 8; --pca"
    ):
        run(uri, tmp_path / "other")
    wrong = {"rgb": Whitening(np.zeros(5), np.zeros((8, 5)), np.ones(8))}
    with pytest.raises(DataError, match="rgb: 12 floats a frame, the whitening is for 5"):
        run(uri, tmp_path / "other", whitening=wrong)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"rgb_mean": np.zeros(3)}, "rgb_components is missing"),
        ({"x": np.zeros(3)}, "holds neither rgb_mean nor audio_mean; it has x"),
        (
            {"audio_mean": np.zeros(3), "audio_components": np.zeros((2, 4)), "audio_eigenvalues": np.ones(2)},
            r"expected a mean \[D\], components \[F, D\] and eigenvalues \[F\]; got audio_mean \(3,\)",
        ),
        (
            {"audio_mean": np.zeros(3), "audio_components": np.zeros((2, 3)), "audio_eigenvalues": -np.ones(2)},
            "a negative eigenvalue",
        ),
    ],
)
def test_a_wrong_projection_is_named(arrays: dict[str, np.ndarray], message: str, tmp_path: Path):
    np.savez(tmp_path / "pca.npz", **arrays)
    with pytest.raises(DataError, match=rf"pca\.npz: {message}|pca\.npz: audio: .*{message}"):
        read_whitening(tmp_path / "pca.npz")


def test_ids_are_mapped_and_labels_follow_the_old_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(imports, "SHARD_VIDEOS", 2)
    names = [PATH, "-_Az", "b" * 200, "x", "/videos/\u00fcber.mp4"]
    records = [foreign(name, {"rgb": floats(3 + i, 8), "audio": floats(3 + i, 4)}) for i, name in enumerate(names)]
    uri = write(tmp_path / "a.tfrecord", *records)
    labels = tmp_path / "labels.csv"
    labels.write_text(f'id,labels\n"{PATH}",7 3\n-_Az,\nx,1\n')
    found = run(uri, tmp_path / "mine", labels=read_labels(labels, 8))
    assert [path.name for path in found.shards] == [f"import-0000{i}.tfrecord" for i in range(3)]
    assert (found.num_videos, found.num_labelled) == (5, 3)
    made = videos(tmp_path / "mine")
    assert [video.video_id for video in made] == [legal_id(name) for name in names]
    assert [len(video.frames) for video in made] == [3, 4, 5, 6, 7]
    assert [video.labels.tolist() for video in made] == [[3, 7], [], [], [1], []]
    assert made[1].video_id == "-_Az"
    with (tmp_path / "mine" / "ids.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == names
    assert [row["source"] for row in rows] == [f"{uri}:{number}" for number in range(5)]
    assert read_ids(tmp_path / "mine")[PATH] == made[0].video_id == legal_id(PATH)
    with pytest.raises(ConfigError, match="holds an import already"):
        run(uri, tmp_path / "mine")


def test_a_video_without_sound(tmp_path: Path):
    uri = write(tmp_path / "a.tfrecord", foreign(PATH, {"rgb": floats(3, 8)}))
    with pytest.raises(DataError, match=r"record 0 at byte 0: '/videos/a cat, sleeping\.mp4' has no audio; --silent"):
        run(uri, tmp_path / "mine")
    run(uri, tmp_path / "mine", silent=True)
    (video,) = videos(tmp_path / "mine")
    assert np.abs(dequantise(video.frames)[:, 8:]).max() < 0.01


GOOD = {"rgb": np.zeros((4, 8), np.float32), "audio": np.zeros((4, 4), np.float32)}


@pytest.mark.parametrize(
    ("record", "kind", "message"),
    [
        (b"\xff\xff", SchemaMismatchError, "not a tf.train.SequenceExample"),
        (foreign("x", {"pose": GOOD["rgb"]}), SchemaMismatchError, "has none of the feature lists rgb, .*it has pose"),
        (foreign("x", GOOD, "name"), SchemaMismatchError, "id: none of id, video_id, .* names the video"),
        (
            foreign("x", GOOD | {"rgb": [np.zeros(8, np.float32), np.zeros(7, np.float32)]}),
            SchemaMismatchError,
            "rgb: frame 1 has 7 float32 values, the first has 8 float32",
        ),
        (
            foreign("x", GOOD | {"rgb": np.full((4, 8), np.nan, np.float32)}),
            SchemaMismatchError,
            "rgb: frame 0 holds a value that is not finite",
        ),
        (foreign("x", GOOD | {"audio": GOOD["audio"][:1]}), DataError, "rgb has 4 seconds, audio 1: not of one video"),
        (foreign("fine", GOOD), DataError, "id 'fine' is fine, as 'fine' of .*record 0 at byte 0 is"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(
    record: bytes, kind: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Though a shard before it was finished."""
    monkeypatch.setattr(imports, "SHARD_VIDEOS", 1)
    uri = write(tmp_path / "a.tfrecord", foreign("fine", GOOD), foreign("well", GOOD), record)
    with pytest.raises(kind, match=rf"a\.tfrecord: record 2 at byte \d+: .*{message}"):
        run(uri, tmp_path / "mine")
    assert not list((tmp_path / "mine").glob("*"))
    whole = Path(uri).read_bytes()
    Path(uri).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CorruptShardError):
        run(uri, tmp_path / "mine")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("video,labels\n", r"line 1: expected the columns id,labels, got 'video,labels'"),
        ("id,labels\na,1\na,2\n", "line 3: 'a' stands twice"),
        ("id,labels\na,1 8\n", "line 2: labels: '8' is no class from 0 to 7"),
        ("id,labels\na,cat\n", "line 2: labels: 'cat' is no class"),
        ("id,labels\na\n", "line 2: 1 columns"),
    ],
)
def test_wrong_labels_are_named_by_line(text: str, message: str, tmp_path: Path):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_labels(path, 8)


def test_labels_of_no_video_are_named(tmp_path: Path):
    uri = write(tmp_path / "a.tfrecord", foreign("fine", GOOD))
    with pytest.raises(DataError, match="labels: 1 videos are not in the features: other"):
        run(uri, tmp_path / "mine", labels={"fine": [1], "other": [2]})
    assert not list((tmp_path / "mine").glob("*"))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"id,labels\na," + b"9" * 5000 + b"\n", "line 2: labels: .* is no class"),
        (b"id,labels\na,\xff\xfe\n", "byte 12 is no text"),
        (b"id,labels\n\"" + b"x" * 200_000 + b"\n", "not a CSV of labels"),
        (b"\"" + b"x" * 200_000 + b"\n", "not a CSV of labels"),
    ],
)  # fmt: skip
def test_labels_that_cannot_be_read_are_refused_by_name(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"labels\.csv.*{what}"):
        read_labels(path, 10)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("place", [-30, "middle"])
def test_a_damaged_whitening_is_refused_by_name(tmp_path: Path, compressed: bool, place: int | str) -> None:
    path = tmp_path / "pca.npz"
    arrays = {"rgb_mean": np.zeros(900), "rgb_components": np.ones((3, 900)), "rgb_eigenvalues": np.ones(3)}
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    content = bytearray(path.read_bytes())
    first = len(content) // 2 if place == "middle" else int(place)
    content[first : first + 8 if first + 8 else None] = b"\xff" * len(content[first : first + 8 if first + 8 else None])
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"pca\.npz: not an NPZ file of plain arrays"):
        read_whitening(path)
