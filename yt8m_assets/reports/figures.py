"""The numbers of the leaderboard: every model, the ensemble, the classes, and where the data are simulated the ceiling.

Everything is recomputed from the published rankings, so the figures cannot drift from them.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, cast

import numpy as np

from yt8m_assets.data.dataset.memory import load_videos
from yt8m_assets.data.records.examples import FEATURE_SIZES
from yt8m_assets.data.records.vocabulary import class_names, load_vocabulary
from yt8m_assets.evaluation import MapResult, Ratings, bootstrap_map, paired_test, ranking_map, rated_places
from yt8m_assets.evaluation.picking import picking_optimism
from yt8m_assets.progress import Progress
from yt8m_assets.ranking.files import RankingReader
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.reports.submission_score import score_submission
from yt8m_assets.stages.data import VOCABULARY_FILE, read_shards
from yt8m_assets.stages.ensemble import load_oof, read_weights, with_second_stage
from yt8m_assets.stages.indexing import read_index
from yt8m_assets.stages.lineage import Inputs, require_current
from yt8m_assets.stages.nodes import Node
from yt8m_assets.stages.submission import SUBMISSION_FILE, fuse_models
from yt8m_assets.storage import ArtifactStore, Manifest


def collect_figures(recipe: Recipe, store: ArtifactStore, inputs: Inputs, progress: Progress) -> dict[str, Any]:
    """All figures as JSON values; deterministic for the same artifacts and recipe."""
    rankings, ratings = load_oof(recipe, store, inputs)
    found = read_weights(store.fetch(inputs.parent("ensemble_weights")))
    k, rounds, seed = recipe.prediction.top_k, recipe.bootstrap_rounds, recipe.seed
    ensemble = fuse_models(with_second_stage(recipe, rankings, ratings, found), found["weights"], found["w0"], k)
    with progress.task("leaderboard", len(rankings) + 3, "parts") as task:
        models = []
        for key, ranking in rankings.items():
            models.append(model_row(recipe, store, inputs, key, ranking, ratings, found))
            task.advance()
        best = max(models, key=lambda row: row["map_with_tta"])["key"]
        test = paired_test(ensemble, rankings[best], ratings, rounds, seed, k=k)
        quality = ranking_map(ensemble, ratings, k)
        task.advance()
        summary = {
            **{
                name: found[name]
                for name in ("w0", "weights", "equal_map", "nested", "num_trials", "shrinking", "searched")
            },
            "map": quality.map,
            "interval": asdict(bootstrap_map(ensemble, ratings, rounds, seed, k=k)),
            "best_single": best,
            "gain": {**asdict(test.difference), "p_value": test.p_value},
        }
        task.advance()
        simulated = _simulated(recipe, store, inputs, summary, models, ratings, progress)
        task.advance()
    return {
        "recipe": recipe.name,
        "models": models,
        "ensemble": summary,
        "simulated": simulated,
        "num_ratings": len(ratings),
        "num_positive_ratings": int(ratings.positive.sum()),
        "classes": _classes(store, inputs, quality, ratings),
        "agreement": {"models": list(rankings), "matrix": agreement(rankings, ratings, k).round(6).tolist()},
    }


def model_row(
    recipe: Recipe,
    store: ArtifactStore,
    inputs: Inputs,
    key: str,
    ranking: RankingReader,
    ratings: Ratings,
    found: Mapping[str, Any],
) -> dict[str, Any]:
    k, row = recipe.prediction.top_k, recipe.model(key)
    by_shift = {}
    for shift in sorted(row.shifts):
        cell = RankingReader(store.fetch(inputs.parent("oof_predictions", key, shift)))
        by_shift[f"{shift:+d}"] = ranking_map(cell, ratings, k).map
    interval = bootstrap_map(ranking, ratings, recipe.bootstrap_rounds, recipe.seed, k=k)
    without = by_shift[f"{min(row.shifts, key=abs):+d}"]
    total = sum(found["weights"].values())
    manifest = inputs.parent("finetuned_model", key)
    model = manifest.metadata
    return {
        **(_fold_map(inputs.parent("fold_ranking", key)) if recipe.folds else {}),
        "key": key,
        "title": row.title,
        "parameters": model.get("parameters"),
        "weights_from": model.get("weights"),
        "picking": asdict(picking_optimism(_candidates(store, manifest))),
        "map_without_tta": without,
        "map_with_tta": interval.value,
        "gain_of_tta": interval.value - without,
        "interval": asdict(interval),
        "map_by_shift": by_shift,
        "weight": found["weights"][key] / total,
    }


def _fold_map(folds: Manifest) -> dict[str, float | None]:
    """The mean MAP of a model's folds, each ranked by what was trained without it."""
    found = [fold["map"] for fold in folds.metadata["folds"] if fold["map"] is not None]
    return {"fold_map": sum(found) / len(found) if found else None}


def _candidates(store: ArtifactStore, model: Manifest) -> list[dict[str, float]]:
    """The scores of everything that could have been published as the model; none for an imported one."""
    from yt8m_assets.training.model_files import TRAINING, read_json

    training = read_json(store.fetch(model, (TRAINING,)) / TRAINING)
    compared = training["candidates"]
    points = [compared["last"]] if compared.get("last") else training["evaluations"]  # where the best was not kept
    averages = [scores for name, scores in compared.items() if name in ("ema", "swa") and scores]
    return [{name: row[name] for name in row if name != "step"} for row in [*points, *averages]]


def _classes(store: ArtifactStore, inputs: Inputs, quality: MapResult, ratings: Ratings) -> list[dict[str, Any]]:
    """Average precision of every scored class under the ensemble, best first, with its name and frequency."""
    shards = inputs.parent("segment_shards")
    has_names = VOCABULARY_FILE in shards.files
    uri = str(store.fetch(shards, (VOCABULARY_FILE,)) / VOCABULARY_FILE) if has_names else None
    names = class_names(uri, np.array(sorted(quality.per_class), np.int64))
    vocabulary = load_vocabulary(uri) if uri else {}
    counts = np.bincount(ratings.class_id)
    rows = [
        {
            "class_id": class_id,
            "name": names[class_id],
            "average_precision": precision,
            "num_positives": quality.num_positives[class_id],
            "num_ratings": int(counts[class_id]),
            "num_train_videos": vocabulary[class_id].num_train_videos if class_id in vocabulary else None,
        }
        for class_id, precision in quality.per_class.items()
    ]
    return sorted(rows, key=lambda row: (-row["average_precision"], row["class_id"]))


def agreement(rankings: Mapping[str, Any], ratings: Ratings, k: int) -> np.ndarray:
    """Rank correlation of each two models over the rated segments, within classes: float64 [M, M].

    0 between models of which no class has two rated segments to compare.
    """
    columns = [_centred_ranks(rated_places(ranking, ratings, k), ratings.class_id) for ranking in rankings.values()]
    if len(columns) == 1:
        return np.ones((1, 1))
    with np.errstate(invalid="ignore"):
        found = np.nan_to_num(np.corrcoef(np.stack(columns)))
    np.fill_diagonal(found, 1)
    return found


def _centred_ranks(places: np.ndarray, class_id: np.ndarray) -> np.ndarray:
    """Rank of each pair among its class's, scaled to mean 0 and unit spread within the class; float64 [P]."""
    last = np.where(places < 0, np.iinfo(np.int32).max, places)  # not listed: behind all others
    _, group, sizes = np.unique(class_id, return_inverse=True, return_counts=True)
    order = np.lexsort((last, group))
    begins = np.concatenate([[0], np.cumsum(sizes)])[:-1]
    ranks = np.empty(len(places))
    ranks[order] = np.arange(len(places)) - begins[group[order]]
    spread = np.sqrt((sizes**2 - 1) / 12)
    return np.where(spread[group] > 0, (ranks - (sizes[group] - 1) / 2) / np.maximum(spread[group], 1e-9), 0.0)


def _simulated(
    recipe: Recipe,
    store: ArtifactStore,
    inputs: Inputs,
    ensemble: Mapping[str, Any],
    models: list[dict[str, Any]],
    ratings: Ratings,
    progress: Progress,
) -> dict[str, Any] | None:
    """Random and oracle MAP, on the hold-out and on the unseen test videos; None for real data."""
    config = recipe.data.simulation
    if config is None:
        return None
    from yt8m_assets.data.simulation.truth import test_ratings

    hidden = test_ratings(config)
    found = {"holdout": _ceiling(recipe, store, inputs.parent("segment_shards"), ratings.to_dict(), progress)}
    found["holdout"] |= _normalised({"ensemble": ensemble["map"]}, found["holdout"], models, "map_with_tta")
    submission = inputs.parent("submission")
    truth = Ratings.from_dict(hidden)
    for row in models:
        ranking = RankingReader(store.fetch(inputs.parent("test_ranking", row["key"])))
        row["test_map"] = ranking_map(ranking, truth, recipe.prediction.top_k).map
    score = score_submission(store.fetch(submission) / SUBMISSION_FILE, truth, num_rounds=1).result.map
    found["test"] = _ceiling(recipe, store, inputs.parent("test_shards"), hidden, progress)
    found["test"] |= _normalised({"ensemble": score}, found["test"], models, "test_map")
    return found


def given_figures(recipe: Recipe, store: ArtifactStore, ratings: Ratings, source: str) -> dict[str, Any]:
    """MAP of the published test rankings and submission against ratings from outside, where `source` names these.

    Raises MissingArtifactError or ParentMismatchError naming what is not there or outdated, SubmissionError where the
    ratings are of other videos.
    """
    submission = require_current(recipe, store, Node("submission"))
    path = store.fetch(submission, (SUBMISSION_FILE,)) / SUBMISSION_FILE
    score = score_submission(path, ratings, num_rounds=recipe.bootstrap_rounds, seed=recipe.seed).to_json()
    maps = {"ensemble": score["map"]}
    for key in recipe.model_keys:
        ranking = RankingReader(store.fetch(require_current(recipe, store, Node("test_ranking", key))))
        maps[key] = ranking_map(ranking, ratings, recipe.prediction.top_k).map
    counts = {"num_ratings": len(ratings), "num_positive_ratings": int(ratings.positive.sum())}
    return {"maps": maps, "interval": score["interval"], "missing": score["missing"], "source": source, **counts}


def _ceiling(
    recipe: Recipe, store: ArtifactStore, shards: Manifest, ratings: Mapping[tuple[str, int], int], progress: Progress
) -> dict[str, Any]:
    from yt8m_assets.evaluation.oracle import oracle_map, random_map

    assert recipe.data.simulation is not None
    data = recipe.data
    reading = data.reading(store.cache)
    whole = data.feature_sizes == FEATURE_SIZES  # the index is of what the models see
    located, held_out = read_shards(recipe, store, shards), True if shards.key == "segment_shards" else None
    videos = load_videos(  # the best that can be made of the data is made of all of it, whatever the models see
        read_index(store, shards, located, held_out) if whole else located.uris(held_out),
        replace(reading, feature_sizes=FEATURE_SIZES),
        memory_budget=data.memory_budget,
    )
    progress.log(f"scoring the {shards.key} with the oracle: {len(ratings)} ratings")
    oracle = oracle_map(recipe.data.simulation, ratings, cast(Any, videos))
    return {"random": random_map(ratings), "oracle": oracle, "num_ratings": len(ratings)}


def _normalised(
    maps: dict[str, float], ceiling: Mapping[str, Any], models: list[dict[str, Any]], name: str
) -> dict[str, Any]:
    """The MAP and the norm of the ensemble and each model."""
    maps = maps | {row["key"]: row[name] for row in models if row[name] is not None}
    return {"maps": maps, "norms": {key: norm(value, ceiling) for key, value in maps.items()}}


def norm(value: float, ceiling: Mapping[str, Any]) -> float | None:
    """(MAP - random) / (oracle - random); None where chance is as good as the oracle."""
    spread = ceiling["oracle"] - ceiling["random"]
    return (value - ceiling["random"]) / spread if spread > 0 else None
