"""The way from scores to the submission at full size, on made-up scores: time, peak memory and bytes of every stage.

`python -m tests.benchmarks.bench_rehearsal [--segments 2600000] [--classes 1000] [--cells 2] [--folder DIR]` streams
every cell's scores, block by block, into its top-k, writes the rankings, fuses them into the submission, and validates
that. One JSON line a stage, and one with what the real run (29 cells) would take by proportion: an extrapolation, which
says nothing about reading videos and running models.
"""

import argparse
import json
import os
import resource
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.bench_topk_to_search import table
from yt8m_assets.ensemble.preset import ORIGINAL_W0
from yt8m_assets.ranking.files import RankingReader, Segments, write_ranking
from yt8m_assets.ranking.fusion import FusedRanking
from yt8m_assets.ranking.topk import StreamingTopK
from yt8m_assets.submission import validate_submission, write_submission

FULL_SEGMENTS, FULL_CLASSES, FULL_CELLS = 2_600_000, 1000, 29
TOP_K = 100_000
BLOCK = 8192
MEMORY_BAR = 6 * 10**9
_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident() -> int:
    """Bytes of this process that are in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


class Stages:
    """Measures stages and prints a line for each."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.bytes: dict[str, int] = {}

    @contextmanager
    def stage(self, name: str, **facts: Any) -> Iterator[list[Path]]:
        """Measure a block; it appends the files it has written."""
        peak, done = [resident()], threading.Event()

        def watch() -> None:
            while not done.wait(0.05):
                peak[0] = max(peak[0], resident())

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        files: list[Path] = []
        began = time.perf_counter()
        try:
            yield files
        finally:
            seconds = time.perf_counter() - began
            done.set()
            watcher.join()
        written = sum(path.stat().st_size for path in files)
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self.bytes[name] = self.bytes.get(name, 0) + written
        row = {"stage": name, "seconds": round(seconds, 2), "peak_rss_gb": round(peak[0] / 1e9, 3), **facts}
        print(json.dumps(row | {"bytes_written": written}), flush=True)


def score_blocks(seed: int, num_segments: int, num_classes: int) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, probabilities float32 [n, classes]) of simulated models: most near zero, a few sure.

    A block is drawn once in 16 and shifted in its columns in between: drawing costs more than what is measured.
    """
    generator = np.random.default_rng(seed)
    drawn = np.empty((0, num_classes), np.float32)
    for number, begin in enumerate(range(0, num_segments, BLOCK)):
        size = min(BLOCK, num_segments - begin)
        if number % 16 == 0:
            drawn = generator.random((BLOCK, num_classes), np.float32) ** 8
        jitter = generator.random((size, 1), np.float32) * np.float32(1e-3)
        yield begin, np.roll(drawn[:size], number, axis=1) * (np.float32(0.999) + jitter)


def stream_cells(segments: Segments, num_classes: int, num_cells: int) -> list[StreamingTopK]:
    """All cells at once, as one pass over the data fills them."""
    best = [StreamingTopK(np.arange(num_classes), min(TOP_K, len(segments)), segments) for _ in range(num_cells)]
    streams = [score_blocks(seed, len(segments), num_classes) for seed in range(num_cells)]
    for blocks in zip(*streams, strict=True):
        for cell, (begin, scores) in zip(best, blocks, strict=True):
            cell.update(scores, begin)
    return best


def rehearse(num_segments: int, num_classes: int, num_cells: int, folder: Path) -> None:
    """Run and print every stage."""
    stages = Stages()
    size = {"segments": num_segments, "classes": num_classes, "cells": num_cells, "k": min(TOP_K, num_segments)}
    with stages.stage("scores alone", **size):
        for _ in score_blocks(0, num_segments, num_classes):
            pass
    with stages.stage("segment table", **size):
        segments = table(num_segments)
    with stages.stage("top-k, scores included", **size):
        best = stream_cells(segments, num_classes, num_cells)
    readers = []
    for number in range(num_cells):
        cell_path = folder / f"cell{number}"
        cell_path.mkdir()
        with stages.stage("finish", cell=number):
            ranking = best.pop(0).finish()
        with stages.stage("write ranking", cell=number) as files:
            files += write_ranking(ranking, cell_path)
        del ranking
        readers.append(RankingReader(cell_path))
    path, classes = folder / "submission.csv", list(range(num_classes))
    with stages.stage("fuse and write submission", **size) as files:
        write_submission(FusedRanking(readers, [1.0] * num_cells, ORIGINAL_W0, TOP_K), path, classes)
        files.append(path)
    known = set(segments.video_ids.tolist())
    with stages.stage("validate submission", **size):
        problems = validate_submission(path, classes, known)
    if problems:
        raise SystemExit(f"the submission has {len(problems)} faults: {problems[0]}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    row = {"benchmark": "rehearsal", **size, "peak_rss_gb": round(peak / 1e9, 3)}
    full = (num_segments, num_classes) == (FULL_SEGMENTS, FULL_CLASSES)
    row |= {"bar_gb": MEMORY_BAR / 1e9, "full_size": full, "met": peak < MEMORY_BAR if full else None}
    print(json.dumps(row | {"bytes_written": sum(stages.bytes.values())}))
    print(json.dumps(extrapolate(stages, size)))


def extrapolate(stages: Stages, size: dict[str, int]) -> dict[str, Any]:
    """What 29 cells of the full size would take if everything grows in proportion. Not measured."""
    cells = FULL_CELLS / size["cells"]
    classes = FULL_CLASSES / size["classes"]
    by_score = cells * classes * FULL_SEGMENTS / size["segments"]
    by_entry = classes * TOP_K / size["k"]
    drawing = stages.seconds["scores alone"] * size["cells"]
    topk = (stages.seconds["top-k, scores included"] - drawing) * by_score
    files = (stages.seconds["finish"] + stages.seconds["write ranking"]) * by_entry * cells
    fusion = stages.seconds["fuse and write submission"] * by_entry * cells
    validation = stages.seconds["validate submission"] * by_entry
    buffers = FULL_CLASSES * 1.5 * TOP_K * 8
    return {
        "extrapolation": "29 cells of 2.6 million segments x 1000 classes, in proportion; not measured",
        "top_k_hours": round(topk / 3600, 2),
        "rankings_hours": round(files / 3600, 2),
        "fusion_and_submission_hours": round(fusion / 3600, 2),
        "validation_hours": round(validation / 3600, 3),
        "ranking_gb": round(stages.bytes["write ranking"] * by_entry * cells / 1e9, 1),
        "submission_gb": round(stages.bytes["fuse and write submission"] * by_entry / 1e9, 2),
        "top_k_buffers_gb_per_cell_at_once": round(buffers / 1e9, 2),
    }


def main() -> None:
    """Rehearse in a folder that is removed afterwards."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--segments", type=int, default=FULL_SEGMENTS)
    parser.add_argument("--classes", type=int, default=FULL_CLASSES)
    parser.add_argument("--cells", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where the files go while it runs (default: the temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rehearse(options.segments, options.classes, options.cells, Path(folder))


if __name__ == "__main__":
    main()
