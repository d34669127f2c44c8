"""Every segment scored by many models at many shifts, in one pass over the videos.

Shapes: N frames of a block of videos, S segments of it, H shifts, R rated classes, F features. A block's frames go to
the device once, as bytes; normalisation is per frame, so it is done once. Whatever else a model computes of a frame
alone is done once too, and every shift's windows are gathered from that.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from models import FrameModel
from models.base import sees_videos
from yt8m_assets.data.dataset.loading import read_ahead
from yt8m_assets.data.dataset.videos import Videos
from yt8m_assets.data.records.features import model_inputs
from yt8m_assets.device.compilation import Compiled
from yt8m_assets.device.memory import is_out_of_memory
from yt8m_assets.device.transfer import Arriving
from yt8m_assets.errors import OutOfMemoryError, Yt8mError
from yt8m_assets.prediction.blocks import Block, ScoringOptions, SegmentIndex, read_blocks
from yt8m_assets.prediction.device_topk import DeviceTopK, Kept
from yt8m_assets.prediction.entering import Entering
from yt8m_assets.prediction.whole_videos import score_grids, scorer_of
from yt8m_assets.progress import Progress
from yt8m_assets.ranking.demotion import demote
from yt8m_assets.ranking.files import Ranking
from yt8m_assets.ranking.topk import StreamingTopK, refuse_non_finite
from yt8m_assets.ranking.video_term import compose

_PREFETCHED_BLOCKS = 2


@dataclass(kw_only=True)
class CellScores:
    """What one model makes of all segments at one shift, while the pass runs and after it."""

    shift: int
    """Seconds by which the window is moved."""
    best: StreamingTopK | DeviceTopK
    """The best segments so far, on the host or on the device."""
    lowest: float = float("inf")
    """Smallest score met."""
    highest: float = float("-inf")
    """Largest score met."""
    error: Exception | None = None
    """Why this cell could not be finished; the others go on."""

    def update(self, scores: np.ndarray, block: Block, options: ScoringOptions) -> None:
        """Take in scores float32 [S, R] of a block, with its videos' evidence and its demotions."""
        if self.error is not None:
            return
        self.lowest, self.highest = min(self.lowest, float(scores.min())), max(self.highest, float(scores.max()))
        try:
            composed = compose(scores, block.begins, options.video_weight)
            assert isinstance(self.best, StreamingTopK)
            self.best.update(demote(composed, block.edge, block.begins, options.candidate_classes), block.rows)
        except Yt8mError as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """End this cell: its lists leave their memory to the others."""
        self.error = error
        self.best.free()

    def take(self, arrived: Arriving | Entering | Kept, block: Block, options: ScoringOptions) -> None:
        """`update` with scores that come from the device, all of them or those that can enter, or that it keeps."""
        if self.error is not None:
            return
        if isinstance(arrived, Arriving):
            self.update(arrived.get().numpy(), block, options)
            return
        low, high = arrived.extremes()
        if not np.isfinite([low, high]).all():
            try:
                refuse_non_finite(arrived.scores.cpu().numpy(), block.rows, self.best.class_ids, self.best.segments)
            except Yt8mError as error:
                self.fail(error)
        elif arrived.give(block.rows):
            self.lowest, self.highest = min(self.lowest, low), max(self.highest, high)
        else:
            self.update(arrived.scores.cpu().numpy(), block, options)

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


@dataclass(kw_only=True)
class PassStatistics:
    """What a pass over the data did."""

    num_segments: int = 0
    """Segments scored."""
    seconds: float = 0.0
    """Time of the pass."""
    num_windows_past_end: dict[int, int] = field(default_factory=dict)
    """Per shift: windows with at least one row outside the video (zeros)."""


_Waiting = tuple[CellScores, Arriving | Entering | Kept, Block]
"""A cell, its scores of a block and the block."""


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
    waiting: list[_Waiting] = []
    blocks = read_blocks(videos, index, shifts, options, pinned=device.type == "cuda")
    if device.type == "cuda":
        blocks = read_ahead(blocks, _PREFETCHED_BLOCKS)
    scorers = {
        member.key: Compiled(
            scorer_of(member.model), enabled=options.compile, what=f"scoring {member.key}", dynamic=True
        )
        for member in members
    }
    title = f"scoring {len(members)} models, {num_cells} cells"
    with progress.task(title, int(index.first[-1]), "segments") as task, torch.inference_mode():
        for block in blocks:
            found = list(_score_block(block, shifts, members, scorers, options, device))
            _take(waiting, options)  # the device works on this block while the last one's scores are ranked
            waiting = found
            for shift, count in zip(shifts, block.past_end.tolist(), strict=True):
                statistics.num_windows_past_end[shift] += count
            task.advance(len(block.rows))
        _take(waiting, options)
    statistics.num_segments, statistics.seconds = int(index.first[-1]), time.monotonic() - started
    return statistics


def _score_block(
    block: Block,
    shifts: list[int],
    members: Sequence[ModelCells],
    scorers: Mapping[str, Compiled],
    options: ScoringOptions,
    device: torch.device,
) -> Iterator[_Waiting]:
    """The cells that are still alive, with their probabilities [S, R] on the way to the host."""
    frames = block.frames.to(device, non_blocking=True)
    features = model_inputs(frames[None], torch.ones((1, len(frames)), dtype=torch.bool, device=device))[0]
    features = torch.cat([features, features.new_zeros((1, features.shape[1]))])
    index = block.index.to(device, non_blocking=True)
    num_frames = block.num_frames.to(device, non_blocking=True)
    for member in members:
        live = [cell for cell in member.cells if cell.error is None]
        if not live:
            continue
        try:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=options.precision == "bfloat16"):
                embedded = member.model.embed_frames(features)
                # Cell by cell: a product's last bit depends on how many rows it has, and a cell's bytes are not to
                # depend on which other cells are made beside it.
                given = (member.model, scorers[member.key], embedded, num_frames, block, options)
                scored = [(cell, _forward(index[shifts.index(cell.shift)], *given)) for cell in live]
            sent = [(cell, _sent(scores, cell, block, options), block) for cell, scores in scored]
        except Exception as error:  # noqa: BLE001 - kept for this member's cells, raised when they are finished
            for cell in live:
                cell.fail(_explain(error, member.key))
            continue
        yield from sent


def _forward(
    index: Tensor,
    model: FrameModel,
    score: Compiled,
    embedded: tuple[Tensor, ...],
    num_frames: Tensor,
    block: Block,
    options: ScoringOptions,
) -> Tensor:
    """Probabilities float32 [S, R] of the windows index int64 [S, 5] of embedded frames, in nearly equal passes."""
    if sees_videos(model):
        return score_grids(score, embedded, index, num_frames, block.begins, options.batch_size)
    # Rounded: a block is a little longer than a batch, and is not to be two halves of one.
    num_chunks = max(1, round(len(index) / options.batch_size))
    pairs = zip(index.chunk(num_chunks), num_frames.chunk(num_chunks), strict=True)
    return torch.cat([score(embedded, part, counts).float() for part, counts in pairs])


def _explain(error: Exception, key: str) -> Exception:
    if is_out_of_memory(error):
        return OutOfMemoryError(f"{key}: the device ran out of memory ({error}); lower prediction.batch_size")
    return error


def _sent(scores: Tensor, cell: CellScores, block: Block, options: ScoringOptions) -> Arriving | Entering | Kept:
    """Scores [S, R] of a cell, in its lists on the device or on their way to the host: from a GPU those alone that can
    still enter, where that is one score's own matter.
    """
    if isinstance(cell.best, DeviceTopK):
        return Kept(scores, cell.best, block.edge, block.rows)
    if scores.device.type == "cpu" or not options.is_by_score:
        return Arriving(scores)
    return Entering(scores, cell.best, block.edge)


def _take(waiting: list[_Waiting], options: ScoringOptions) -> None:
    for cell, arrived, block in waiting:
        cell.take(arrived, block, options)
