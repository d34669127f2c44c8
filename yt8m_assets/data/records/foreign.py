"""Records of others' extractors: feature lists of floats, or of bytes quantised already, under ids of any form.

Known: MediaPipe's names `RGB/feature/floats` and `AUDIO/feature/floats` (floats, whitened by its graph), and the
starter's `rgb` and `audio` (bytes); either name may hold either kind. D: features before whitening, F: after.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from yt8m_assets.data.records.examples import FEATURE_NAMES
from yt8m_assets.data.records.parsing import MAX_FRAMES
from yt8m_assets.data.records.wire import example_messages
from yt8m_assets.errors import DataError, SchemaMismatchError
from yt8m_assets.storage.arrays import read_arrays

LISTS = {"rgb": ("rgb", "RGB/feature/floats"), "audio": ("audio", "AUDIO/feature/floats")}
"""Names of the feature lists that a modality may have."""
IDS = ("id", "video_id", "example/id", "clip/media_id", "clip/data_path")
"""Features of the context that may name the video, in order of preference."""
EIGENVALUE_FLOOR = 1e-4
"""Added to the eigenvalues, as the data set's own extractor does."""


@dataclass(frozen=True)
class ForeignVideo:
    """A video as an extractor wrote it."""

    name: str
    """What it is called there."""
    features: dict[str, np.ndarray]
    """By modality: uint8 [T, F] where quantised, else float32 [T, D]."""


@dataclass(frozen=True)
class Whitening:
    """A projection to whitened features: (x - mean) @ components.T / sqrt(eigenvalues + 1e-4)."""

    mean: np.ndarray
    """float64 [D]."""
    components: np.ndarray
    """float64 [F, D]: a row for each whitened feature."""
    eigenvalues: np.ndarray
    """float64 [F]."""

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """[T, D] -> float64 [T, F]."""
        return (features - self.mean) @ self.components.T / np.sqrt(self.eigenvalues + EIGENVALUE_FLOOR)


def read_whitening(path: Path) -> dict[str, Whitening]:
    """The projections of an NPZ file by modality: `rgb_mean` [D], `rgb_components` [F, D], `rgb_eigenvalues` [F] ...

    Raises DataError naming the array that is missing or of another shape.
    """
    try:
        arrays = {name: array.astype(np.float64) for name, array in read_arrays(path).items()}
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: not numbers ({error})") from error
    found = {}
    for modality in FEATURE_NAMES:
        names = [f"{modality}_{part}" for part in ("mean", "components", "eigenvalues")]
        given = [arrays.get(name) for name in names]
        if all(array is None for array in given):
            continue
        missing = [name for name, array in zip(names, given, strict=True) if array is None]
        if missing:
            raise DataError(f"{path}: {missing[0]} is missing; it holds {', '.join(sorted(arrays))}")
        parts = [np.asarray(array) for array in given]
        mean, components, eigenvalues = parts
        if components.ndim != 2 or mean.shape != components.shape[1:] or eigenvalues.shape != components.shape[:1]:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in zip(names, parts, strict=True))
            raise DataError(f"{path}: expected a mean [D], components [F, D] and eigenvalues [F]; got {shapes}")
        if not all(np.isfinite(array).all() for array in parts) or eigenvalues.min() < 0:
            raise DataError(f"{path}: {modality}: holds values that are not finite, or a negative eigenvalue")
        found[modality] = Whitening(mean, components, eigenvalues)
    if not found:
        raise DataError(
            f"{path}: holds neither rgb_mean nor audio_mean; it has {', '.join(sorted(arrays)) or 'nothing'}"
        )
    return found


def quantise(features: np.ndarray) -> np.ndarray:
    """float [T, F] -> uint8 [T, F], as the data set's: 4 / 255 a step from -2, clipped at 2 (SPEC section 1)."""
    return np.clip((np.asarray(features, np.float32) + np.float32(2)) * np.float32(255 / 4), 0, 255).astype(np.uint8)


def parse_foreign(view: memoryview, uri: str, offset: int, record: int) -> ForeignVideo:
    """A record of an extractor. Raises SchemaMismatchError naming file, record and feature."""
    try:
        example = example_messages().SequenceExample.FromString(bytes(view))
    except DecodeError as error:
        raise SchemaMismatchError(uri, offset, record, f"not a tf.train.SequenceExample ({error})") from error
    try:
        lists = example.feature_lists.feature_list
        found = {modality: _features(lists, names) for modality, names in LISTS.items()}
        features = {modality: values for modality, values in found.items() if values is not None}
        if not features:
            known = ", ".join(name for names in LISTS.values() for name in names)
            raise ValueError(f"has none of the feature lists {known}; it has {', '.join(sorted(lists)) or 'none'}")
        return ForeignVideo(_name(example.context.feature), features)
    except ValueError as error:
        raise SchemaMismatchError(uri, offset, record, str(error)) from error


def _name(context: Mapping[str, Any]) -> str:
    for name in IDS:
        if name in context and (values := context[name].bytes_list.value):
            text = values[0].decode("utf-8", "backslashreplace")
            if text:
                return text
    raise ValueError(f"id: none of {', '.join(IDS)} names the video")


def _features(lists: Mapping[str, Any], names: tuple[str, ...]) -> np.ndarray | None:
    name = next((name for name in names if name in lists), None)
    if name is None:
        return None
    frames = lists[name].feature
    if len(frames) > MAX_FRAMES:
        raise ValueError(f"{name}: has {len(frames):,} frames, more than the limit of {MAX_FRAMES:,}")
    rows: list[np.ndarray] = []
    for number, frame in enumerate(frames):
        kind = frame.WhichOneof("kind")
        if kind == "float_list":
            row = np.array(frame.float_list.value, np.float32)
        elif kind == "bytes_list" and len(frame.bytes_list.value) == 1:
            row = np.frombuffer(frame.bytes_list.value[0], np.uint8)
        else:
            raise ValueError(f"{name}: expected floats or one byte string in frame {number}, got {kind}")
        if rows and (row.shape != rows[0].shape or row.dtype != rows[0].dtype):
            sizes = f"frame {number} has {len(row)} {row.dtype} values, the first has {len(rows[0])} {rows[0].dtype}"
            raise ValueError(f"{name}: {sizes}")
        if not np.isfinite(row).all():
            raise ValueError(f"{name}: frame {number} holds a value that is not finite")
        rows.append(row)
    return np.stack(rows) if rows else None
