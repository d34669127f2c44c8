"""Several ranks train like one; gloo on the CPU."""

import io
import os
import queue
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.faults.test_training import StopAt
from tests.memory_tracking import MemoryTracking
from tests.training.support import BERT, MIX, make_recipe, open_store, prepare_store
from yt8m_assets.errors import NonFiniteError, WorkerCrashError
from yt8m_assets.progress import NullProgress, PlainProgress
from yt8m_assets.recipes.schema import ModelRecipe
from yt8m_assets.stages.training import finetune, pretrain
from yt8m_assets.training.distributed import Relay, RelayRun, relayed, run_on_ranks
from yt8m_assets.training.interruption import TrainingPreempted

EXACT = replace(BERT, overrides={**BERT.overrides, "dropout": 0.0})
MIX_EXACT = replace(MIX, overrides={**MIX.overrides, "dropout": 0.0})


def on_ranks(model: ModelRecipe, num_processes: int, **changes: Any) -> ModelRecipe:
    return replace(
        model,
        pretraining=replace(model.pretraining, num_processes=num_processes, **changes),
        finetuning=replace(model.finetuning, num_processes=num_processes, **changes),
    )


def run(stage: Any, folder: Path, shards: Path, model: ModelRecipe, tracking: Any = None) -> Any:
    recipe = make_recipe(shards, model)
    store = open_store(folder) if (folder / "artifacts").exists() else prepare_store(folder, recipe)
    tracking = tracking or MemoryTracking()
    return stage(recipe, store, model.key, tracking=tracking, progress=NullProgress(), run_tags={})


def losses(tracking: MemoryTracking) -> list[float]:
    return [value for _, value in tracking.runs[-1].series("train/loss")]


def assert_close(found: list[float], expected: list[float]) -> None:
    assert len(found) == len(expected)
    assert found == pytest.approx(expected, rel=1e-5)


def test_two_ranks_give_the_loss_curve_of_one(tmp_path: Path, shards: Path) -> None:
    curves = {}
    for size in (1, 2):
        tracking = MemoryTracking()
        result = run(pretrain, tmp_path / str(size), shards, on_ranks(EXACT, size), tracking)
        curves[size] = losses(tracking)
        assert result.manifest.metadata["steps"] == 12
        assert len(tracking.runs) == 1
    assert_close(curves[2], curves[1])


@pytest.mark.slow
def test_batch_norm_sampling_and_both_stages_agree_over_ranks(tmp_path: Path, shards: Path) -> None:
    curves: dict[int, list[float]] = {}
    maps = {}
    for size in (1, 2):
        curves[size] = []
        for stage in (pretrain, finetune):
            tracking = MemoryTracking()
            result = run(stage, tmp_path / str(size), shards, on_ranks(MIX_EXACT, size, sync_batchnorm=True), tracking)
            curves[size] += losses(tracking)
        maps[size] = result.manifest.metadata["map"]
    assert_close(curves[2], curves[1])
    assert maps[2] == pytest.approx(maps[1], abs=1e-3)


@pytest.mark.slow
def test_pre_training_on_ranks_is_scored_by_one_of_them_like_that_of_one_process(tmp_path: Path, shards: Path) -> None:
    found = {}
    for size in (1, 2):
        model, tracking = on_ranks(EXACT, size, evaluate_every=4), MemoryTracking()
        recipe = make_recipe(shards, model, holds_out_labels=True)
        store = prepare_store(tmp_path / str(size), recipe)
        manifest = pretrain(recipe, store, "bert", tracking=tracking, progress=NullProgress(), run_tags={}).manifest
        found[size] = [manifest.metadata[name] for name in ("gap_at_20", "perr", "hit_at_1", "map_at_20")]
        assert [step for step, _ in tracking.runs[-1].series("holdout/gap_at_20")] == [4, 8, 12]
    assert found[2] == pytest.approx(found[1], abs=1e-3)


def newest_rank() -> Any:
    """The process of the last rank: they are started in order."""
    import psutil

    ranks = [p for p in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]
    return max(ranks, key=lambda process: (process.create_time(), process.pid))


@pytest.mark.slow
def test_a_lost_rank_ends_the_job_and_the_rerun_resumes_with_another_number(tmp_path: Path, shards: Path) -> None:
    model = on_ranks(EXACT, 2, num_steps=400, log_every=1)
    killed: list[float] = []
    saved: list[int] = []

    def kill_a_rank() -> None:
        store = open_store(tmp_path)
        while not saved:
            time.sleep(0.05)
            saved.extend(int(key.rsplit("-", 1)[-1]) for key in store.list_keys("checkpoints/pretrained_model/bert"))
        killed.append(time.monotonic())
        newest_rank().kill()

    prepare_store(tmp_path, make_recipe(shards, model))
    killer = threading.Thread(target=kill_a_rank)
    killer.start()
    with pytest.raises(WorkerCrashError, match="rank 1 of 2 died with signal 9"):
        run(pretrain, tmp_path, shards, model)
    killer.join()
    assert time.monotonic() - killed[0] < 20
    tracking = MemoryTracking()
    result = run(pretrain, tmp_path, shards, on_ranks(EXACT, 1, num_steps=400, log_every=1), tracking)
    resumed = result.manifest.metadata["resumed_from_step"]
    assert resumed >= max(saved) > 0
    whole = MemoryTracking()
    run(pretrain, tmp_path / "whole", shards, on_ranks(EXACT, 1, num_steps=400, log_every=1), whole)
    assert losses(tracking) == pytest.approx(losses(whole), rel=1e-3)


@pytest.mark.slow
def test_a_run_of_one_process_is_continued_by_two(tmp_path: Path, shards: Path) -> None:
    tracking = StopAt(7)
    with pytest.raises(TrainingPreempted, match="after step 7"):
        run(pretrain, tmp_path, shards, on_ranks(EXACT, 1), tracking)
    result = run(pretrain, tmp_path, shards, on_ranks(EXACT, 2), tracking)
    assert result.manifest.metadata["resumed_from_step"] == 7
    whole = MemoryTracking()
    run(pretrain, tmp_path / "whole", shards, on_ranks(EXACT, 1), whole)
    assert_close(losses(tracking), losses(whole))


@pytest.mark.slow
@pytest.mark.parametrize("whole", [True, False], ids=["the run", "one rank"])
def test_sigterm_saves_on_all_ranks_and_they_end_by_themselves(
    tmp_path: Path, shards: Path, whole: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Those that do not are killed after 30 seconds, which is all that a preempted machine has."""
    model = on_ranks(EXACT, 2, num_steps=400)
    store = prepare_store(tmp_path, make_recipe(shards, model))

    def terminate() -> None:
        while not store.list_keys("checkpoints/pretrained_model/bert"):
            time.sleep(0.05)
        os.kill(os.getpid() if whole else newest_rank().pid, signal.SIGTERM)

    killer = threading.Thread(target=terminate)
    killer.start()
    with pytest.raises(TrainingPreempted) as caught:
        run(pretrain, tmp_path, shards, model)
    killer.join()
    assert "forcefully exiting" not in caplog.text
    assert not any(record.exc_info for record in caplog.records)
    assert 5 <= caught.value.step < 400
    assert store.list_keys("checkpoints/pretrained_model/bert")[-1].endswith(f"step-{caught.value.step:08d}")


@pytest.mark.slow
def test_the_ranks_own_error_comes_through(tmp_path: Path, shards: Path) -> None:
    with pytest.raises(NonFiniteError, match="videos of the batch"):
        run(pretrain, tmp_path, shards, on_ranks(EXACT, 2, learning_rate=1e38, clip="none"))


def test_what_rank_0_tracks_and_shows_arrives() -> None:
    events: queue.Queue[Any] = queue.Queue()
    stream, tracking = io.StringIO(), MemoryTracking()
    with (
        tracking.run("run", kind="pretraining") as tracked,
        PlainProgress(stream).task("train", total=12) as task,
        relayed(events, tracked, task) as errors,
    ):
        sent = Relay(events, "task")
        sent.resume(9)
        sent.advance(2)
        sent.update(loss=0.5)
        RelayRun(events, tracked.state()).log_metrics({"train/loss": 0.5}, 11)
        events.put(ValueError("of a rank"))
    assert stream.getvalue() == "train: 11 it, 2 of them in 0 s  loss 0.5\n"
    assert tracking.runs[0].series("train/loss") == [(11, 0.5)]
    assert [str(error) for error in errors] == ["of a rank"]


@pytest.mark.parametrize(
    ("sent", "exit_code", "error", "words"),
    [
        (NonFiniteError("loss is nan"), 1, NonFiniteError, "loss is nan"),
        (None, -9, WorkerCrashError, "rank 1 of 2 died with signal 9; run again to continue"),
        (ValueError("odd"), 3, WorkerCrashError, r"rank 1 of 2 died with exit code 3: ValueError\('odd'\); run again"),
    ],
)
def test_what_ended_a_rank_is_raised_as_it_is_if_it_is_one_of_ours(
    sent: Exception | None, exit_code: int, error: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
    from torch.distributed.launcher import api

    def launch(config: Any, entry: Any) -> Any:
        def failing(work: Any, events: Any, run_id: Any, num_threads: int) -> None:
            if sent is not None:
                events.put(sent)
            raise ChildFailedError("rank", {1: ProcessFailure(1, 99, exit_code, "")})

        assert config.nproc_per_node == 2
        return failing

    monkeypatch.setattr(api, "elastic_launch", launch)
    with (
        MemoryTracking().run("run", kind="pretraining") as tracked,
        NullProgress().task("train") as task,
        pytest.raises(error, match=words),
    ):
        run_on_ranks(dict, 2, tracked=tracked, task=task, saved_step=lambda: 0)
