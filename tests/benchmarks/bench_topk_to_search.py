"""Bars from the top-k to the search, each against a plain Python peer, alternating in one process.

`python -m tests.benchmarks.bench_topk_to_search [--rounds 5] [--scale 1.0] [--only NAME]` prints one JSON line a
comparison. Peers that would take minutes do a part of the classes; the line says so (`peer_share`).
"""

import argparse
import heapq
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from yt8m_assets.ensemble.objective import FusionObjective
from yt8m_assets.ensemble.preset import ORIGINAL_W0, ORIGINAL_WEIGHTS
from yt8m_assets.evaluation import Ratings, bootstrap_map, mean_average_precision
from yt8m_assets.ranking.files import Ranking, Segments
from yt8m_assets.ranking.fusion import fuse
from yt8m_assets.ranking.topk import StreamingTopK
from yt8m_assets.submission import write_submission

HOLDOUT_RATINGS = round(237_788 / 3844 * 300)
"""Ratings in the original's hold-out of 300 shards."""


def compare(
    name: str, ours: Callable[[], object], peer: Callable[[], object], bar: float, rounds: int, **facts: float
) -> None:
    """Alternate both, print medians and the ratio; `peer_share` is the part of the work that the peer did."""
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(rounds):
        for label, call in (("ours", ours), ("peer", peer)):
            began = time.perf_counter()
            call()
            times[label].append(time.perf_counter() - began)
    seconds = statistics.median(times["ours"])
    peer_seconds = statistics.median(times["peer"]) / facts.get("peer_share", 1.0)
    ratio = peer_seconds / seconds
    row = {"ours_seconds": seconds, "peer_seconds": peer_seconds, "ratio": ratio, "bar": bar, "met": ratio >= bar}
    print(json.dumps({"benchmark": name, **row, "rounds": rounds, **facts}))


def table(num_segments: int) -> Segments:
    """Segments of videos of 250 seconds with 4-letter ids, as the real ones have."""
    num_videos = -(-num_segments // 50)
    letters = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    ids = ["".join(letters[n // 62**p % 62] for p in (3, 2, 1, 0)) for n in range(num_videos)]
    video = np.repeat(np.arange(num_videos), 50)[:num_segments]
    return Segments(video_ids=np.array(ids), video=video, start=np.tile(np.arange(50) * 5, num_videos)[:num_segments])


def top_k(rounds: int, scale: float) -> None:
    """100,000 of 200,000 segments for 16 classes; the peer's heaps do 4 of them."""
    size, classes, part = int(200_000 * scale), 16, 4
    k, segments = size // 2, table(size)
    scores = np.random.default_rng(0).random((size, classes), np.float32)

    def ours() -> None:
        best = StreamingTopK(np.arange(classes), k, segments)
        for begin in range(0, size, 4096):
            best.update(scores[begin : begin + 4096], begin)
        best.finish()

    def heaps() -> None:
        names = segments.ids().tolist()
        kept: list[list[tuple[float, str]]] = [[] for _ in range(part)]
        for name, row in zip(names, scores[:, :part].tolist(), strict=True):
            for heap, score in zip(kept, row, strict=True):
                if len(heap) < k:
                    heapq.heappush(heap, (score, name))
                elif score > heap[0][0]:
                    heapq.heapreplace(heap, (score, name))
        for heap in kept:
            heap.sort(reverse=True)

    compare("top_k_vs_heaps", ours, heaps, 40, rounds, peer_share=part / classes, segments=size, k=k)


def submission(rounds: int, scale: float) -> None:
    """100,000 ids for 40 classes; both write and sync one file."""
    size, classes, k = int(400_000 * scale), 40, int(100_000 * scale)
    segments, generator = table(size), np.random.default_rng(0)
    rows = [generator.permutation(size)[:k].astype(np.int32) for _ in range(classes)]
    ranking = Ranking.from_entries([(c, row, np.zeros(k, np.float32)) for c, row in enumerate(rows)], segments)
    names = segments.ids().tolist()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "submission.csv"

        def join() -> None:
            with path.with_suffix(".peer").open("w") as file:
                file.write("Class,Segments\n")
                for class_id, row in enumerate(rows):
                    file.write(f"{class_id},{' '.join([names[n] for n in row.tolist()])}\n")

        compare("submission_vs_join", lambda: write_submission(ranking, path, range(classes)), join, 4, rounds)


def plain_ap(scores: list[float], labels: list[float]) -> float:
    """Average precision by a plain loop."""
    hits, total = 0, 0.0
    for place, number in enumerate(sorted(range(len(scores)), key=lambda n: -scores[n]), 1):
        if labels[number] > 0:
            hits += 1
            total += hits / place
    return total / max(hits, 1)


def metric(rounds: int, scale: float) -> None:
    """Dense MAP of 200,000 x 8."""
    generator = np.random.default_rng(0)
    scores = generator.random((int(200_000 * scale), 8))
    labels = (generator.random(scores.shape) < 0.1).astype(np.float32)

    def loop() -> float:
        return float(np.mean([plain_ap(scores[:, c].tolist(), labels[:, c].tolist()) for c in range(8)]))

    compare("map_vs_loop", lambda: mean_average_precision(scores, labels), loop, 15, rounds)


def dict_fusion(lists: list[list[str]], weights: list[float], w0: float, k: int) -> list[str]:
    """One class fused with dicts, as the original does."""
    scores: dict[str, float] = {}
    for names, weight in zip(lists, weights, strict=True):
        for place, name in enumerate(names):
            scores[name] = scores.get(name, 0.0) + weight * (w0 / (place + w0))
    return [name for name, _ in sorted(scores.items(), key=lambda item: item[1], reverse=True)][:k]


def fusion(rounds: int, scale: float) -> None:
    """Nine lists of 50,000 ids, one class."""
    size = int(100_000 * scale)
    segments, generator = table(size), np.random.default_rng(0)
    truth = generator.normal(size=size)
    lists = [np.argsort(generator.normal(size=size) - truth)[: size // 2].astype(np.int32) for _ in range(9)]
    rankings = [Ranking.from_entries([(0, row, np.zeros(row.size, np.float32))], segments) for row in lists]
    names = segments.ids()
    named, weights = [names[row].tolist() for row in lists], list(ORIGINAL_WEIGHTS.values())
    assert fuse(rankings, weights, ORIGINAL_W0).to_dict()[0] == dict_fusion(named, weights, ORIGINAL_W0, 100_000)
    ours, peer = (
        (lambda: fuse(rankings, weights, ORIGINAL_W0)),
        (lambda: dict_fusion(named, weights, ORIGINAL_W0, 10**5)),
    )
    compare("rank_fusion_vs_dicts", ours, peer, 35, rounds)


def holdout(num_segments: int, classes: int) -> tuple[dict[str, Ranking], Ratings]:
    """Nine rankings of everything, and as many ratings as the real hold-out has.

    Rated are segments of videos that carry the class's label, so the likely ones: here the top 3 %.
    """
    segments, generator = table(num_segments), np.random.default_rng(0)
    entries: dict[str, list] = {key: [] for key in ORIGINAL_WEIGHTS}
    columns: list[list[np.ndarray]] = [[], [], []]
    for class_id in range(classes):
        truth = generator.normal(size=num_segments).astype(np.float32)
        for part in entries.values():
            order = np.argsort(0.6 * generator.standard_normal(num_segments, np.float32) - truth)
            part.append((class_id, order.astype(np.int32), np.zeros(num_segments, np.float32)))
        likely = np.flatnonzero(truth > 1.9)
        rated = generator.choice(likely, max(1, HOLDOUT_RATINGS // classes), replace=False)
        labels = truth[rated] + 0.5 * generator.normal(size=rated.size) > 2.2
        for column, values in zip(columns, (rated, np.full(rated.size, class_id), labels), strict=True):
            column.append(values)
    row, class_ids, labels = (np.concatenate(column) for column in columns)
    ratings = Ratings.from_arrays(segments.video_ids, segments.video[row], segments.start[row], class_ids, labels)
    return {key: Ranking.from_entries(part, segments) for key, part in entries.items()}, ratings


def trial(rounds: int, scale: float) -> None:
    """One trial at the real hold-out's number of ratings, 9 models and 1000 classes; the peer does two classes.

    Lists are of 10,000 segments (memory); the trial's cost does not depend on their length, the peer's grows with it.
    """
    classes, size = int(1000 * scale), 10_000
    rankings, ratings = holdout(size, classes)
    names = rankings["bert_l2h12"].segments.ids()
    weights = dict(ORIGINAL_WEIGHTS)
    done = [0, classes // 2]
    lists = {c: [names[ranking.entries(c)[0]].tolist() for ranking in rankings.values()] for c in done}
    pairs = ratings.to_dict()

    def peer() -> None:
        for class_id in done:
            fused = dict_fusion(lists[class_id], list(weights.values()), ORIGINAL_W0, 100_000)
            labels = [pairs[name, class_id] for name in fused if (name, class_id) in pairs]
            plain_ap([-float(n) for n in range(len(labels))], [float(label) for label in labels])

    for cut, name in ((100_000, "search_trial_vs_dicts"), (int(size * 0.59), "search_trial_where_the_cut_binds")):
        objective = FusionObjective(rankings, ratings, cut)
        objective(ORIGINAL_W0, weights)
        facts = {"peer_share": len(done) / classes, "ratings": len(ratings), "classes": classes, "k": cut}
        facts["classes_in_doubt"] = objective.num_exact
        compare(name, partial(objective, ORIGINAL_W0, weights), peer, 300, rounds, **facts)
    began = time.perf_counter()
    bootstrap_map(rankings["bert_l2h12"], ratings)
    print(
        json.dumps(
            {"benchmark": "bootstrap_1000_rounds", "seconds": time.perf_counter() - began, "pairs": len(ratings)}
        )
    )


def main() -> None:
    """Print every bar from the top-k to the trial."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    for bench in (top_k, submission, metric, fusion, trial):
        if options.only in bench.__name__:
            bench(options.rounds, options.scale)


if __name__ == "__main__":
    main()
