"""Rows F28-F31 of RELIABILITY.md: rankings are made from the whole, from one parent, and by one run."""

import multiprocessing
from pathlib import Path

import pytest

from tests.graph import QUIET, publish_untrained
from yt8m_assets.errors import MissingArtifactError, ParentMismatchError, PartitionBusyError
from yt8m_assets.stages.prediction import predict_cells
from yt8m_assets.stages.ranking import rank_model
from yt8m_assets.storage import ArtifactStore
from yt8m_assets.tracking import NullTracking


def test_f28_missing_shifts_are_listed(graph):
    recipe, store = graph
    predict_cells(recipe, store, "oof", [("two", 0)], tracking=NullTracking(), progress=QUIET)
    with pytest.raises(MissingArtifactError) as caught:
        rank_model(recipe, store, "oof", "two", progress=QUIET)
    assert "oof_predictions/two/shift-1, oof_predictions/two/shift+1" in str(caught.value)
    assert "oof_predictions/two/shift+0" not in str(caught.value)
    assert store.manifest("oof_ranking/two") is None


def test_f29_shifts_of_different_checkpoints_are_refused(graph):
    recipe, store = graph
    predict_cells(recipe, store, "oof", [("two", -1), ("two", 0)], tracking=NullTracking(), progress=QUIET)
    publish_untrained(recipe, store, "two", seed=9)
    predict_cells(recipe, store, "oof", [("two", 1)], tracking=NullTracking(), progress=QUIET)
    with pytest.raises(ParentMismatchError) as caught:
        rank_model(recipe, store, "oof", "two", progress=QUIET)
    for shift in ("-1", "+0"):
        assert f"oof_predictions/two/shift{shift}: finetuned_model/two has other content: " in str(caught.value)
    assert "oof_predictions/two/shift+1" not in str(caught.value)
    assert store.manifest("oof_ranking/two") is None


def _publish_round(number: int, root: str, rounds: int, barrier, outcomes) -> None:
    """Publish the same cell as another process, again and again, from a result computed beforehand."""
    from tests.tiny import tiny_recipe
    from yt8m_assets.stages.lineage import resolve_inputs
    from yt8m_assets.stages.nodes import Node
    from yt8m_assets.stages.ranking import publish_ranking

    store, recipe = ArtifactStore(root), tiny_recipe()
    node = Node("oof_predictions", "one", 0)
    inputs = resolve_inputs(recipe, store, node)

    def write(folder: Path) -> None:
        for name in ("ranking.parquet", "segments.parquet"):
            (folder / name).write_text(f"{name} by {number}")

    for _ in range(rounds):
        barrier.wait()
        try:
            reused = publish_ranking(store, inputs, write, {}).reused
            outcomes.put("reused" if reused else f"published {number}")
        except PartitionBusyError:
            outcomes.put("busy")
        barrier.wait()  # the reader looks here
        barrier.wait()


@pytest.mark.parametrize("rounds", [12, pytest.param(50, marks=pytest.mark.slow)])
def test_f30_two_runs_of_one_cell_end_with_one_whole_result(graph, rounds: int):
    _, store = graph
    context = multiprocessing.get_context("spawn")
    barrier, outcomes = context.Barrier(3), context.Queue()
    arguments = [(number, store.root_uri, rounds, barrier, outcomes) for number in range(2)]
    processes = [context.Process(target=_publish_round, args=argument) for argument in arguments]
    for process in processes:
        process.start()
    for _ in range(rounds):
        barrier.wait(60)
        barrier.wait(60)
        found = sorted(outcomes.get(timeout=60) for _ in range(2))
        published = [outcome for outcome in found if outcome.startswith("published")]
        assert len(published) == 1, found
        manifest = store.require("oof_predictions/one/shift+0")
        assert manifest.generation == 1
        folder = store.fetch(manifest)
        assert (folder / "ranking.parquet").read_text() == f"ranking.parquet by {published[0][-1]}"
        assert (folder / "segments.parquet").read_text() == f"segments.parquet by {published[0][-1]}"
        store.delete("oof_predictions/one/shift+0")
        barrier.wait(60)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0


def test_f31_an_unchanged_ranking_is_not_redone(graph):
    recipe, store = graph
    cells = [("one", 0), ("one", 1)]
    predict_cells(recipe, store, "oof", cells, tracking=NullTracking(), progress=QUIET)
    first = rank_model(recipe, store, "oof", "one", progress=QUIET)
    predict_cells(recipe, store, "oof", cells, tracking=NullTracking(), progress=QUIET)
    assert rank_model(recipe, store, "oof", "one", progress=QUIET).reused
    store.delete("oof_ranking/one")
    assert rank_model(recipe, store, "oof", "one", progress=QUIET).manifest.digest == first.manifest.digest
