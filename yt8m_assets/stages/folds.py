"""The stage of the folds: every rated video that is trained on, ranked by a model that was not trained on it.

A model is fine-tuned once without each fold, from the same pre-trained weights and with the checkpoint that is best on
the hold-out, as its published self is; then it ranks the fold's videos. Lists of different models are not comparable by
score, so a segment's score in the published ranking is the log-odds of its place among its fold's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from yt8m_assets.data.dataset.memory import load_videos
from yt8m_assets.data.dataset.packed import Fold
from yt8m_assets.data.dataset.ratings import collect_ratings
from yt8m_assets.data.dataset.videos import Videos
from yt8m_assets.device.hardware import check_gpu, find_hardware
from yt8m_assets.errors import DataError
from yt8m_assets.evaluation import Ratings, ranking_map
from yt8m_assets.prediction.blocks import SegmentIndex
from yt8m_assets.prediction.scoring import score_videos
from yt8m_assets.progress import Progress
from yt8m_assets.ranking.files import Ranking, RankingReader, RankingSource, RankingWriter, write_ranking
from yt8m_assets.ranking.fusion import fuse, unified_segments, union_of_classes
from yt8m_assets.ranking.sorting import descending_order
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.data import RATINGS_FILE, read_segment_classes
from yt8m_assets.stages.ensemble import lineage_tags
from yt8m_assets.stages.lineage import Inputs, resolve_inputs
from yt8m_assets.stages.members import cells_of, scoring_options
from yt8m_assets.stages.nodes import Node
from yt8m_assets.stages.training import checkpoints_of, make_job
from yt8m_assets.stages.training_report import flatten
from yt8m_assets.storage import ArtifactStore, StageResult
from yt8m_assets.tracking import NullTracking, Tracking
from yt8m_assets.training.distributed import Team
from yt8m_assets.training.interruption import StopRequest, stop_on_signals
from yt8m_assets.training.job import run_job
from yt8m_assets.training.model_files import read_model
from yt8m_assets.training.passes import run_pass


def rank_folds(
    recipe: Recipe,
    store: ArtifactStore,
    model_key: str,
    *,
    tracking: Tracking,
    progress: Progress,
    run_tags: Mapping[str, str],
    allow_fallback: bool = False,
    start_afresh: bool = False,
) -> StageResult:
    """Publish a model's ranking of the rated videos that are trained on, with their ratings beside it.

    The checkpoints of all folds stay until then: an interrupted run goes on with the fold that it was at. Raises
    DataError where a fold would be trained on a video that it ranks; else as `finetune`.
    """
    inputs = resolve_inputs(recipe, store, Node("fold_ranking", recipe.model(model_key).key))
    folds = [Fold(number=number, count=recipe.folds, inside=True) for number in range(recipe.folds)]
    if inputs.published is not None:
        result = StageResult(inputs.published, reused=True)
    else:
        tags = lineage_tags(recipe, inputs, {**run_tags, "partition": model_key})
        title = f"{recipe.model(model_key).title} folds, {recipe.name} {inputs.fingerprint[:6]}"
        parameters = flatten(inputs.config)
        with (
            store.publish(inputs.node.key, **inputs.publish_arguments()) as publication,
            tracking.run(title, kind="prediction", model=model_key, params=parameters, tags=tags) as run,
            stop_on_signals() as stop,
            TemporaryDirectory(dir=store.cache_path) as scratch,
        ):
            work = _Folds(recipe, store, inputs, Path(scratch), progress, stop, allow_fallback, start_afresh)
            found = [work.rank(fold) for fold in folds]
            for number, fold_map in enumerate(one.map for one in found):
                run.log_metrics({} if fold_map is None else {"fold/map_at_100000": fold_map}, step=number)
            merge_folds([RankingReader(one.folder) for one in found], publication.path)
            (publication.path / RATINGS_FILE).write_text("".join(one.ratings for one in found))
            publication.metadata.update(
                folds=[{"map": one.map, "num_videos": one.num_videos, "steps": one.steps} for one in found],
                mlflow_run_id=run.run_id,
                mlflow_url=run.url,
            )
            run.keep(publication.path)
        result = publication.result
        if stop.requested:
            stop.pass_on()
    for fold in folds:
        checkpoints_of(store, inputs, fold).discard()
    return result


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What became of one fold."""

    folder: Path
    """Its ranking."""
    ratings: str
    """Its ratings, as lines of a CSV."""
    map: float | None
    """MAP of the one by the other; None where no class has a positive rating."""
    num_videos: int
    """Videos that are ranked."""
    steps: int | None
    """The step whose weights rank them."""


@dataclass(frozen=True)
class _Folds:
    """The folds of one model, one after another."""

    recipe: Recipe
    store: ArtifactStore
    inputs: Inputs
    scratch: Path
    progress: Progress
    stop: StopRequest
    allow_fallback: bool
    start_afresh: bool

    def rank(self, fold: Fold) -> _Found:
        """Fine-tune without a fold, and rank it."""
        job = make_job(self.recipe, self.store, self.inputs, self.allow_fallback, fold)
        job.checkpoints.refuse_others(self.start_afresh)
        job.checkpoints.sweep()
        check_gpu(find_hardware())
        device, folder = Team().device, self.scratch / f"fold{fold.number}"
        (folder / "model").mkdir(parents=True)
        title = f"finetuning {job.name}, without fold {fold.number + 1} of {fold.count}"
        with (
            NullTracking().run(title, kind="finetuning") as untracked,
            self.progress.task(title, job.config.num_steps, "steps") as task,
        ):
            training = run_job(job, folder / "model", tracked=untracked, task=task, stop=self.stop)
            ((_, outcome),) = run_pass({job.name: training}, self.stop, device, job.config)
        if isinstance(outcome, Exception):
            raise outcome
        videos = load_videos([replace(shard, fold=fold) for shard in job.data.shards], job.data.reading)
        ranking = self._score(videos, read_model(folder / "model", device, title), device)
        write_ranking(ranking, folder)
        _, rated = collect_ratings(videos, self.recipe.data.num_classes, job.data.rated_classes)
        rows = zip(rated.segment_ids, rated.class_ids.tolist(), rated.scores.tolist(), strict=True)
        lines = "".join(f"{segment},{class_id},{score:g}\n" for segment, class_id, score in rows)
        (folder / RATINGS_FILE).write_text(lines)
        quality = ranking_map(ranking, Ratings.read_csv(folder / RATINGS_FILE), self.recipe.prediction.top_k)
        return _Found(
            folder=folder,
            ratings=lines,
            map=quality.map if quality.per_class else None,
            num_videos=len(ranking.segments.video_ids),
            steps=outcome["best_step"] if outcome["weights"] == "best" else outcome["steps"],
        )

    def _score(self, videos: Videos, model: Any, device: torch.device) -> Ranking:
        """The videos ranked by the model, its shifts fused."""
        recipe, key, index = self.recipe, str(self.inputs.node.model), SegmentIndex.of(videos)
        if not len(index.segments):
            raise DataError(f"folds = {recipe.folds}: a fold holds no segment to rank; choose fewer folds")
        classes = read_segment_classes(recipe, self.store, self.inputs.parent("segment_shards"))
        shifts = sorted(recipe.model(key).shifts)
        member = cells_of(recipe, key, model, shifts, classes, index.segments, device)
        score_videos(videos, index, [member], scoring_options(recipe), device=device, progress=self.progress)
        settings = recipe.prediction
        return fuse([cell.finish() for cell in member.cells], [1.0] * len(shifts), settings.tta_w0, settings.top_k)


def merge_folds(rankings: Sequence[RankingSource], folder: Path) -> None:
    """Write one ranking of what several rank, no video twice: by the log-odds of a segment's place in its own list."""
    segments, rows = unified_segments(rankings)
    if sum(len(ranking.segments) for ranking in rankings) != len(segments):
        raise DataError("folds: a segment is in more than one of them; materialise fold_ranking again")
    with RankingWriter(folder, union_of_classes(rankings), segments) as writer:
        for class_id in union_of_classes(rankings).tolist():
            segment, score = [], []
            for ranking, row in zip(rankings, rows, strict=True):
                listed, size = ranking.entries(class_id)[0], len(ranking.segments)
                place = np.arange(len(listed)) + 0.5
                segment.append(listed if row is None else row[listed])
                score.append(np.log(size - place) - np.log(place))
            scores = np.concatenate(score)
            order = descending_order(scores)
            writer.write(class_id, np.concatenate(segment)[order].astype(np.int32), scores[order].astype(np.float32))
