"""Every segment scored by many models at many shifts, in one pass over the videos.

Shapes: N frames of a block of videos, S segments of it, H shifts, R rated classes, F features. A block's frames go to
the device once, as bytes; normalisation is per frame, so it is done once. Whatever else a model computes of a frame
alone is done once too, and every shift's windows are gathered from that.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from models import FrameModel
from yt8m_assets.data.dataset.ahead import walk
from yt8m_assets.data.dataset.loading import read_ahead
from yt8m_assets.data.dataset.videos import Videos
from yt8m_assets.data.dataset.windows import SEGMENT_FRAMES, Edges, segment_frame_index
from yt8m_assets.data.records.features import model_inputs
from yt8m_assets.device.compilation import Compiled
from yt8m_assets.device.memory import is_out_of_memory
from yt8m_assets.device.transfer import Arriving
from yt8m_assets.errors import OutOfMemoryError, Yt8mError
from yt8m_assets.progress import Progress
from yt8m_assets.ranking.demotion import demote
from yt8m_assets.ranking.files import Ranking, Segments
from yt8m_assets.ranking.topk import StreamingTopK
from yt8m_assets.ranking.video_term import compose

_PREFETCHED_BLOCKS = 2


@dataclass(frozen=True, kw_only=True)
class ScoringOptions:
    """How segments are cut and scored (see `PredictionConfig`)."""

    batch_size: int = 512
    """Windows a forward pass sees."""
    edges: Edges = "clamp"
    """What a shifted window shows beyond the video."""
    max_frames: int = 300
    """Frames of a video that are used."""
    top_k: int = 100_000
    """Segments kept per class."""
    precision: str = "float32"
    """Arithmetic of the forward pass."""
    compile: bool = False
    """Compile the models; pays off from some ten thousand segments."""
    trim_start: int = 0
    """Segments at a video's beginning that are ranked last."""
    trim_end: int = 0
    """Segments at a video's end that are ranked last."""
    candidate_classes: int | None = None
    """Classes a video is a candidate for, those of highest mean score; in the others it is ranked last. None: all."""
    video_weight: float = 0.0
    """Weight of a video's own evidence in its segments' scores (`ranking.video_term`)."""


@dataclass(kw_only=True)
class CellScores:
    """What one model makes of all segments at one shift, while the pass runs and after it."""

    shift: int
    """Seconds by which the window is moved."""
    best: StreamingTopK
    """The best segments so far."""
    lowest: float = float("inf")
    """Smallest score met."""
    highest: float = float("-inf")
    """Largest score met."""
    error: Exception | None = None
    """Why this cell could not be finished; the others go on."""

    def update(self, scores: np.ndarray, block: "_Block", options: ScoringOptions) -> None:
        """Take in scores float32 [S, R] of a block, with its videos' evidence and its demotions."""
        if self.error is not None:
            return
        self.lowest, self.highest = min(self.lowest, float(scores.min())), max(self.highest, float(scores.max()))
        try:
            composed = compose(scores, block.begins, options.video_weight)
            self.best.update(demote(composed, block.edge, block.begins, options.candidate_classes), block.rows)
        except Yt8mError as error:
            self.error = error

    def finish(self) -> Ranking:
        """The ranking. Raises what stopped this cell."""
        if self.error is not None:
            raise self.error
        return self.best.finish()


@dataclass(kw_only=True)
class ModelCells:
    """A model, its head cut to the rated classes and in evaluation mode, and its cells."""

    key: str
    """Partition key of the model."""
    model: FrameModel
    """The restricted model, on the device."""
    cells: list[CellScores]
    """One per shift."""


@dataclass(frozen=True, kw_only=True)
class SegmentIndex:
    """All segments of some videos: the canonical table and where each video's segments lie in it."""

    segments: Segments
    """The table."""
    rows: np.ndarray
    """int32 [all segments]: row in the table, in the order of the videos."""
    first: np.ndarray
    """int64 [V + 1]: a video's segments are rows[first[v] : first[v + 1]]."""

    @classmethod
    def of(cls, videos: Videos) -> "SegmentIndex":
        """A segment starts every 5 seconds (SPEC section 10). Raises DataError for a repeated video id."""
        counts = -(-np.asarray(videos.num_frames, np.int64) // SEGMENT_FRAMES)
        counts[videos.damaged(np.arange(len(counts)))] = 0  # set aside now, before their segments are counted
        first = np.concatenate([[0], np.cumsum(counts)])
        video = np.repeat(np.arange(len(counts)), counts)
        start = (np.arange(first[-1]) - first[video]) * SEGMENT_FRAMES
        segments, rows = Segments.sorted(videos.video_ids, video, start)
        return cls(segments=segments, rows=rows, first=first)


@dataclass(kw_only=True)
class PassStatistics:
    """What a pass over the data did."""

    num_segments: int = 0
    """Segments scored."""
    seconds: float = 0.0
    """Time of the pass."""
    num_windows_past_end: dict[int, int] = field(default_factory=dict)
    """Per shift: windows with at least one row outside the video (zeros)."""


@dataclass(frozen=True)
class _Block:
    """Some whole videos: frames uint8 [N, F]; index int64 [H, S, 5] into them (N: a zero row); begins int64 [V]."""

    frames: Tensor
    index: Tensor
    num_frames: Tensor
    rows: np.ndarray
    edge: np.ndarray
    begins: np.ndarray
    past_end: np.ndarray

    def pinned(self) -> "_Block":
        """The same in page-locked memory, from where it is copied to a GPU without waiting for what that computes."""
        tensors = {name: getattr(self, name).pin_memory() for name in ("frames", "index", "num_frames")}
        return replace(self, **tensors)


def read_blocks(
    videos: Videos, index: SegmentIndex, shifts: Sequence[int], options: ScoringOptions
) -> Iterator[_Block]:
    """Cut the videos, in order, into blocks of about `batch_size` segments; each video is read once."""
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    begin = 0
    for number in walk(videos):
        frames = videos.read(number)
        cut = [segment_frame_index(len(frames), shift, options.edges, options.max_frames) for shift in shifts]
        counts = cut[0][2]
        place = np.arange(len(counts))
        edge = (place < options.trim_start) | (place >= len(counts) - options.trim_end)
        if len(counts):
            parts.append((frames, np.stack([rows for rows, _, _ in cut]), counts, edge))
        if index.first[number + 1] - index.first[begin] >= options.batch_size or number + 1 == len(videos):
            if index.first[number + 1] > index.first[begin]:
                yield _join(parts, index.rows[index.first[begin] : index.first[number + 1]])
            parts, begin = [], number + 1


def _join(parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]], rows: np.ndarray) -> _Block:
    frames = np.concatenate([part[0] for part in parts])
    offsets = np.cumsum([0, *(len(part[0]) for part in parts)])
    shifted = [
        np.where(part[1] < 0, len(frames), part[1] + offset) for part, offset in zip(parts, offsets, strict=False)
    ]
    index = np.concatenate(shifted, axis=1)
    return _Block(
        frames=torch.from_numpy(frames),
        index=torch.from_numpy(index),
        num_frames=torch.from_numpy(np.concatenate([part[2] for part in parts])),
        rows=rows,
        edge=np.concatenate([part[3] for part in parts]),
        begins=np.cumsum([0, *(len(part[3]) for part in parts[:-1])]),
        past_end=(index == len(frames)).any(axis=2).sum(axis=1),
    )


def score_videos(
    videos: Videos,
    index: SegmentIndex,
    members: Sequence[ModelCells],
    options: ScoringOptions,
    *,
    device: torch.device,
    progress: Progress,
) -> PassStatistics:
    """Fill the cells of all members in one pass. A cell that fails keeps its error; the others are not affected."""
    shifts = sorted({cell.shift for member in members for cell in member.cells})
    statistics = PassStatistics(num_windows_past_end=dict.fromkeys(shifts, 0))
    num_cells = sum(len(member.cells) for member in members)
    started = time.monotonic()
    waiting: list[tuple[list[CellScores], Arriving, _Block]] = []
    blocks = read_blocks(videos, index, shifts, options)
    if device.type == "cuda":
        blocks = read_ahead((block.pinned() for block in blocks), _PREFETCHED_BLOCKS)
    scorers = {
        member.key: Compiled(
            member.model.score_windows, enabled=options.compile, what=f"scoring {member.key}", dynamic=True
        )
        for member in members
    }
    title = f"scoring {len(members)} models, {num_cells} cells"
    with progress.task(title, int(index.first[-1]), "segments") as task, torch.inference_mode():
        for block in blocks:
            found = [
                (live, Arriving(scores), block)
                for live, scores in _score_block(block, shifts, members, scorers, options, device)
            ]
            _take(waiting, options)  # the device works on this block while the last one's scores are ranked
            waiting = found
            for shift, count in zip(shifts, block.past_end.tolist(), strict=True):
                statistics.num_windows_past_end[shift] += count
            task.advance(len(block.rows))
        _take(waiting, options)
    statistics.num_segments, statistics.seconds = int(index.first[-1]), time.monotonic() - started
    return statistics


def _score_block(
    block: _Block,
    shifts: list[int],
    members: Sequence[ModelCells],
    scorers: Mapping[str, Compiled],
    options: ScoringOptions,
    device: torch.device,
) -> Iterator[tuple[list[CellScores], Tensor]]:
    """Per member: its cells that are still alive and their probabilities [H, S, R], on the device."""
    frames = block.frames.to(device, non_blocking=True)
    features = model_inputs(frames[None], torch.ones((1, len(frames)), dtype=torch.bool, device=device))[0]
    features = torch.cat([features, features.new_zeros((1, features.shape[1]))])
    index = block.index.to(device, non_blocking=True)
    num_frames = block.num_frames.to(device, non_blocking=True)
    for member in members:
        live = [cell for cell in member.cells if cell.error is None]
        if not live:
            continue
        chosen = [shifts.index(cell.shift) for cell in live]
        try:
            windows, counts = index[chosen].flatten(0, 1), num_frames.repeat(len(live))
            scores = _forward(member.model, scorers[member.key], features, windows, counts, options)
        except Exception as error:  # noqa: BLE001 - kept for this member's cells, raised when they are finished
            for cell in live:
                cell.error = _explain(error, member.key)
            continue
        yield live, scores.unflatten(0, (len(live), -1))


def _forward(
    model: FrameModel,
    score: Compiled,
    features: Tensor,
    index: Tensor,
    num_frames: Tensor,
    options: ScoringOptions,
) -> Tensor:
    """Probabilities float32 of the windows index int64 [W, 5] of features [N, F], in passes of nearly equal size."""
    num_chunks = -(-len(index) // options.batch_size)
    with torch.autocast(features.device.type, dtype=torch.bfloat16, enabled=options.precision == "bfloat16"):
        embedded = model.embed_frames(features)
        pairs = zip(index.chunk(num_chunks), num_frames.chunk(num_chunks), strict=True)
        return torch.cat([score(embedded, part, counts).float() for part, counts in pairs])


def _explain(error: Exception, key: str) -> Exception:
    if is_out_of_memory(error):
        return OutOfMemoryError(f"{key}: the device ran out of memory ({error}); lower prediction.batch_size")
    return error


def _take(waiting: list[tuple[list[CellScores], Arriving, _Block]], options: ScoringOptions) -> None:
    for cells, scores, block in waiting:
        for cell, own in zip(cells, scores.get().numpy(), strict=True):
            cell.update(own, block, options)
