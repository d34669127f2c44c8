"""What the models see in a video, second by second: the top classes over time, as a picture and as JSON."""

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yt8m_assets.errors import DataError
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.lineage import current_manifest, require_current
from yt8m_assets.stages.nodes import Node
from yt8m_assets.storage import ArtifactStore, Manifest
from yt8m_assets.verbatim import for_picture

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from models import FrameModel
    from yt8m_assets.data.records.video import Video

NUM_CLASSES = 6
_WINDOW = 5


def busiest_video(store: ArtifactStore, ratings: Manifest) -> str:
    """The hold-out video with the most positive ratings; the first by id among equals. Raises DataError without any."""
    with (store.fetch(ratings, ("ratings.csv",)) / "ratings.csv").open(newline="", encoding="utf-8") as file:
        positive = [row[0].rpartition(":")[0] for row in csv.reader(file) if len(row) == 3 and row[2] in ("1", "1.0")]
    if not positive:
        raise DataError("no hold-out segment is rated positive: there is no video to show")
    counts = Counter(positive)
    return min(counts, key=lambda video_id: (-counts[video_id], video_id))


def make_timeline(
    recipe: Recipe,
    store: ArtifactStore,
    video_id: str,
    folder: Path,
    *,
    model_keys: Sequence[str] = (),
    num_classes: int = NUM_CLASSES,
    shards: str | None = None,
) -> Path:
    """Score a window around each second of a video; write `timeline.json`, `.csv` and `.png`; the picture's path.

    The CSV has the best classes of every second. `shards`: a folder or pattern of shards to look the video up in, by
    its id or by the name that it was imported under; by default those of the recipe.

    The probabilities are means over the models (default: all of the recipe, with the ensemble's weights where they are
    up to date). Raises DataError for a video that is in neither the segment nor the test shards, ParentMismatchError
    naming the model or the shards that are not up to date.
    """
    from yt8m_assets.data.records.vocabulary import class_names
    from yt8m_assets.stages.data import VOCABULARY_FILE, read_segment_classes

    video = find_video(recipe, store, video_id) if shards is None else find_imported(recipe, shards, video_id)
    classes = read_segment_classes(recipe, store)
    scores = score_seconds(recipe, store, video, list(model_keys) or list(recipe.model_keys), classes)
    chosen = (-scores.max(axis=0)).argsort(kind="stable")[:num_classes]
    published = require_current(recipe, store, Node("segment_shards"))
    has_names = VOCABULARY_FILE in published.files
    names = class_names(
        str(store.fetch(published, (VOCABULARY_FILE,)) / VOCABULARY_FILE) if has_names else None, classes
    )
    content = {
        "video_id": video.video_id,
        "seconds": len(scores),
        "models": list(model_keys) or list(recipe.model_keys),
        "classes": [
            {
                "class_id": int(classes[column]),
                "name": names[int(classes[column])],
                "probabilities": [round(float(value), 5) for value in scores[:, column]],
                "ratings": _ratings_of(video, int(classes[column])),
            }
            for column in chosen
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "timeline.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    write_seconds(folder / "timeline.csv", scores, classes, names, num_classes)
    path = folder / "timeline.png"
    draw_timeline(content, path)
    return path


def find_video(recipe: Recipe, store: ArtifactStore, video_id: str) -> "Video":
    """A video of the segment or test shards, by id. Raises DataError when it is in neither."""
    from yt8m_assets.data.dataset.memory import load_videos
    from yt8m_assets.data.records.video import Video
    from yt8m_assets.stages.data import read_shards
    from yt8m_assets.stages.indexing import read_index

    for asset in ("segment_shards", "test_shards"):
        if not store.numbers(asset):
            continue
        manifest = require_current(recipe, store, Node(asset))
        shards = read_index(store, manifest, read_shards(recipe, store, manifest))
        videos = load_videos(shards, recipe.data.reading(store.cache))
        if video_id in videos.video_ids:
            number = videos.video_ids.index(video_id)
            labels, segments = videos.annotations(number)
            return Video(video_id, videos.read(number), labels, segments)
    raise DataError(f"video {video_id!r} is neither in the segment shards nor in the test shards")


def find_imported(recipe: Recipe, shards: str, name: str) -> "Video":
    """A video of any shards, by its id or by its name in the table of an import. Raises DataError, MissingDataError."""
    from yt8m_assets.data.dataset.imports import IDS_FILE, read_ids
    from yt8m_assets.data.dataset.shards import expand_patterns
    from yt8m_assets.data.records.reader import read_shard

    folder, (rgb_size, audio_size) = Path(shards), recipe.data.feature_sizes
    video_id = read_ids(folder).get(name, name) if (folder / IDS_FILE).is_file() else name
    for uri in expand_patterns([f"{shards}/*.tfrecord" if folder.is_dir() else shards]):
        for video in read_shard(uri, feature_sizes=(rgb_size, audio_size)):
            if video.video_id == video_id and video.frames is not None and len(video.frames):
                return video
    raise DataError(f"video {name!r} is not in the shards {shards}")


def write_seconds(
    path: Path, scores: "np.ndarray", classes: "np.ndarray", names: Mapping[int, str], num_classes: int
) -> None:
    """A row for each of the best classes of every second: second, place, class, name, probability."""
    from yt8m_assets.storage import atomic_write

    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["second", "place", "class_id", "name", "probability"])
        for second, row in enumerate(scores):
            for place, column in enumerate((-row).argsort(kind="stable")[:num_classes].tolist(), 1):
                class_id = int(classes[column])
                writer.writerow([second, place, class_id, names[class_id], round(float(row[column]), 5)])


def score_seconds(
    recipe: Recipe, store: ArtifactStore, video: "Video", model_keys: Sequence[str], classes: "np.ndarray"
) -> "np.ndarray":
    """Mean probabilities float32 [T, R] of the 5 seconds around each second; at the ends the nearest frame stands."""
    import numpy as np
    import torch

    from models.base import sees_videos
    from yt8m_assets.data.records.features import model_inputs
    from yt8m_assets.stages.ensemble import read_weights
    from yt8m_assets.stages.training import load_model

    assert video.frames is not None
    num_frames = len(video.frames)
    index = np.clip(np.arange(num_frames)[:, None] + np.arange(_WINDOW) - _WINDOW // 2, 0, num_frames - 1)
    frames = torch.from_numpy(video.frames[index])
    inputs = model_inputs(frames, torch.ones(frames.shape[:2], dtype=torch.bool))
    counts = torch.full((num_frames,), _WINDOW, dtype=torch.int64)
    manifest = current_manifest(recipe, store, Node("ensemble_weights"))
    weights = read_weights(store.fetch(manifest))["weights"] if manifest else {}
    shares = np.array([weights.get(key, 0.0) for key in model_keys])
    shares = shares / shares.sum() if shares.sum() > 0 else np.full(len(model_keys), 1 / len(model_keys))
    total = np.zeros((num_frames, len(classes)), np.float32)
    for key, share in zip(model_keys, shares.tolist(), strict=True):
        model: Any = load_model(store, require_current(recipe, store, Node("finetuned_model", key)))
        with torch.inference_mode():
            restricted = model.restrict_classes(torch.as_tensor(classes, dtype=torch.int64))
            if sees_videos(restricted):
                found = _among_all(restricted, torch.from_numpy(video.frames), torch.from_numpy(index))
            else:
                found = restricted(inputs, counts).probabilities
            total += share * found.numpy()
    return total


def _among_all(model: "FrameModel", frames: "Tensor", index: "Tensor") -> "Tensor":
    """Probabilities [T, R] of the windows `index` int64 [T, 5] of a video uint8 [T, F], each among every fifth."""
    import torch

    from yt8m_assets.data.records.features import model_inputs

    embedded = model.embed_frames(model_inputs(frames[None], torch.ones((1, len(frames)), dtype=torch.bool))[0])
    grids = [index[first::_WINDOW][None] for first in range(min(_WINDOW, len(index)))]
    found = [model.score_videos(embedded, grid, torch.full(grid.shape[:2], _WINDOW))[0] for grid in grids]
    order = torch.cat([torch.arange(first, len(index), _WINDOW) for first in range(len(grids))])
    return torch.cat(found)[order.argsort()]


def _ratings_of(video: "Video", class_id: int) -> list[list[int]]:
    """[start, 0 or 1] of each rating of a class."""
    if video.segments is None:
        return []
    rows = zip(
        video.segments.start_times.tolist(),
        video.segments.class_ids.tolist(),
        video.segments.scores.tolist(),
        strict=True,
    )
    return sorted([int(start), int(score > 0)] for start, rated, score in rows if rated == class_id)


def draw_timeline(content: dict[str, Any], path: Path) -> None:
    """A strip per class: probability by second; ratings as filled (shows it) and hatched (does not) bars below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = content["classes"]
    figure = Figure(figsize=(11, 0.9 * len(rows) + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
    for panel, row in zip(panels, rows, strict=True):
        panel.fill_between(range(content["seconds"]), row["probabilities"], step="mid", color="0.75")
        for start, score in row["ratings"]:
            look = {"facecolor": "#0072b2"} if score else {"facecolor": "#e69f00", "hatch": "////"}
            panel.axvspan(start, start + _WINDOW, ymax=0.12, edgecolor="black", linewidth=0.5, **look)
        panel.set(ylim=(0, 1), yticks=(0, 1))
        panel.set_ylabel(for_picture(row["name"][:24]), rotation=0, ha="right", va="center", fontsize=8)
    name = for_picture(content["video_id"])
    panels[0].set_title(f"{name}: probability by second; raters: blue yes, hatched no", fontsize=9)
    panels[-1].set(xlabel="second", xlim=(0, content["seconds"]))
    figure.savefig(path, dpi=100, metadata={"Software": None})
