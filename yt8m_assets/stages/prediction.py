"""The prediction stages: cells (model x shift) from one pass over the data, and a model's fused ranking."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from yt8m_assets.data.dataset.packed import PackedShard
from yt8m_assets.data.dataset.windows import SEGMENT_FRAMES
from yt8m_assets.device.hardware import check_gpu, find_hardware
from yt8m_assets.device.memory import explain_memory, free_bytes, is_out_of_memory
from yt8m_assets.errors import ConfigError, DataError, OutOfMemoryError
from yt8m_assets.progress import Progress
from yt8m_assets.ranking.topk import max_bytes
from yt8m_assets.recipes.schema import SHIFTS, Recipe
from yt8m_assets.stages.failures import raise_worst
from yt8m_assets.stages.lineage import Inputs, Lineage
from yt8m_assets.stages.members import cells_of, scoring_options
from yt8m_assets.stages.nodes import Node
from yt8m_assets.stages.ranking import Split, holdout_map, publish_ranking
from yt8m_assets.storage import ArtifactStore, Manifest, StageResult
from yt8m_assets.tracking import TrackedRun, Tracking

if TYPE_CHECKING:
    from yt8m_assets.prediction.scoring import CellScores, ModelCells, PassStatistics

logger = logging.getLogger(__name__)

Cell = tuple[str, int]
"""Model key and shift."""
SHARDS: Mapping[str, str] = {"oof": "segment_shards", "test": "test_shards"}
"""Which shards each split ranks; of the segment shards, those held out."""
CONTEXTS: Mapping[str, str] = {"oof": "holdout", "test": "test"}
"""What MLflow calls a split's data set."""


@dataclass
class _Outcome:
    """What became of each cell."""

    results: dict[Cell, StageResult] = field(default_factory=dict)
    errors: dict[Cell, Exception] = field(default_factory=dict)


def predict_cells(
    recipe: Recipe,
    store: ArtifactStore,
    split: Split,
    cells: Sequence[Cell],
    *,
    tracking: Tracking,
    progress: Progress,
    run_tags: Mapping[str, str] | None = None,
    on_published: Callable[[Cell, StageResult], None] | None = None,
) -> list[StageResult]:
    """Rank all segments of a split by each (model, shift) cell, reading the data once; results in the cells' order.

    Cells that are current are left as they are. Each other cell is published by itself when the pass is over; if one
    fails, the others are published first and then its error is raised. `on_published` hears of every cell.
    """
    nodes = {(key, shift): _node(recipe, split, key, shift) for key, shift in cells}
    outcome, lineage = _Outcome(), Lineage(recipe, store)
    due: dict[Cell, Inputs] = {}
    for cell, node in nodes.items():
        try:
            inputs = lineage.inputs(node)
        except Exception as error:  # noqa: BLE001 - raised at the end, when the other cells are safe
            outcome.errors[cell] = error
            continue
        if inputs.published is not None:
            outcome.results[cell] = StageResult(inputs.published, reused=True)
            _tell(on_published, cell, outcome.results[cell])
        else:
            due[cell] = inputs
    if due:
        params = {**due[next(iter(due))].config, "cells": ", ".join(f"{key}{shift:+d}" for key, shift in due)}
        params.pop("shift")
        fingerprints = ", ".join(f"{key}{shift:+d}={inputs.fingerprint[:16]}" for (key, shift), inputs in due.items())
        tags = {"recipe": recipe.name, "split": split, "asset": f"{split}_predictions", "fingerprint": fingerprints}
        parents = {key: manifest for inputs in due.values() for key, manifest in inputs.manifests.items()}
        tags |= {f"parent.{key}": manifest.digest for key, manifest in parents.items()}
        tags, shards = {**(run_tags or {}), **tags}, parents[SHARDS[split]]
        with tracking.run(run_name(split, list(due)), kind="prediction", params=params, tags=tags) as run:
            run.log_dataset(shards.key, digest=shards.digest, source_uri=store.uri(shards), context=CONTEXTS[split])
            _Pass(recipe, store, split, progress, run, on_published).run(due, outcome)
            if outcome.errors:
                run.set_tags({"failed_cells": ", ".join(nodes[cell].key for cell in outcome.errors)})
            if not outcome.results:
                _raise_worst(nodes, outcome)  # inside the run, which is no success when it made nothing
    _raise_worst(nodes, outcome)
    return [outcome.results[cell] for cell in cells]


def run_name(split: Split, cells: Sequence[Cell]) -> str:
    """What a tracked run is called: `oof predictions: bert_l2h12 x -1..1`, or how many models and cells."""
    models, shifts = {key for key, _ in cells}, sorted(shift for _, shift in cells)
    if len(models) > 1:
        return f"{split} predictions: {len(models)} models, {len(cells)} cells"
    row = len(shifts) > 1 and shifts == list(range(shifts[0], shifts[-1] + 1))
    text = f"{shifts[0]}..{shifts[-1]}" if row else ", ".join(map(str, shifts))
    return f"{split} predictions: {cells[0][0]} x {text}"


def _node(recipe: Recipe, split: Split, key: str, shift: int) -> Node:
    if split not in SHARDS:
        raise ConfigError(f"split {split!r}: choose one of {', '.join(SHARDS)}")
    if shift not in SHIFTS:
        raise ConfigError(f"shift {shift!r}: choose one of {SHIFTS}")
    return Node(f"{split}_predictions", recipe.model(key).key, shift)


def _tell(on_published: Callable[[Cell, StageResult], None] | None, cell: Cell, result: StageResult) -> None:
    if on_published is not None:
        on_published(cell, result)


def _raise_worst(nodes: Mapping[Cell, Node], outcome: _Outcome) -> None:
    """Raise the cell's error that decides whether the pass is tried again, if there is one."""
    errors = {nodes[cell].key: error for cell, error in outcome.errors.items()}
    raise_worst(errors, [nodes[cell].key for cell in outcome.results])


class _Pass:
    """One pass over a split's videos for the cells that are due."""

    def __init__(
        self,
        recipe: Recipe,
        store: ArtifactStore,
        split: Split,
        progress: Progress,
        tracked: TrackedRun,
        on_published: Callable[[Cell, StageResult], None] | None,
    ) -> None:
        self.recipe, self.store, self.split, self.progress = recipe, store, split, progress
        self.tracked, self.on_published = tracked, on_published
        self._models = "refitted_model" if split == "test" and recipe.refit else "finetuned_model"
        self.statistics: PassStatistics | None = None

    def run(self, due: Mapping[Cell, Inputs], outcome: _Outcome) -> None:
        """Score, then publish cell by cell."""
        import torch

        from yt8m_assets.prediction.blocks import SegmentIndex
        from yt8m_assets.prediction.device_topk import has_room
        from yt8m_assets.prediction.scoring import score_videos
        from yt8m_assets.stages.data import read_segment_classes

        check_gpu(find_hardware())
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        some = next(iter(due.values()))  # the shards are the same for all
        class_ids = read_segment_classes(self.recipe, self.store, some.parent("segment_shards"))
        shards = self._shards(some.parent(SHARDS[self.split]))
        num_segments = count_segments(shards, self.recipe.data.max_frames)
        size = (len(class_ids), min(self.recipe.prediction.top_k, num_segments), num_segments)
        options = scoring_options(self.recipe)
        on_device = options.is_by_score and has_room(device, len(due), *size)
        if not on_device:
            require_memory(len(due), max_bytes(*size), self.progress)
        videos = self._videos(shards)
        index = SegmentIndex.of(videos)
        if not len(index.segments):
            raise DataError(f"the {SHARDS[self.split]} hold no segment to rank; check the recipe's data")
        members: list[ModelCells] = []
        by_cell: dict[Cell, CellScores] = {}
        for key in dict.fromkeys(key for key, _ in due):
            shifts = [shift for other, shift in due if other == key]
            try:
                member = self._member(key, shifts, due[key, shifts[0]], class_ids, index.segments, device, on_device)
            except Exception as fault:  # noqa: BLE001 - one model's fault leaves the others to be published
                error: Exception = fault
                if is_out_of_memory(fault):
                    error = explain_memory(fault, f"setting {key} up", ["predict fewer cells in one run"])
                outcome.errors.update({(key, shift): error for shift in shifts})
                continue
            members.append(member)
            by_cell |= {(key, cell.shift): cell for cell in member.cells}
        if members:
            self.statistics = score_videos(videos, index, members, options, device=device, progress=self.progress)
            self.tracked.log_metrics({"prediction/segments_per_second": self.rate}, step=0)
        for cell, scores in by_cell.items():
            try:
                outcome.results[cell] = self._publish(cell, due[cell], scores, last=cell == [*by_cell][-1])
                _tell(self.on_published, cell, outcome.results[cell])
            except Exception as error:  # noqa: BLE001 - raised at the end, when the other cells are safe
                outcome.errors[cell] = error

    @property
    def rate(self) -> float:
        """Segments a second of the whole pass."""
        assert self.statistics is not None
        return self.statistics.num_segments / max(self.statistics.seconds, 1e-9)

    def _shards(self, manifest: Manifest) -> tuple[PackedShard, ...]:
        from yt8m_assets.stages.data import read_shards
        from yt8m_assets.stages.indexing import read_index

        located = read_shards(self.recipe, self.store, manifest)
        return read_index(self.store, manifest, located, held_out=True if self.split == "oof" else None)

    def _videos(self, shards: Sequence[PackedShard]) -> Any:
        from yt8m_assets.data.dataset.memory import load_videos

        data = self.recipe.data
        reading = data.reading(self.store.cache)
        return load_videos(shards, reading, memory_budget=data.memory_budget, progress=self.progress)

    def _member(
        self, key: str, shifts: Sequence[int], inputs: Inputs, class_ids: Any, segments: Any, device: Any, kept: bool
    ) -> Any:
        from yt8m_assets.stages.training import load_model

        model = load_model(self.store, inputs.parent(self._models, key), device)
        return cells_of(self.recipe, key, model, shifts, class_ids, segments, device, kept)

    def _publish(self, cell: Cell, inputs: Inputs, scores: "CellScores", last: bool) -> StageResult:
        from yt8m_assets.ranking.files import write_ranking

        assert self.statistics is not None
        ranking = scores.finish()
        metadata: dict[str, Any] = {
            "num_segments": self.statistics.num_segments,
            "num_classes": len(ranking.class_ids),
            "num_ranked": len(ranking.segment),
            "segments_per_second": self.rate,
            "score_min": scores.lowest,
            "score_max": scores.highest,
            "num_windows_past_end": self.statistics.num_windows_past_end[scores.shift],
            "checkpoint": inputs.parent(self._models, cell[0]).digest,
        }
        links = {"mlflow_run_id": self.tracked.run_id, "mlflow_url": self.tracked.url}
        metadata |= {name: value for name, value in links.items() if value is not None}
        if self.split == "oof":
            quality = holdout_map(self.recipe, self.store, ranking)
            if quality is not None:
                metadata["map_at_100000"] = quality
                self.tracked.log_metrics({f"oof/map_at_100000/{cell[0]}/shift {cell[1]}": quality}, step=0)

        def write(folder: Path) -> None:
            write_ranking(ranking, folder)
            self.tracked.keep(folder, last=last)

        return publish_ranking(self.store, inputs, write, metadata)


def count_segments(shards: Sequence[PackedShard], max_frames: int) -> int:
    """Segments of the videos of some shards, as their index has them: a segment starts every 5 seconds."""
    lengths = (np.minimum(shard.num_frames(), max_frames).astype(np.int64) for shard in shards)
    return sum(int((-(-frames // SEGMENT_FRAMES)).sum()) for frames in lengths)


def require_memory(num_cells: int, cell_bytes: int, progress: Progress) -> None:
    """Say how much memory the cells of a pass may take; raise OutOfMemoryError where this machine has not got it.

    A pass would otherwise end hours later, when the last lists fill up.
    """
    needed, free = num_cells * cell_bytes, free_bytes()
    progress.log(f"the best segments of {num_cells} cells take up to {needed / 1e9:.2f} GB of memory")
    if needed > free:
        fitting = max(1, int(num_cells * free / needed))
        raise OutOfMemoryError(
            f"the best segments of {num_cells} cells take up to {needed / 1e9:.1f} GB of memory, of which "
            f"{free / 1e9:.1f} GB are free: predict fewer cells in one run, about {fitting}"
        )
