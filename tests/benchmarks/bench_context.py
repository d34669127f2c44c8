"""What a segment's surroundings are worth to one who knows the generative model: three oracles, switch by switch.

Run: `python -m tests.benchmarks.bench_context [--seeds 8 9 10] [--videos 40] [--switches scenes ...]`, about a minute a
row on one core. A row has MAP of the segment's own five seconds, of two more on each side, and of the whole video; and
the last against the first: the gain in MAP and in log loss, each with a 95 % interval over videos.
"""

import argparse
from types import SimpleNamespace

import numpy as np

from yt8m_assets.data.simulation.config import CONTEXT_SWITCHES, SimulationConfig
from yt8m_assets.data.simulation.frames import draw_frames
from yt8m_assets.data.simulation.scripts import shard_scripts
from yt8m_assets.data.simulation.truth import test_ratings
from yt8m_assets.data.simulation.world import build_world
from yt8m_assets.evaluation import Ratings, paired_test, ranking_map
from yt8m_assets.evaluation.oracle import oracle_scores, random_map
from yt8m_assets.evaluation.oracle_video import video_oracle_scores
from yt8m_assets.ranking.files import Ranking
from yt8m_assets.ranking.segments import split_segment_id

ROUNDS = 500


def measure(config: SimulationConfig) -> str:
    """A row of figures for one dataset."""
    world = build_world(config)
    videos = [
        SimpleNamespace(video_id=script.video_id, frames=draw_frames(config, world, script, rng))
        for script, rng in shard_scripts(config, world, "test", 0)
    ]
    ratings = test_ratings(config)
    keys = sorted(ratings)
    pairs = [(*split_segment_id(name), class_id) for name, class_id in keys]
    five = oracle_scores(config, videos, pairs, context_seconds=0)
    nine = oracle_scores(config, videos, pairs)
    whole = video_oracle_scores(config, videos, pairs)
    truth = np.array([ratings[key] for key in keys])
    losses = [-np.log(np.where(truth == 1, p, 1 - p).clip(1e-3)) for p in (five, whole)]
    _, video = np.unique([pair[0] for pair in pairs], return_inverse=True)
    drawn = _drawn_means(losses[0] - losses[1], video)
    known = Ratings.from_dict(ratings)
    first, second, last = (_ranking(scores, keys) for scores in (five, nine, whole))
    gain = paired_test(last, first, known, ROUNDS).difference
    maps = " ".join(f"{ranking_map(ranking, known).map:.4f}" for ranking in (first, second, last))
    lost, (low, high) = losses[1].mean() - losses[0].mean(), -np.quantile(drawn, [0.975, 0.025])
    return (
        f"{len(keys):5d} {truth.mean():.3f} {random_map(ratings):.4f} {maps}  "
        f"MAP {gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]  log loss {lost:+.4f} [{low:+.4f}, {high:+.4f}]"
    )


def _ranking(scores: np.ndarray, keys: list[tuple[str, int]]) -> Ranking:
    lists: dict[int, list[str]] = {}
    for place in np.argsort(-scores, kind="stable").tolist():
        lists.setdefault(keys[place][1], []).append(keys[place][0])
    return Ranking.from_dict(lists)


def _drawn_means(values: np.ndarray, video: np.ndarray) -> np.ndarray:
    """Means of the values over drawn videos, float64 [rounds]."""
    rng, count = np.random.default_rng(0), int(video.max()) + 1
    sums, sizes = np.bincount(video, values), np.bincount(video)
    drawn = rng.integers(count, size=(ROUNDS, count))
    return sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)


def main() -> None:
    """Print a row for each seed and switch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[8, 9, 10])
    parser.add_argument("--videos", type=int, default=40)
    parser.add_argument("--switches", nargs="+", default=["off", *CONTEXT_SWITCHES])
    options = parser.parse_args()
    print("seed switch            pairs  pos  random  five   nine   whole   whole against five")
    for seed in options.seeds:
        for name in options.switches:
            changed = CONTEXT_SWITCHES[name] if name != "off" else {}
            config = SimulationConfig(seed=seed, num_test_videos=options.videos, num_test_shards=1, **changed)
            print(f"{seed:4d} {name:17s} {measure(config)}", flush=True)


if __name__ == "__main__":
    main()
