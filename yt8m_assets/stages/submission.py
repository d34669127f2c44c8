"""The submission stage: the models' test rankings fused with the searched weights, and the challenge's file."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from yt8m_assets.errors import SubmissionError
from yt8m_assets.progress import Progress
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.ensemble import lineage_tags, read_weights
from yt8m_assets.stages.lineage import Inputs, resolve_inputs
from yt8m_assets.stages.nodes import Node
from yt8m_assets.storage import ArtifactStore, StageResult
from yt8m_assets.tracking import Tracking

if TYPE_CHECKING:
    import numpy as np

    from yt8m_assets.ranking.files import RankingSource
    from yt8m_assets.ranking.fusion import FusedRanking

SUBMISSION_FILE = "submission.csv"


def make_submission(
    recipe: Recipe, store: ArtifactStore, *, tracking: Tracking, progress: Progress, run_tags: Mapping[str, str]
) -> StageResult:
    """Fuse the models' test rankings with the searched weights and write the challenge's CSV, class by class.

    It is the artifact of a tracked run of its own. Raises SubmissionError when the file would not be accepted, naming
    its first faults.
    """
    node = Node("submission")
    inputs = resolve_inputs(recipe, store, node)
    if inputs.published is not None:
        return StageResult(inputs.published, reused=True)
    from yt8m_assets.stages.data import read_segment_classes
    from yt8m_assets.submission import validate_submission, write_submission

    found = read_weights(store.fetch(inputs.parent("ensemble_weights")))
    classes = read_segment_classes(recipe, store, inputs.parent("segment_shards")).tolist()
    fusion = fuse_tests(recipe, store, inputs, found)
    k = recipe.prediction.top_k
    params = {**inputs.config, "w0": found["w0"], **{f"weight/{key}": value for key, value in found["weights"].items()}}
    with (
        store.publish(node.key, **inputs.publish_arguments()) as publication,
        tracking.run(
            "submission", kind="submission", params=params, tags=lineage_tags(recipe, inputs, run_tags)
        ) as run,
    ):
        shards = inputs.parent("test_shards")
        run.log_dataset(shards.key, digest=shards.digest, source_uri=store.uri(shards), context="test")
        path = publication.path / SUBMISSION_FILE
        with progress.task("writing submission", len(classes), "classes") as task:
            fused = _Watched(fusion, task.advance)
            write_submission(fused, path, classes, k)
        videos = set(fused.segments.video_ids.tolist())
        problems = validate_submission(path, classes, videos, k)
        if problems:
            shown = "; ".join(str(problem) for problem in problems[:5])
            raise SubmissionError(f"the submission has {len(problems)} faults: {shown}")
        sizes = {
            "num_classes": len(classes),
            "num_videos": len(videos),
            "num_segments": len(fused.segments),
            "num_listed": fused.num_listed,
            "size_bytes": path.stat().st_size,
        }
        run.log_metrics({f"submission/{name}": size for name, size in sizes.items()}, step=0)
        run.log_artifact(path)
        run.keep(publication.path)
        publication.metadata.update(**sizes, problems=0, mlflow_run_id=run.run_id, mlflow_url=run.url)
    return publication.result


def fuse_tests(recipe: Recipe, store: ArtifactStore, inputs: Inputs, found: Mapping[str, Any]) -> "FusedRanking":
    """The ranking that the submission lists: the test rankings fused with published weights, class by class."""
    from yt8m_assets.ranking.files import RankingReader

    k = recipe.prediction.top_k
    readers: dict[str, RankingSource] = {
        key: RankingReader(store.fetch(inputs.parent("test_ranking", key))) for key in recipe.model_keys
    }
    if "second_stage" in found:
        from yt8m_assets.ensemble.second_stage import SECOND_STAGE, SecondStage, StagedRanking

        stage = SecondStage.from_json(found[SECOND_STAGE])
        readers[SECOND_STAGE] = StagedRanking(list(readers.values()), [stage], k=k)
    return fuse_models(readers, found["weights"], found["w0"], k)


def fuse_models(
    rankings: "Mapping[str, RankingSource]", weights: Mapping[str, float], w0: float, k: int
) -> "FusedRanking":
    """The fusion of the models' rankings with their weights, by model key, computed class by class."""
    from yt8m_assets.ranking.fusion import FusedRanking

    return FusedRanking(list(rankings.values()), [weights[key] for key in rankings], w0, k)


class _Watched:
    """A ranking that tells how far its reader is, and how much it has read."""

    def __init__(self, ranking: "RankingSource", on_class: Callable[[], None]) -> None:
        self.class_ids, self.segments = ranking.class_ids, ranking.segments
        self.num_listed, self._ranking, self._on_class = 0, ranking, on_class

    def entries(self, class_id: int) -> "tuple[np.ndarray, np.ndarray]":
        """As the ranking's."""
        segment, score = self._ranking.entries(class_id)
        self.num_listed += len(segment)
        self._on_class()
        return segment, score
