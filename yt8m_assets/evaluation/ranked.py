"""MAP@K of rankings against ratings: the challenge's score (SPEC section 9, "Segment MAP@N").

A class's list is cut to its first K, then reduced to the segments rated for that class; their average precision, over
all positives of the class, is averaged over the classes. The original loses the last id of every line; this does not.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from yt8m_assets.errors import ConfigError
from yt8m_assets.evaluation.average_precision import MapResult, average_precision, grouped_average_precision
from yt8m_assets.evaluation.ratings import Ratings
from yt8m_assets.ranking.files import TOP_K, RankingSource

ROUNDING = 1e-9
"""Two ways of computing the same MAP may differ by this: what is less decides nothing."""


def mean_average_precision_at_k(
    rankings: Mapping[int, Sequence[str]], ratings: Mapping[tuple[str, int], float], k: int = TOP_K
) -> MapResult:
    """MAP@K of {class: [segment id, best first]} against {(segment id, class): 0 or 1}.

    Classes without a positive rating are left out of the mean; a segment listed twice counts where it stands first.
    Source: SPEC section 9.
    """
    _check(k)
    rated: dict[int, dict[str, float]] = {}
    for (name, class_id), score in ratings.items():
        rated.setdefault(class_id, {})[name] = score
    totals = {class_id: sum(score > 0 for score in scores.values()) for class_id, scores in rated.items()}
    per_class = {}
    for class_id, ids in rankings.items():
        if totals.get(class_id):
            per_class[class_id] = list_average_precision(ids[:k], rated[class_id])
    return map_result(per_class, totals, list(rankings))


def list_average_precision(ids: Sequence[str], scores: Mapping[str, float]) -> float:
    """Average precision of one class: ids best first, {id: rating} of the class with at least one positive."""
    labels = np.array([scores[name] for name in dict.fromkeys(ids) if name in scores], np.float64)
    total = sum(score > 0 for score in scores.values())
    return average_precision(-np.arange(labels.size), labels, num_positives=total)


def map_result(per_class: dict[int, float], totals: Mapping[int, int], ranked: Sequence[int]) -> MapResult:
    """Assemble a MapResult: AP of the scored classes, positives of every rated class, the classes of the ranking."""
    ranked_set = set(ranked)
    return MapResult(
        map=float(np.mean(list(per_class.values()))) if per_class else float("nan"),
        per_class=per_class,
        num_positives={class_id: totals[class_id] for class_id in per_class},
        without_positives=tuple(sorted(class_id for class_id in ranked_set if not totals.get(class_id))),
        missing=tuple(sorted(class_id for class_id, total in totals.items() if total and class_id not in ranked_set)),
    )


def rated_places(ranking: RankingSource, ratings: Ratings, k: int = TOP_K) -> np.ndarray:
    """Place (from 0) of each rated pair in its class's list, int32 [P]; -1 where it is not among the first K."""
    _check(k)
    rows = ratings.rows_in(ranking.segments)
    places = np.full(len(ratings), -1, np.int32)
    place_of_row = np.full(len(ranking.segments) + 1, -1, np.int32)  # the last slot answers for row -1
    classes, begins = np.unique(ratings.class_id, return_index=True)
    ends = np.append(begins, len(ratings))[1:].tolist()
    for class_id, begin, end in zip(classes.tolist(), begins.tolist(), ends, strict=True):
        segment = ranking.entries(class_id)[0][:k]
        place_of_row[segment] = np.arange(segment.size, dtype=np.int32)
        places[begin:end] = place_of_row[rows[begin:end]]
        place_of_row[segment] = -1
    return places


def ranking_map(ranking: RankingSource, ratings: Ratings, k: int = TOP_K) -> MapResult:
    """MAP@K of a ranking against ratings: `mean_average_precision_at_k` over arrays."""
    places = rated_places(ranking, ratings, k)
    classes, group = np.unique(ratings.class_id, return_inverse=True)
    totals = np.bincount(group, weights=ratings.score, minlength=classes.size).astype(np.int64)
    found = np.flatnonzero(places >= 0)
    order = found[np.lexsort((places[found], group[found]))]
    precision = grouped_average_precision(group[order], ratings.positive[order], totals)
    scored = (totals > 0) & np.isin(classes, ranking.class_ids)
    per_class = dict(zip(classes[scored].tolist(), precision[scored].tolist(), strict=True))
    return map_result(per_class, dict(zip(classes.tolist(), totals.tolist(), strict=True)), ranking.class_ids.tolist())


def _check(k: int) -> None:
    if k < 1:
        raise ConfigError(f"k = {k}: must be at least 1")
