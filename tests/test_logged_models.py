"""Kept checkpoints as logged models: nothing twice, nothing torn, and what a person deleted stays deleted."""

from pathlib import Path
from typing import Any

import pytest

from tests.faults.tracking_support import SCORES, all_runs, assert_complete, everything, publish, ranked_models, synced
from yt8m_assets.storage import ArtifactStore
from yt8m_assets.tracking import MlflowTracking, NullTracking
from yt8m_assets.tracking.models import LoggedModels


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "store"), tmp_path / "cache")


@pytest.fixture
def tracking(mlflow_uri: str, tmp_path: Path) -> MlflowTracking:
    return MlflowTracking(mlflow_uri, artifact_location=str(tmp_path / "artifacts"))


def test_they_are_there_while_the_training_runs(tracking: MlflowTracking, mlflow_uri: str):
    with tracking.run("tiny", kind="finetuning", model="tiny", tags={"recipe": "demo"}) as run:
        run.log_dataset("ratings", digest="e" * 64, source_uri="gs://b/r", context="holdout")
        run.log_metrics({"holdout/map_at_100000": 0.5}, 3)
        run.log_checkpoint("step-3", 3, {"holdout/map_at_100000": 0.5, "holdout/odd": float("nan")})
        run.flush()
        (model,) = ranked_models(mlflow_uri, "ratings", "e" * 36)
        run.log_checkpoint("step-3", 3, {"holdout/map_at_100000": 0.9})
    assert (model.name, model.model_type, model.params) == ("tiny-finetuning-step-3", "finetuning", {"step": "3"})
    assert (model.source_run_id, model.tags["recipe"]) == (run.run_id, "demo")
    (metric,) = model.metrics
    assert (metric.key, metric.value, metric.step, metric.dataset_name) == ("holdout/map_at_100000", 0.5, 3, "ratings")
    assert [m.metrics[0].value for m in ranked_models(mlflow_uri, "ratings", "e" * 36)] == [0.5]


def test_scores_on_unseen_data_are_tied_to_them(tracking: MlflowTracking, mlflow_uri: str):
    """An ensemble stands among the models of the trainings on the page of either data set."""
    scores = {"holdout/map_at_100000": 0.6, "test/map_at_100000": 0.7}
    for name, kind, of in (("leaderboard", "report", {}), ("tiny", "finetuning", {"model": "tiny"})):
        with tracking.run(name, kind=kind, **of) as run:
            run.log_dataset("ratings", digest="e" * 64, source_uri="gs://b/r", context="holdout")
            run.log_dataset("shards", digest="f" * 64, source_uri="gs://b/s", context="test")
            run.log_checkpoint("ensemble" if kind == "report" else "step-3", 0, scores)
            scores = {"holdout/map_at_100000": 0.5}
    names = [model.name for model in ranked_models(mlflow_uri, "ratings", "e" * 36)]
    assert names == ["leaderboard-ensemble", "tiny-finetuning-step-3"]
    unseen, _ = ranked_models(mlflow_uri, "shards", "f" * 36, "test/map_at_100000")
    measured = {metric.key: (metric.value, metric.dataset_name) for metric in unseen.metrics}
    assert measured == {"holdout/map_at_100000": (0.6, "ratings"), "test/map_at_100000": (0.7, "shards")}


def test_the_store_makes_the_same_ones_once(store: ArtifactStore, mlflow_uri: str, tmp_path: Path):
    publish(store, NullTracking(), range(4))
    assert synced(store, mlflow_uri, tmp_path) == {"made": 1}
    assert_complete(mlflow_uri, range(4))
    before = everything(mlflow_uri)
    assert synced(store, mlflow_uri, tmp_path) == {"complete": 1}
    assert everything(mlflow_uri) == before


@pytest.mark.parametrize("torn", ["create_logged_model", "log_outputs", "log_batch", "finalize_logged_model"])
def test_what_was_torn_is_completed(
    torn: str, store: ArtifactStore, tracking: MlflowTracking, mlflow_uri: str, tmp_path: Path, monkeypatch: Any
):
    """The connection is lost in the middle of making the second one, before or after the server has done its part."""
    from mlflow import MlflowClient

    publish(store, NullTracking(), range(4))
    for after in (True, False):
        with monkeypatch.context() as patch:
            calls, real = [], getattr(MlflowClient, torn)

            def lose(client: MlflowClient, *arguments: Any, calls=calls, real=real, after=after, **options: Any) -> Any:
                given = [*arguments, *options.values()]
                if torn != "log_batch" or any(getattr(m, "model_id", None) for each in given[1:2] for m in each):
                    calls.append(1)
                if len(calls) == 2 and not after:
                    raise ConnectionError("lost")
                answer = real(client, *arguments, **options)
                if len(calls) == 2 and after:
                    raise ConnectionError("lost")
                return answer

            patch.setattr(MlflowClient, torn, lose)
            with pytest.raises(ConnectionError):
                synced(store, mlflow_uri, tmp_path)
        assert synced(store, mlflow_uri, tmp_path) == {"completed": 1}
        assert_complete(mlflow_uri, range(4))
        client = MlflowClient(mlflow_uri)
        for run in all_runs(mlflow_uri):
            for model in ranked_models(mlflow_uri, "ratings", "e" * 36):
                client.delete_logged_model(model.model_id)
            client.delete_run(run.info.run_id)
        client.delete_registered_model("yt8m-tiny")
        break_token(store)


def break_token(store: ArtifactStore) -> None:
    """Give the artifact's run another token, so that the server does not know it."""
    for path in Path(store.root_uri).glob("finetuned_model/*/*/report/run.json"):
        text = path.read_text()
        token = text.split('"token": "')[1][:32]
        path.write_text(text.replace(token, token[::-1]))


def test_one_that_was_deleted_stays_deleted(store: ArtifactStore, mlflow_uri: str, tmp_path: Path):
    from mlflow import MlflowClient

    publish(store, NullTracking(), range(4))
    synced(store, mlflow_uri, tmp_path)
    last = ranked_models(mlflow_uri, "ratings", "e" * 36)[-1]
    MlflowClient(mlflow_uri).delete_logged_model(last.model_id)
    assert synced(store, mlflow_uri, tmp_path) == {"complete": 1}
    assert [m.name for m in ranked_models(mlflow_uri, "ratings", "e" * 36)] == [
        "tiny-finetuning-step-1",
        "tiny-finetuning-step-2",
    ]


def test_many_are_found_again(tracking: MlflowTracking, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch):
    """More than a page of them."""
    from mlflow import MlflowClient

    search = MlflowClient.search_logged_models
    monkeypatch.setattr(
        MlflowClient, "search_logged_models", lambda *a, **o: search(*a, **{**o, "max_results": len(SCORES) - 1})
    )
    with tracking.run("tiny", kind="finetuning", model="tiny") as run:
        for step, score in enumerate(SCORES):
            run.log_checkpoint(f"step-{step}", step, {"holdout/map_at_100000": score}, published=step == 0)
            run.flush()  # the first one is on the last page
        models = LoggedModels(tracking, str(run.run_id), run.record)
        first = models.published()
        assert first is not None
        assert (first.name, first.tags["published"]) == ("tiny-finetuning-step-0", "true")
        assert [models.push(entry) for entry in run.record.checkpoints] == [0, 0, 0]
