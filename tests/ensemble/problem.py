"""Made-up rankings with a known truth, and ratings of a part of it, for the tests of fusion and search."""

import numpy as np

from yt8m_assets.evaluation import Ratings
from yt8m_assets.prediction.ranking import Ranking


def problem(
    noises: dict[str, float],
    num_videos: int = 30,
    num_classes: int = 5,
    share_rated: float = 0.1,
    list_size: int | None = None,
    seed: int = 0,
) -> tuple[dict[str, Ranking], Ratings]:
    """{key: ranking by truth + noise of that size, cut to list_size}, ratings of a random share of the pairs."""
    generator = np.random.default_rng(seed)
    names = np.array([f"v{video:03d}:{start}" for video in range(num_videos) for start in range(0, 50, 5)])
    truth = generator.normal(size=(names.size, num_classes))
    rated = np.argwhere(generator.random(truth.shape) < share_rated)
    pairs = {(str(names[n]), int(c)): int(truth[n, c] + 0.5 * generator.normal() > 0) for n, c in rated}
    rankings = {}
    for key, noise in noises.items():
        scores = truth + noise * generator.normal(size=truth.shape)
        lists = {c: names[np.argsort(-scores[:, c])][:list_size].tolist() for c in range(num_classes)}
        rankings[key] = Ranking.from_dict(lists)
    return rankings, Ratings.from_dict(pairs)
