"""Prediction stages: cells from one pass over the data, published one by one; a model's fused ranking."""

import re
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch

from models.base import FrameModel
from tests.graph import QUIET, publish_untrained
from tests.memory_tracking import MemoryTracking
from yt8m_assets.data import read_shard, segment_windows
from yt8m_assets.data.dataset import memory
from yt8m_assets.errors import (
    ConfigError,
    DataError,
    MissingArtifactError,
    OutOfMemoryError,
    ParentMismatchError,
    TransientError,
    Yt8mError,
)
from yt8m_assets.prediction import device_topk, scoring
from yt8m_assets.prediction.blocks import SegmentIndex
from yt8m_assets.prediction.scoring import PassStatistics, score_videos
from yt8m_assets.ranking.files import read_ranking
from yt8m_assets.ranking.topk import StreamingTopK
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.data import read_segment_classes, read_shards
from yt8m_assets.stages.indexing import read_index
from yt8m_assets.stages.lineage import require_current, resolve_inputs
from yt8m_assets.stages.nodes import Node
from yt8m_assets.stages.prediction import count_segments, predict_cells, run_name
from yt8m_assets.stages.ranking import rank_model
from yt8m_assets.stages.training import load_model
from yt8m_assets.storage import ArtifactStore, Manifest
from yt8m_assets.tracking import NullTracking

Graph = tuple[Recipe, ArtifactStore]


def predict(graph: Graph, split: str, cells: list[tuple[str, int]], **options):
    recipe, store = graph
    options.setdefault("tracking", NullTracking())
    return predict_cells(recipe, store, split, cells, progress=QUIET, **options)


def plain_scores(graph: Graph, key: str, shift: int) -> dict[str, np.ndarray]:
    """Scores of the held-out segments by the slow road: read, cut, normalise, full head, one video at a time."""
    recipe, store = graph
    model = load_model(store, store.require(f"finetuned_model/{key}"))
    classes = read_segment_classes(recipe, store)
    scores = {}
    for uri in read_shards(recipe, store, "segment_shards").uris(held_out=True):
        for video in read_shard(uri):
            windows, starts, num_frames = segment_windows(video.frames, shift, recipe.prediction.edges)
            norms = np.sqrt(np.maximum((windows**2).sum(-1, keepdims=True), 1e-12))
            with torch.no_grad():
                out = model(torch.from_numpy(windows / norms), torch.from_numpy(num_frames))
            for start, row in zip(starts.tolist(), out.probabilities.numpy(), strict=True):
                scores[f"{video.video_id}:{start}"] = row[classes]
    return scores


@pytest.mark.parametrize("shift", [-2, 0, 1])
def test_a_cell_ranks_what_the_plain_computation_scores(graph: Graph, shift: int):
    recipe, store = graph
    (result,) = predict(graph, "oof", [("two", shift)])
    ranking = read_ranking(store.fetch(result.manifest))
    expected = plain_scores(graph, "two", shift)
    names = ranking.segments.ids()
    assert sorted(names.tolist()) == sorted(expected)
    classes = read_segment_classes(recipe, store)
    assert ranking.class_ids.tolist() == sorted(classes.tolist())
    for class_id in ranking.class_ids.tolist():
        segment, score = ranking.entries(class_id)
        column = classes.tolist().index(class_id)
        np.testing.assert_allclose(score, [expected[name][column] for name in names[segment]], atol=1e-6)
        assert (np.diff(score) <= 0).all()


def test_cells_of_one_run_equal_cells_of_their_own(graph: Graph, monkeypatch: pytest.MonkeyPatch):
    from yt8m_assets.data.dataset.memory import MemoryVideos

    reads: list[int] = []
    read = MemoryVideos.read
    monkeypatch.setattr(MemoryVideos, "read", lambda self, number: (reads.append(number), read(self, number))[1])
    cells = [("one", 0), ("two", 1), ("two", -1), ("one", 2)]
    together = predict(graph, "oof", cells)
    num_videos = read_shards(*graph, "segment_shards").total("num_videos", held_out=True)
    assert len(reads) == num_videos, "each video is read once for all cells"
    for cell in cells:
        graph[1].delete(Node("oof_predictions", *cell).key)
    apart = [predict(graph, "oof", [cell])[0] for cell in cells]
    assert len({result.manifest.digest for result in together}) == len(cells)
    assert [result.manifest.digest for result in apart] == [result.manifest.digest for result in together]


def test_f31_current_cells_are_left_alone_and_a_redo_gives_the_same_bytes(graph: Graph):
    cells = [("one", 0), ("one", 1)]
    heard: list[tuple[tuple[str, int], bool]] = []
    first = predict(graph, "test", cells, on_published=lambda cell, result: heard.append((cell, result.reused)))
    again = predict(graph, "test", cells, on_published=lambda cell, result: heard.append((cell, result.reused)))
    assert heard == [(cell, False) for cell in cells] + [(cell, True) for cell in cells]
    assert [result.manifest.generation for result in again] == [1, 1]
    graph[1].delete("test_predictions/one")
    redone = predict(graph, "test", cells)
    assert [r.manifest.digest for r in redone] == [r.manifest.digest for r in first]


def test_lists_on_a_device_publish_the_same_bytes(graph: Graph, monkeypatch: pytest.MonkeyPatch):
    cells = [("one", 0), ("one", 1)]
    first = predict(graph, "test", cells)
    graph[1].delete("test_predictions/one")
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(device_topk, "has_room", lambda *needs: asked.append(needs) or True)
    monkeypatch.setattr(StreamingTopK, "update", None)
    redone = predict(graph, "test", cells)
    assert [r.manifest.digest for r in redone] == [r.manifest.digest for r in first]
    num_segments = first[0].manifest.metadata["num_segments"]
    assert asked == [(torch.device("cpu"), 2, 4, min(graph[0].prediction.top_k, num_segments), num_segments)]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[PassStatistics]:
    """What each pass over the data gave."""
    seen = []
    monkeypatch.setattr(scoring, "score_videos", lambda *a, **o: (seen.append(score_videos(*a, **o)), seen[-1])[1])
    return seen


def test_metadata_and_tracking_say_what_a_person_asks(graph: Graph, passes: list[PassStatistics]):
    tracking = MemoryTracking()
    (result,) = predict(graph, "oof", [("two", 1)], tracking=tracking, run_tags={"dagster_run_id": "abc"})
    tags = tracking.runs[0].tags
    assert (tags["dagster_run_id"], tags["asset"]) == ("abc", "oof_predictions")
    assert tags["fingerprint"] == f"two+1={result.manifest.fingerprint[:16]}"
    metadata = result.manifest.metadata
    assert 0.0 < metadata["map_at_100000"] <= 1.0
    assert 0.0 <= metadata["score_min"] < metadata["score_max"] <= 1.0
    assert metadata["num_windows_past_end"] > 0, "videos of 15 to 20 seconds end inside a segment"
    assert metadata["segments_per_second"] == passes[0].num_segments / passes[0].seconds > 0
    assert tracking.runs[0].series("prediction/segments_per_second") == [(0, metadata["segments_per_second"])]
    assert metadata["mlflow_run_id"] == tracking.runs[0].run_id
    assert tracking.runs[0].name == "oof predictions: two x 1"
    shards = graph[1].require("segment_shards").digest
    assert [(each["name"], each["digest"], each["context"]) for each in tracking.runs[0].datasets] == [
        ("segment_shards", shards, "holdout")
    ]
    assert tags["parent.segment_shards"] == shards
    assert tags["parent.finetuned_model/two"] == graph[1].require("finetuned_model/two").digest
    assert tracking.runs[0].series("oof/map_at_100000/two/shift 1") == [(0, metadata["map_at_100000"])]


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([("two", 1)], "oof predictions: two x 1"),
        ([("two", 1), ("two", -1), ("two", 0)], "oof predictions: two x -1..1"),
        ([("two", 2), ("two", -1)], "oof predictions: two x -1, 2"),
        ([("two", 2), ("one", -1), ("two", 1)], "oof predictions: 2 models, 3 cells"),
    ],
)
def test_a_run_is_called_by_its_models_and_cells(cells: list[tuple[str, int]], expected: str):
    assert run_name("oof", cells) == expected


def test_trimmed_segments_rank_last(graph: Graph):
    recipe, store = graph
    recipe = replace(recipe, prediction=replace(recipe.prediction, trim_start=1, trim_end=1))
    (result,) = predict((recipe, store), "oof", [("one", 0)])
    ranking = read_ranking(store.fetch(result.manifest))
    lengths = np.bincount(ranking.segments.video)
    place = np.arange(len(ranking.segments)) - np.concatenate([[0], np.cumsum(lengths)])[ranking.segments.video]
    edge = (place == 0) | (place == lengths[ranking.segments.video] - 1)
    for _, segment, _ in ranking:
        ranked = edge[segment]
        assert ranked.any()
        assert (np.diff(ranked.astype(int)) >= 0).all(), "no edge segment stands before an inner one"


def test_top_k_cuts_the_lists(graph: Graph):
    recipe, store = graph
    recipe = replace(recipe, prediction=replace(recipe.prediction, top_k=5))
    (result,) = predict((recipe, store), "test", [("one", 0)])
    assert all(len(segment) == 5 for _, segment, _ in read_ranking(store.fetch(result.manifest)))


def test_bfloat16_ranks_nearly_alike(graph: Graph, monkeypatch: pytest.MonkeyPatch):
    """Linear weights are then held in it, so that they are not converted at every call."""
    held = []
    hold = FrameModel.hold_linear_weights
    monkeypatch.setattr(FrameModel, "hold_linear_weights", lambda self, dtype: (held.append(dtype), hold(self, dtype)))
    recipe, store = graph
    (exact,) = predict(graph, "oof", [("one", 0)])
    assert held == []
    recipe = replace(recipe, prediction=replace(recipe.prediction, precision="bfloat16"))
    (fast,) = predict((recipe, store), "oof", [("one", 0)])
    assert held == [torch.bfloat16]
    a, b = read_ranking(store.fetch(exact.manifest)), read_ranking(store.fetch(fast.manifest))
    for class_id in a.class_ids.tolist():
        (segment_a, score_a), (segment_b, score_b) = a.entries(class_id), b.entries(class_id)
        np.testing.assert_allclose(
            score_a[np.argsort(segment_a)], score_b[np.argsort(segment_b)], atol=0.02, err_msg=str(class_id)
        )


def test_a_run_whose_cells_all_failed_is_failed(graph: Graph):
    """Another process writes the only cell."""
    recipe, store = graph
    node, tracking = Node("oof_predictions", "one", 0), MemoryTracking()
    arguments = resolve_inputs(recipe, store, node).publish_arguments()
    with pytest.raises(RuntimeError, match="over"), store.publish(node.key, **arguments):
        with pytest.raises(Yt8mError, match="another run"):
            predict((recipe, ArtifactStore(store.root_uri)), "oof", [("one", 0)], tracking=tracking)
        raise RuntimeError("over")
    assert tracking.runs[0].status == "FAILED"
    assert tracking.runs[0].tags["failed_cells"] == node.key


def test_a_model_that_does_not_load_costs_its_cells_and_nothing_is_read_for_none(
    graph: Graph, passes: list[PassStatistics], monkeypatch: pytest.MonkeyPatch
):
    from yt8m_assets.stages import training

    def refuse_one(store: ArtifactStore, manifest: Manifest, device: torch.device):
        if manifest.key == "finetuned_model/one":
            raise DataError("no such layer")
        return load_model(store, manifest, device)

    monkeypatch.setattr(training, "load_model", refuse_one)
    tracking = MemoryTracking()
    with pytest.raises(DataError, match="no such layer"):
        predict(graph, "oof", [("one", 0), ("one", 1)], tracking=tracking)
    assert (passes, tracking.runs[0].metrics, tracking.runs[0].status) == ([], [], "FAILED")
    with pytest.raises(DataError, match="no such layer"):
        predict(graph, "oof", [("one", 0), ("two", 0)], tracking=tracking)
    assert (len(passes), tracking.runs[1].status) == (1, "FINISHED")
    assert tracking.runs[1].tags["failed_cells"] == "oof_predictions/one/shift+0"
    assert graph[1].manifest("oof_predictions/two/shift+0") is not None


def test_a_model_whose_lists_have_no_room_on_the_device_ends_alone(graph: Graph, monkeypatch: pytest.MonkeyPatch):
    made: list[int] = []

    class Full(device_topk.DeviceTopK):
        def __init__(self, *arguments: object) -> None:
            made.append(1)
            if len(made) == 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.12 GiB")
            super().__init__(*arguments)

    monkeypatch.setattr(device_topk, "has_room", lambda *_: True)
    monkeypatch.setattr(device_topk, "DeviceTopK", Full)
    with pytest.raises(OutOfMemoryError, match=r"setting one up \(CUDA out of memory.*predict fewer cells in one run"):
        predict(graph, "oof", [("one", 0), ("one", 1), ("two", 0)])
    assert graph[1].manifest("oof_predictions/two/shift+0") is not None


def test_of_several_errors_the_one_that_may_pass_decides(graph: Graph, monkeypatch: pytest.MonkeyPatch):
    """A second try makes its cells; those of the other end at once again."""
    from yt8m_assets.stages import training

    errors = {"one": DataError("no such layer"), "two": TransientError("come back later")}

    def refuse(store: ArtifactStore, manifest: Manifest, device: torch.device):
        raise errors[manifest.key.rsplit("/", 1)[-1]]

    monkeypatch.setattr(training, "load_model", refuse)
    with pytest.raises(TransientError, match="come back later") as caught:
        predict(graph, "oof", [("one", 0), ("two", 0)])
    (note,) = caught.value.__notes__
    assert "oof_predictions/one/shift+0: DataError: no such layer" in note
    assert "published: nothing" in note


def test_a_failing_cell_leaves_the_others_published(graph: Graph):
    recipe, store = graph
    manifest = store.require("finetuned_model/one")
    path = store.fetch(manifest) / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    fresh = ArtifactStore(store.root_uri)  # this one has verified the file before it was damaged
    tracking = MemoryTracking()
    with pytest.raises(ParentMismatchError, match=r"finetuned_model/one: .*weights\.safetensors: sha256") as caught:
        predict((recipe, fresh), "oof", [("one", 0), ("two", 0)], tracking=tracking)
    assert tracking.runs[0].tags["failed_cells"] == "oof_predictions/one/shift+0"
    assert tracking.runs[0].status == "FINISHED"
    assert "oof_predictions/two/shift+0" in caught.value.__notes__[0]
    assert store.manifest("oof_predictions/two/shift+0") is not None
    assert store.manifest("oof_predictions/one/shift+0") is None


def test_a_hold_out_without_a_positive_gives_rankings_without_a_map(graph: Graph):
    """Each class that is rated has negatives alone: no MAP, and no number that is none either."""
    recipe, store = graph
    node = Node("holdout_ratings")
    ratings = (store.fetch(store.require(node.key)) / "ratings.csv").read_text()
    arguments = resolve_inputs(recipe, store, node).publish_arguments()
    with store.publish(node.key, **arguments) as publication:
        (publication.path / "ratings.csv").write_text(re.sub(r",1(\.0)?$", ",0", ratings, flags=re.MULTILINE))
    publish_untrained(recipe, store, "one", seed=0)
    tracking = MemoryTracking()
    results = predict(graph, "oof", [("one", shift) for shift in (0, 1)], tracking=tracking)
    assert all("map_at_100000" not in result.manifest.metadata for result in results)
    assert [name for name, _, _ in tracking.runs[0].metrics] == ["prediction/segments_per_second"]
    fused = rank_model(recipe, store, "oof", "one", progress=QUIET)
    assert not {"map_at_100000", "map_without_tta", "gain_of_tta"} & set(fused.manifest.metadata)


def test_a_new_checkpoint_redoes_its_cells_only(graph: Graph):
    predict(graph, "oof", [("one", 0), ("two", 0)])
    publish_untrained(*graph, "two", seed=9)
    assert [result.reused for result in predict(graph, "oof", [("one", 0), ("two", 0)])] == [True, False]


@pytest.mark.parametrize(("cell", "text"), [(("three", 0), "unknown model 'three'"), (("one", 5), "shift 5")])
def test_unknown_cells_are_refused_by_name(graph: Graph, cell: tuple[str, int], text: str):
    with pytest.raises(ConfigError, match=text):
        predict(graph, "oof", [cell])


def test_a_missing_model_is_named(graph: Graph):
    graph[1].delete("finetuned_model/one")
    with pytest.raises(MissingArtifactError, match="finetuned_model/one"):
        predict(graph, "oof", [("one", 0)])


def test_rank_model_fuses_the_models_own_shifts(graph: Graph):
    from yt8m_assets.ensemble import fuse_rankings

    recipe, store = graph
    cells = [("two", shift) for shift in (-1, 0, 1, 2)]
    results = predict(graph, "oof", cells)
    fused = rank_model(recipe, store, "oof", "two", progress=QUIET)
    assert rank_model(recipe, store, "oof", "two", progress=QUIET).reused
    lists = [read_ranking(store.fetch(result.manifest)).to_dict() for result in results[:3]]
    expected = fuse_rankings(lists, [1, 1, 1], recipe.prediction.tta_w0)
    assert read_ranking(store.fetch(fused.manifest)).to_dict() == expected
    metadata = fused.manifest.metadata
    assert metadata["map_without_tta"] == results[1].manifest.metadata["map_at_100000"]
    assert metadata["gain_of_tta"] == pytest.approx(metadata["map_at_100000"] - metadata["map_without_tta"])


def test_a_pass_that_will_not_fit_into_memory_does_not_start(graph: Graph, monkeypatch: pytest.MonkeyPatch):
    """It is known before a video is read or a model loaded."""
    free = psutil.virtual_memory()._replace(available=1)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    monkeypatch.setattr(memory, "load_videos", None)
    with pytest.raises(OutOfMemoryError, match=r"of 2 cells take up to .* predict fewer cells in one run, about 1"):
        predict(graph, "test", [("one", 0), ("two", 0)])
    assert graph[1].manifest(Node("test_predictions", "one", 0).key) is None


def test_segments_are_counted_as_a_pass_finds_them(graph: Graph):
    recipe, store = graph[:2]
    for asset, held_out in (("segment_shards", True), ("test_shards", None)):
        manifest = require_current(recipe, store, Node(asset))
        shards = read_index(store, manifest, read_shards(recipe, store, manifest), held_out=held_out)
        for max_frames in (recipe.data.max_frames, 7):
            cut = memory.load_videos(shards, replace(recipe.data.reading(store.cache), max_frames=max_frames))
            assert count_segments(shards, max_frames) == len(SegmentIndex.of(cut).segments)
