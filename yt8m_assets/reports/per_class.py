"""Average precision by class of every model and the ensemble, as CSV: what the mean of the leaderboard hides."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yt8m_assets.data.records.vocabulary import class_names, load_vocabulary
from yt8m_assets.evaluation import MapResult, Ratings, ranking_map
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.data import VOCABULARY_FILE
from yt8m_assets.stages.ensemble import load_oof, read_weights, with_second_stage
from yt8m_assets.stages.lineage import Inputs
from yt8m_assets.stages.submission import fuse_models
from yt8m_assets.storage import ArtifactStore, Manifest, atomic_write

PER_CLASS_FILE = "per_class.csv"
ENSEMBLE = "ensemble"


def holdout_results(recipe: Recipe, store: ArtifactStore, inputs: Inputs) -> tuple[dict[str, MapResult], Ratings]:
    """Out-of-fold results of the ensemble and of each model, from the parents of the leaderboard, and the ratings."""
    rankings, ratings = load_oof(recipe, store, inputs)
    found = read_weights(store.fetch(inputs.parent("ensemble_weights")))
    k = recipe.prediction.top_k
    ensemble = fuse_models(with_second_stage(recipe, rankings, ratings, found), found["weights"], found["w0"], k)
    results = {key: ranking_map(ranking, ratings, k) for key, ranking in rankings.items()}
    return {ENSEMBLE: ranking_map(ensemble, ratings, k), **results}, ratings


def per_class_table(
    results: Mapping[str, MapResult], ratings: Ratings, store: ArtifactStore, shards: Manifest | None
) -> tuple[list[str], list[list[Any]]]:
    """Columns, and a row per class with a positive rating: id, name, counts, and the average precision of each result.

    `shards`: the segment shards, whose vocabulary names the classes and counts their videos; without, neither is known.
    None where it is not, or where a ranking does not hold the class.
    """
    has_names = shards is not None and VOCABULARY_FILE in shards.files
    uri = str(store.fetch(shards, (VOCABULARY_FILE,)) / VOCABULARY_FILE) if shards and has_names else None
    classes = sorted(set().union(*(result.per_class for result in results.values())))
    names, vocabulary = class_names(uri, np.array(classes, np.int64)), load_vocabulary(uri) if uri else {}
    num_ratings = np.bincount(ratings.class_id).tolist()
    num_positives = np.bincount(ratings.class_id, weights=ratings.score).astype(int).tolist()
    rows = []
    for class_id in classes:
        known: Any = vocabulary.get(class_id)
        row = [class_id, names[class_id], known.num_train_videos if known else None]
        cells = [result.per_class.get(class_id) for result in results.values()]
        rows.append([*row, num_ratings[class_id], num_positives[class_id], *cells])
    return ["class_id", "name", "num_train_videos", "num_ratings", "num_positives", *results], rows


def write_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], path: Path) -> None:
    """Write such a table as CSV; what is None stays empty. Atomic."""
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *rows])
