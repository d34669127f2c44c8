"""What a submission file is worth against ratings: MAP@100,000 with an interval, and what is missing from it."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from yt8m_assets.errors import SubmissionError
from yt8m_assets.evaluation import Interval, MapResult, Ratings, bootstrap_map
from yt8m_assets.evaluation.ranked import list_average_precision, map_result
from yt8m_assets.ranking.files import TOP_K, Ranking
from yt8m_assets.submission import class_of


@dataclass(frozen=True, kw_only=True)
class SubmissionScore:
    """A submission's score. A class with positives that the file lacks counts 0, and is named in `result.missing`."""

    result: MapResult
    """MAP over all classes with a positive rating."""
    interval: Interval
    """The same with its bootstrap interval over the rated videos."""

    def to_json(self) -> dict[str, Any]:
        """What a report shows."""
        return {"map": self.result.map, "interval": asdict(self.interval), "missing": list(self.result.missing)}


def score_submission(
    path: Path, ratings: Ratings, k: int = TOP_K, num_rounds: int = 1000, seed: int = 0
) -> SubmissionScore:
    """MAP@K of a submission file against ratings, read a line at a time.

    Raises SubmissionError for a line whose class cannot be read or stands twice, and where the file lists none of the
    rated segments in their classes; DataError where no rating is positive.
    """
    rated: dict[int, dict[str, int]] = {}
    for (name, class_id), score in ratings.to_dict().items():
        rated.setdefault(class_id, {})[name] = score
    totals = {class_id: sum(scores.values()) for class_id, scores in rated.items()}
    lists, listed = _rated_lists(path, rated, k)
    if not any(lists.values()):
        raise SubmissionError(
            f"{path}: lists none of the {len(ratings)} rated segments in their classes; the ratings are of other videos"
        )
    with_positives = [class_id for class_id, total in totals.items() if total]
    per_class = {c: list_average_precision(lists[c], rated[c]) if c in lists else 0.0 for c in with_positives}
    result = map_result(per_class, totals, sorted({*listed, *with_positives}))
    missing = tuple(sorted(set(with_positives) - listed))
    ranking = Ranking.from_dict({class_id: lists.get(class_id, []) for class_id in sorted({*listed, *with_positives})})
    interval = bootstrap_map(ranking, ratings, num_rounds, seed, k=k)
    return SubmissionScore(result=replace(result, missing=missing), interval=interval)


def _rated_lists(path: Path, rated: dict[int, dict[str, int]], k: int) -> tuple[dict[int, list[str]], set[int]]:
    """Of each rated class of the file the rated segments among the first K, in their order; and all its classes."""
    lists: dict[int, list[str]] = {}
    listed: set[int] = set()
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1 and line.startswith(b"Class"):
                continue
            class_id = class_of(line)
            if class_id is None or class_id in listed:
                raise SubmissionError(f"{path}, line {number}: unreadable or repeated class; validate the file first")
            listed.add(class_id)
            if class_id in rated:
                ids = line.rstrip(b"\r\n").decode("ascii", "replace").partition(",")[2].split(" ")
                lists[class_id] = [name for name in dict.fromkeys(ids[:k]) if name in rated[class_id]]
    return lists, listed
