"""The ensemble stage: weights searched on the out-of-fold rankings."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yt8m_assets.errors import DataError
from yt8m_assets.progress import Progress
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.lineage import Inputs, resolve_inputs
from yt8m_assets.stages.nodes import Node
from yt8m_assets.storage import ArtifactStore, Publication, StageResult, atomic_write
from yt8m_assets.tracking import TrackedRun, Tracking

if TYPE_CHECKING:
    from yt8m_assets.ensemble.search import SearchResult
    from yt8m_assets.ensemble.trial import Trial
    from yt8m_assets.evaluation import Ratings
    from yt8m_assets.ranking.files import RankingReader, RankingSource

WEIGHTS_FILE = "weights.json"
TRIALS_FILE = "trials.jsonl"


def search_ensemble(
    recipe: Recipe, store: ArtifactStore, *, tracking: Tracking, progress: Progress, run_tags: Mapping[str, str]
) -> StageResult:
    """Search w0 and the models' weights for the highest hold-out MAP, and publish them (SPEC section 11).

    An interrupted search goes on from its log. Raises MissingArtifactError naming the rankings that are not there.
    """
    node = Node("ensemble_weights")
    inputs = resolve_inputs(recipe, store, node)
    if inputs.published is not None:
        return StageResult(inputs.published, reused=True)
    state = store.cache_path / "search" / inputs.fingerprint[:16]
    with store.publish(node.key, **inputs.publish_arguments()) as publication:
        state.mkdir(parents=True, exist_ok=True)
        _search(recipe, store, inputs, publication, state, tracking, progress, run_tags)
    for path in state.iterdir():
        path.unlink()
    state.rmdir()
    return publication.result


def _search(
    recipe: Recipe,
    store: ArtifactStore,
    inputs: Inputs,
    publication: Publication,
    state: Path,
    tracking: Tracking,
    progress: Progress,
    run_tags: Mapping[str, str],
) -> None:
    """Run the search inside a tracked run. `state` keeps the trials and the run, for a search that is killed."""
    from yt8m_assets.ensemble.preset import ORIGINAL_W0
    from yt8m_assets.ensemble.search import search_weights
    from yt8m_assets.ensemble.second_stage import SECOND_STAGE
    from yt8m_assets.ensemble.trial import TrialLog

    models, ratings = load_oof(recipe, store, inputs)
    stage = _fitted(recipe, store, inputs, models, ratings)
    rankings = with_second_stage(recipe, models, ratings, stage)
    preset = {model.key: model.preset_weight for model in recipe.models}
    trusted = SECOND_STAGE if recipe.second_stage else None
    presets = {"recipe": (ORIGINAL_W0, {key: preset.get(key, 0.0) for key in rankings})}
    run_file, log_path = state / "run.json", state / TRIALS_FILE
    resume = json.loads(run_file.read_text()) if run_file.is_file() else None
    settings = recipe.search
    k = recipe.prediction.top_k
    tags = lineage_tags(recipe, inputs, run_tags)
    params = {**inputs.config["search"], "top_k": k}
    with (
        tracking.run("ensemble search", kind="ensemble", params=params, tags=tags, resume=resume) as run,
        progress.task("searching weights", settings.num_trials, "trials") as task,
    ):
        with atomic_write(run_file) as temporary:
            temporary.write_text(json.dumps(run.state()))
        best = 0.0

        def track(trial: "Trial") -> None:
            nonlocal best
            if trial.target > best or trial.phase != "refinement":  # a climb's other steps are in the file of trials
                best = max(best, trial.target)
                run.log_metrics(trial_metrics(trial, best), step=trial.number)

        def on_trial(trial: "Trial") -> None:
            track(trial)
            task.update(best_map=best)
            task.advance()

        for trial in TrialLog(log_path).past:
            track(trial)

        result = search_weights(
            rankings,
            ratings,
            config=settings,
            log_path=log_path,
            on_trial=on_trial,
            presets=presets,
            k=k,
            trusted=trusted,
        )
        ratings_manifest = inputs.parent("holdout_ratings")
        run.log_dataset(
            "holdout_ratings", digest=ratings_manifest.digest, source_uri=store.uri(ratings_manifest), context="holdout"
        )
        _publish(publication, result, stage, run)


def lineage_tags(recipe: Recipe, inputs: Inputs, run_tags: Mapping[str, str]) -> dict[str, str]:
    """Tags of a tracked run that lead to the asset, to what it is made from, and to the Dagster run."""
    return {
        **run_tags,
        "asset": inputs.node.asset,
        "recipe": recipe.name,
        "fingerprint": inputs.fingerprint,
        "code_version": inputs.node.code_version,
        **{f"parent.{key}": digest for key, digest in inputs.parents.items()},
    }


def load_oof(recipe: Recipe, store: ArtifactStore, inputs: Inputs) -> "tuple[dict[str, RankingReader], Ratings]":
    """The out-of-fold ranking of each model, and the hold-out ratings, from a node's parents."""
    from yt8m_assets.evaluation import Ratings
    from yt8m_assets.ranking.files import RankingReader
    from yt8m_assets.stages.data import RATINGS_FILE

    rankings = {key: RankingReader(store.fetch(inputs.parent("oof_ranking", key))) for key in recipe.model_keys}
    return rankings, Ratings.read_csv(store.fetch(inputs.parent("holdout_ratings")) / RATINGS_FILE)


def with_second_stage(
    recipe: Recipe, rankings: "Mapping[str, RankingSource]", ratings: "Ratings", found: Mapping[str, Any]
) -> "dict[str, RankingSource]":
    """Out-of-fold rankings of the models, and that of the second stage where the recipe has one.

    There every video is scored by what was fitted on the ratings of other videos: with folds by what `found` has (the
    published weights), which saw no held-out one, else by one of several.
    """
    if not recipe.second_stage:
        return dict(rankings)
    from yt8m_assets.ensemble.second_stage import SECOND_STAGE, SecondStage, StagedRanking, cross_fitted

    members, k = list(rankings.values()), recipe.prediction.top_k
    if recipe.folds:
        staged = StagedRanking(members, [SecondStage.from_json(found[SECOND_STAGE])], k=k)
    else:
        staged, _ = cross_fitted(members, ratings, recipe.seed, k)
    return {**rankings, SECOND_STAGE: staged}


def _fitted(
    recipe: Recipe, store: ArtifactStore, inputs: Inputs, rankings: "Mapping[str, RankingSource]", ratings: "Ratings"
) -> dict[str, Any]:
    """What scores the test videos, for the file of weights: the second stage of the folds, else of the hold-out."""
    if not recipe.second_stage:
        return {}
    from yt8m_assets.ensemble.second_stage import SECOND_STAGE, fit_second_stage
    from yt8m_assets.evaluation import Ratings
    from yt8m_assets.ranking.files import RankingReader
    from yt8m_assets.stages.data import RATINGS_FILE

    members = list(rankings.values())
    if recipe.folds:
        folders = [store.fetch(inputs.parent("fold_ranking", key)) for key in recipe.model_keys]
        members, ratings = [RankingReader(folder) for folder in folders], Ratings.read_csv(folders[0] / RATINGS_FILE)
    return {SECOND_STAGE: fit_second_stage(members, ratings).to_json()}


def trial_metrics(trial: "Trial", best: float) -> dict[str, float]:
    """What of a trial goes into tracking: its MAP, the best so far, w0 and the weights."""
    weights = {f"trial/weight/{key}": float(value) for key, value in trial.weights.items()}
    found = {"trial/map_at_100000": trial.target, "trial/best_map_at_100000": best}
    return {**found, "trial/w0": trial.w0, **weights}


def headline(result: "SearchResult") -> dict[str, float]:
    """What tracking shows first of a search: the numbers that are published, whatever the last trial was."""
    found = {
        "holdout/map_at_100000": result.map,
        "holdout/searched_map_at_100000": result.best.target,
        "holdout/equal_map_at_100000": result.equal_weights_map,
        "holdout/best_single_map_at_100000": result.best_single[1],
        "ensemble/shrinking": result.amount,
        "ensemble/w0": result.w0,
        **{f"ensemble/weight/{key}": weight for key, weight in result.weights.items()},
    }
    if result.nested is not None:
        found["unseen/gain_of_search"] = result.nested.gain
    return found


def best_params(result: "SearchResult") -> dict[str, float]:
    """What was published, as parameters: MLflow shows and compares those without a history of trials."""
    weights = {f"best/weight/{key}": weight for key, weight in result.weights.items()}
    return {"best/map_at_100000": result.map, "best/w0": result.w0, **weights}


def _publish(
    publication: Publication, result: "SearchResult", second_stage: Mapping[str, Any], run: TrackedRun
) -> None:
    """Write weights, trials, pictures and metadata."""
    from yt8m_assets.ensemble.plots import plot_search

    found = result.to_json() | dict(second_stage)
    (publication.path / WEIGHTS_FILE).write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    rows = [{"number": t.number, "target": t.target, "params": dict(t.params), "phase": t.phase} for t in result.trials]
    (publication.path / TRIALS_FILE).write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))
    for path in plot_search(result, publication.report_path):
        run.log_artifact(path, "report")
    run.log_metrics(headline(result), step=len(result.trials))
    run.log_params(best_params(result))
    run.log_dict(found, WEIGHTS_FILE)
    run.log_artifact(publication.path / TRIALS_FILE)
    publication.metadata.update(
        map_at_100000=result.map,
        searched_map=result.best.target,
        equal_weights_map=result.equal_weights_map,
        shrinking=result.amount,
        why_shrunk=result.reason,
        best_single_model=result.best_single[0],
        best_single_map=result.best_single[1],
        gain_over_best_single=result.map - result.best_single[1],
        w0=result.w0,
        weights=result.weights,
        single_maps=result.single_maps,
        num_trials=len(result.trials),
        nested=found["nested"],
        mlflow_run_id=run.run_id,
        mlflow_url=run.url,
    )
    run.keep(publication.path)


def read_weights(folder: Path) -> dict[str, Any]:
    """The published weights: w0, weights by model key, and the figures of the search. Raises DataError."""
    values = json.loads((folder / WEIGHTS_FILE).read_text(encoding="utf-8"))
    if not isinstance(values.get("weights"), dict) or "w0" not in values:
        raise DataError(f"{folder / WEIGHTS_FILE}: w0 or weights are missing; search again")
    return values
