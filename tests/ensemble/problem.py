"""Made-up rankings with a known truth, and ratings of a part of it, for the tests of fusion and search."""

from collections.abc import Sequence

import numpy as np

from yt8m_assets.evaluation import Ratings
from yt8m_assets.ranking.files import Ranking


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


def world(seed: int, split: int, num_videos: int, noises: Sequence[float], share_rated: float = 0.12):
    """Rankings and ratings of one split's videos (another `split`: other videos, the same models).

    A model's error has a part that all share, one per video and one per segment; how good it is depends on the class.
    """
    models, videos = np.random.default_rng([seed, 99]), np.random.default_rng([seed, split])
    num_classes = 24
    skill = np.exp(0.3 * models.normal(size=(len(noises), num_classes)))

    def field(video: float, segment: float) -> np.ndarray:
        part = videos.normal(size=(num_videos, num_classes)).repeat(10, axis=0)
        return video * part + segment * videos.normal(size=part.shape)

    names = np.array([f"v{video:05d}:{start}" for video in range(num_videos) for start in range(0, 50, 5)])
    truth, shared = field(0.8, 0.6), 0.5 * field(0.8, 0.6)
    rated = np.argwhere(videos.random(truth.shape) < share_rated)
    pairs = {(str(names[n]), int(c)): int(truth[n, c] + 0.5 * videos.normal() > 0.3) for n, c in rated}
    rankings = {}
    for number, noise in enumerate(noises):
        scores = truth + shared + noise * skill[number] * field(0.6, 0.8)
        lists = {c: names[np.argsort(-scores[:, c])].tolist() for c in range(num_classes)}
        rankings[f"model{number}"] = Ranking.from_dict(lists)
    return rankings, Ratings.from_dict(pairs)
