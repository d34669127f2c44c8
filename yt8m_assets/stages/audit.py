"""What must hold for the artifacts: each function looks at published files and names what is wrong.

They take a recipe, a store and the nodes in question, and return a `Verdict`; a missing artifact is a problem too.
"""

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from yt8m_assets.evaluation.ranked import ROUNDING
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.explain import explain
from yt8m_assets.stages.lineage import Lineage, current_manifest
from yt8m_assets.stages.nodes import Node, with_ancestors
from yt8m_assets.storage import ArtifactStore, Manifest

MAX_PROBLEMS = 20


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The outcome of one check."""

    checked: int
    """Artifacts, shards or rows that were looked at."""
    problems: tuple[str, ...] = ()
    """What is wrong, each with its place; at most the first twenty."""
    numbers: dict[str, int | float] = field(default_factory=dict)
    """Counts worth showing."""

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    @property
    def summary(self) -> str:
        """One line for people."""
        return f"{self.checked} checked, all well" if self.passed else f"{len(self.problems)} wrong: {self.problems[0]}"


def _verdict(checked: int, problems: list[str], **numbers: int | float) -> Verdict:
    return Verdict(checked=checked, problems=tuple(problems[:MAX_PROBLEMS]), numbers=numbers)


def _manifests(recipe: Recipe, store: ArtifactStore, nodes: Sequence[Node], problems: list[str]) -> list[Manifest]:
    """The artifacts that the recipe's are now; where one is not up to date, the newest there is."""
    found, lineage = [], Lineage(recipe, store)
    for node in nodes:
        manifest = lineage.current(node) or next(store.generations(node.key), None)
        if manifest is None:
            problems.append(f"{node.key}: not materialised")
        else:
            found.append(manifest)
    return found


def up_to_date(recipe: Recipe, store: ArtifactStore, nodes: Sequence[Node]) -> Verdict:
    """The artifacts, and all that they are made from, are what recipe, code and data would give now."""
    lineage = Lineage(recipe, store)
    looked_at = with_ancestors(recipe, nodes)
    stale = (node for node in looked_at if lineage.current(node) is None)
    problems = sorted(f"{node.key}: {', '.join(explain(lineage, node))}" for node in stale)
    return _verdict(len(looked_at), problems)


def shards_not_empty(recipe: Recipe, store: ArtifactStore, nodes: Sequence[Node]) -> Verdict:
    """Every shard holds at least one good record."""
    from yt8m_assets.data.dataset.shards import ShardManifest

    problems: list[str] = []
    shards = [
        shard
        for manifest in _manifests(recipe, store, nodes, problems)
        for shard in ShardManifest.read(store.fetch(manifest) / "shards.json").shards
    ]
    problems += [f"{shard.name}: holds no good record" for shard in shards if shard.num_videos < 1]
    if not shards and not problems:
        problems.append("the list of shards is empty")
    return _verdict(len(shards), problems, num_videos=sum(shard.num_videos for shard in shards))


def both_verdicts(recipe: Recipe, store: ArtifactStore, nodes: Sequence[Node]) -> Verdict:
    """The hold-out ratings hold positives and negatives; a MAP cannot be measured otherwise."""
    problems: list[str] = []
    positives = negatives = 0
    for manifest in _manifests(recipe, store, nodes, problems):
        with (store.fetch(manifest, ("ratings.csv",)) / "ratings.csv").open(newline="") as file:
            for row in csv.reader(file):
                positives += row[-1].strip() in ("1", "1.0")
                negatives += row[-1].strip() in ("0", "0.0")
    if not problems and not (positives and negatives):
        problems.append(f"ratings.csv: {positives} positive and {negatives} negative ratings; both are needed")
    return _verdict(positives + negatives, problems, num_positives=positives, num_negatives=negatives)


def finite_map(recipe: Recipe, store: ArtifactStore, nodes: Sequence[Node]) -> Verdict:
    """Every number in the models' metadata is finite, and the weights are there."""
    problems: list[str] = []
    manifests = _manifests(recipe, store, nodes, problems)
    for manifest in manifests:
        if "weights.safetensors" not in manifest.files:
            problems.append(f"{manifest.key}: holds no weights.safetensors")
        problems += [f"{manifest.key}: {name} is {value}" for name, value in _not_finite(manifest.metadata)]
    return _verdict(len(manifests), problems)


def _not_finite(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Name and value of every number in a JSON value that is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        yield name, value
    elif isinstance(value, Mapping | list | tuple):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _not_finite(item, f"{name}.{key}" if name else str(key))


def ensemble_not_worse(recipe: Recipe, store: ArtifactStore, nodes: Sequence[Node]) -> Verdict:
    """The ensemble's out-of-fold MAP is at least that of its best member."""
    problems: list[str] = []
    numbers: dict[str, int | float] = {}
    manifests = _manifests(recipe, store, nodes, problems)
    for manifest in manifests:
        path = store.fetch(manifest, ("weights.json",)) / "weights.json"
        found = _read_maps(path)
        if found is None:
            problems.append(f"{path}: names no map and best_single")
            continue
        ensemble, best = found
        numbers = {"ensemble_map": ensemble, "best_member_map": best, "gain": ensemble - best}
        if not ensemble >= best - ROUNDING:
            problems.append(f"the ensemble's MAP {ensemble:.5f} is below its best member's {best:.5f}")
    return _verdict(len(manifests), problems, **numbers)


def _read_maps(path: Path) -> tuple[float, float] | None:
    content = json.loads(path.read_text())
    best = content.get("best_single")
    best = best.get("map") if isinstance(best, dict) else best
    return (float(content["map"]), float(best)) if "map" in content and isinstance(best, int | float) else None


def valid_submission(recipe: Recipe, store: ArtifactStore, nodes: Sequence[Node]) -> Verdict:
    """The submission is what the challenge accepts."""
    from yt8m_assets.stages.data import read_segment_classes
    from yt8m_assets.submission import validate_submission

    problems: list[str] = []
    classes = read_segment_classes(recipe, store).tolist()
    for manifest in _manifests(recipe, store, nodes, problems):
        path = store.fetch(manifest, ("submission.csv",)) / "submission.csv"
        problems += [str(problem) for problem in validate_submission(path, classes, test_video_ids(recipe, store))]
    return _verdict(len(classes), problems, num_classes=len(classes))


def test_video_ids(recipe: Recipe, store: ArtifactStore) -> frozenset[str] | None:
    """Ids of the test videos; None while the test shards are not up to date."""
    from yt8m_assets.stages.indexing import read_video_ids

    manifest = current_manifest(recipe, store, Node("test_shards"))
    if manifest is None:
        return None
    ids_by_name = read_video_ids(store, manifest, held_out=False)
    return frozenset(name.decode() for ids in ids_by_name.values() for name in ids.tolist())


def coverage(recipe: Recipe, store: ArtifactStore, nodes: Sequence[Node]) -> Verdict:
    """Every rated class is ranked, over all segments (up to the recipe's top_k), each of them once."""
    from yt8m_assets.ranking.files import RankingReader
    from yt8m_assets.stages.data import read_segment_classes

    problems: list[str] = []
    manifests = _manifests(recipe, store, nodes, problems)
    classes = read_segment_classes(recipe, store).tolist()
    entries = 0
    for manifest in manifests:
        reader = RankingReader(store.fetch(manifest))
        depth = min(recipe.prediction.top_k, len(reader.segments))
        for class_id in classes:
            segments, _ = reader.entries(class_id)
            entries += len(segments)
            if len(segments) != depth or len(np.unique(segments)) != depth:
                problems.append(f"{manifest.key}: class {class_id} ranks {len(segments)} segments, expected {depth}")
    return _verdict(len(manifests), problems, num_entries=entries, num_classes=len(classes))


def finite_scores(recipe: Recipe, store: ArtifactStore, nodes: Sequence[Node]) -> Verdict:
    """No score is NaN or infinite, and the scores of a class never rise along its ranking."""
    from yt8m_assets.ranking.files import RankingReader

    problems: list[str] = []
    manifests = _manifests(recipe, store, nodes, problems)
    lowest, highest = np.inf, -np.inf
    for manifest in manifests:
        reader = RankingReader(store.fetch(manifest))
        for class_id in reader.class_ids.tolist():
            _, scores = reader.entries(class_id)
            if not np.isfinite(scores).all():
                problems.append(f"{manifest.key}: class {class_id} holds a score that is not finite")
            elif np.any(np.diff(scores) > 0):
                problems.append(f"{manifest.key}: class {class_id} is not sorted by score")
            elif scores.size:
                lowest, highest = min(lowest, float(scores[-1])), max(highest, float(scores[0]))
    shown = {"lowest_score": lowest, "highest_score": highest} if np.isfinite([lowest, highest]).all() else {}
    return _verdict(len(manifests), problems, **shown)


def no_leak(recipe: Recipe, store: ArtifactStore, nodes: Sequence[Node]) -> Verdict:
    """No video is on both sides of the hold-out, in pre-training or in fine-tuning."""
    from yt8m_assets.data.dataset.folds import find_leaks
    from yt8m_assets.stages.indexing import read_video_ids

    problems: list[str] = []
    (segments,) = _manifests(recipe, store, [Node("segment_shards")], problems) or (None,)
    if segments is None:
        return _verdict(0, problems)
    held_out = read_video_ids(store, segments, held_out=True)
    training = {f"segment_shards {name}": ids for name, ids in read_video_ids(store, segments, held_out=False).items()}
    for pretraining in _manifests(recipe, store, [Node("pretraining_shards")], []):  # may not have been made yet
        ids_by_name = read_video_ids(store, pretraining, held_out=False)
        training |= {f"pretraining_shards {name}": ids for name, ids in ids_by_name.items()}
    problems += [f"held out and trained on: {leak}" for leak in find_leaks(training.items(), held_out)]
    counts = {"num_held_out": sum(map(len, held_out.values())), "num_training": sum(map(len, training.values()))}
    return _verdict(sum(counts.values()), problems, **counts)
