"""Commands about files: submissions and their score, shards, checkpoints, the timeline of a video."""

import json
import shutil
from pathlib import Path

import numpy as np

from tests.orchestration.conftest import Graph, Run
from yt8m_assets.stages.lineage import current_manifest
from yt8m_assets.stages.nodes import Node
from yt8m_assets.storage import ArtifactStore


def test_submission_commands(run: Run, graph: Graph, tmp_path: Path) -> None:
    source = graph.store.fetch(graph.store.require("submission")) / "submission.csv"
    state = graph.state.root
    code, out, _ = run("validate-submission", source, "--state", state)
    assert code == 0
    assert "valid, 4 classes" in out
    broken = tmp_path / "broken.csv"
    broken.write_text("".join(source.read_text().splitlines(keepends=True)[:-1]))
    code, out, _ = run("validate-submission", broken, "--state", state)
    assert code == 1
    assert "1 problems" in out
    code, _, error = run("validate-submission", tmp_path / "none.csv", "--state", state)
    assert code == 1
    assert "none.csv: no such file" in error


def test_score_submission(run: Run, graph: Graph, tmp_path: Path) -> None:
    """Of each class the first and third segment are right and the second is wrong: an AP of (1/1 + 2/3) / 2."""
    from yt8m_assets.stages.data import read_shards

    source = graph.store.fetch(graph.store.require("submission")) / "submission.csv"
    ranked = dict(line.split(",") for line in source.read_text().splitlines()[1:])
    rows = [
        f"{name},{class_id},{verdict}\n"
        for class_id, names in ranked.items()
        for name, verdict in zip(names.split(" ")[:3], (1, 0, 1), strict=True)
    ]
    ratings = tmp_path / "ratings.csv"
    ratings.write_text("".join(rows))
    code, out, error = run("score-submission", source, "--ratings", ratings, "--state", graph.state.root)
    assert (code, error) == (0, "")
    assert out.startswith("MAP@100000 0.833333 over 4 classes (95 % interval over videos 0.")
    assert out.count("\n") == 1
    truth = tmp_path / "truth.csv"
    truth.write_text("video_id,start,class_id,score\n" + "".join(row.replace(":", ",", 1) for row in rows))
    assert run("score-submission", source, "--ratings", truth, "--state", graph.state.root)[1] == out
    code, report_out, error = run("report", "--ratings", truth, "--state", graph.state.root)
    assert (code, error) == (0, "")
    assert "given MAP" in report_out
    assert "0.8333" in report_out
    page = graph.state.root / "reports" / graph.recipe.name / "leaderboard.html"
    assert str(page) in report_out
    assert "12 of truth.csv" in page.read_text()
    shard = read_shards(graph.recipe, graph.store, "segment_shards").uris(held_out=True)[0]
    code, _, error = run("score-submission", source, "--ratings", shard, "--state", graph.state.root)
    assert code == 1
    assert "the ratings are of other videos" in error
    short = tmp_path / "short.csv"
    short.write_text("".join(source.read_text().splitlines(keepends=True)[:-1]))
    out = run("score-submission", short, "--ratings", ratings, "--state", graph.state.root)[1]
    assert out.startswith("MAP@100000 0.625000 over 4 classes")
    assert f"1 classes with positive ratings are not in the file and count 0: {list(ranked)[-1]}\n" in out
    ratings.write_text("".join(rows[:3]) + rows[3].replace(",1\n", ",0\n") + rows[4])
    out = run("score-submission", source, "--ratings", ratings, "--state", graph.state.root)[1]
    assert out.startswith("MAP@100000 0.833333 over 1 classes")
    code, out, error = run("score-submission", source, "--ratings", tmp_path / "none.csv", "--state", graph.state.root)
    assert (code, out) == (1, "")
    assert "none.csv: no such file" in error
    ratings.write_text(rows[0] + "nonsense\n")
    code, _, error = run("score-submission", source, "--ratings", ratings, "--state", graph.state.root)
    assert code == 1
    assert "ratings.csv, line 2" in error


def test_timeline(run: Run, own_graph: Graph) -> None:
    """A picture and its numbers under the state folder, for a video of the test shards as well."""
    from yt8m_assets.data import read_shard
    from yt8m_assets.stages.data import read_shards

    state = own_graph.state.root
    video_id = next(iter(read_shard(read_shards(own_graph.recipe, own_graph.store, "test_shards").uris()[0]))).video_id
    code, out, error = run("timeline", video_id, "--models", "two", "--state", state)
    assert (code, error) == (0, "")
    picture = Path(out.strip())
    assert picture == state / "timelines" / video_id / "timeline.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    content = json.loads(picture.with_name("timeline.json").read_text())
    assert (content["video_id"], content["models"]) == (video_id, ["two"])
    assert all(len(row["probabilities"]) == content["seconds"] for row in content["classes"])
    for arguments, message in {
        ("nowhere",): "video 'nowhere' is neither in the segment shards nor in the test shards",
        (video_id, "--models", "three"): "unknown model 'three'",
        ("../outside",): "unsafe artifact name",
    }.items():
        code, out, error = run("timeline", *arguments, "--state", state)
        assert (code, out) == (1, "")
        assert message in error
    assert [path.name for path in (state / "timelines").iterdir()] == [video_id]


def test_inspect(run: Run, graph: Graph, tmp_path: Path) -> None:
    from tests.data.factory import frame_record
    from yt8m_assets.data.records.examples import encode_sequence_example
    from yt8m_assets.stages.data import read_shards

    uri = read_shards(graph.recipe, graph.store, "segment_shards").shards[0].uri
    code, out, _ = run("inspect", uri, "--state", tmp_path / "state")
    assert code == 0
    assert "rated segments" in out
    damaged = tmp_path / "damaged.tfrecord"
    shutil.copyfile(uri, damaged)
    content = bytearray(damaged.read_bytes())
    content[200] ^= 1
    damaged.write_bytes(content)
    code, out, _ = run("inspect", damaged, "--state", tmp_path / "state")
    assert code == 1
    assert "damaged.tfrecord: record 0" in out
    record = encode_sequence_example("abcd", np.zeros((3, 1152), np.uint8), [9999])
    (tmp_path / "outside.tfrecord").write_bytes(frame_record(record))
    code, out, _ = run("inspect", Path(uri).parent, tmp_path / "outside.tfrecord", "--state", tmp_path / "state")
    assert code == 1
    assert "labels of classes outside the vocabulary: 9999" in out


def test_import_checkpoint(run: Run, own_graph: Graph, tmp_path: Path) -> None:
    """Weights go out under the original's names and come back as a model of the recipe, bit for bit."""
    from models import export_tf_variables
    from yt8m_assets.stages.training import load_model

    store = own_graph.store
    variables = export_tf_variables(load_model(store, store.require("finetuned_model/one")))
    path = tmp_path / "weights.npz"
    np.savez(path, **variables)
    state = own_graph.state.root
    arguments = ("import-checkpoint", path, "--as", "finetuned", "--state", state)
    code, out, error = run(*arguments, "--model", "two")
    assert code == 0, error
    assert "finetuned_model/two" in out
    fresh = ArtifactStore(own_graph.settings.storage_uri)
    again = export_tf_variables(load_model(fresh, fresh.require("finetuned_model/two")))
    assert variables.keys() == again.keys()
    assert all(np.array_equal(variables[name], again[name]) for name in variables)
    np.savez(path, **dict(list(variables.items())[1:]))
    code, _, error = run(*arguments, "--model", "two")
    assert code == 1
    assert "weights.npz: " in error
    assert next(iter(variables)) in error
    path.write_bytes(b"not an archive")
    error = run(*arguments, "--model", "two")[2]
    assert "not an NPZ file" in error
    assert "allow_pickle" not in error
    index = tmp_path / "model.ckpt-9.index"
    index.write_bytes(b"not an archive")
    error = run("import-checkpoint", index, "--as", "finetuned", "--model", "two", "--state", state)[2]
    assert "model.ckpt-9.index: a part of a TensorFlow checkpoint; docs/import-checkpoint.md has the lines" in error
    np.savez(path, **variables)
    for asset in ("finetuned_model", "pretrained_model"):
        store.delete(f"{asset}/one")
    code, out, error = run(*arguments, "--model", "one")
    assert code == 0, error
    fresh = ArtifactStore(own_graph.settings.storage_uri)
    assert current_manifest(own_graph.recipe, fresh, Node("finetuned_model", "one")) is not None
    np.savez(path, x=np.array([object()], dtype=object), allow_pickle=True)
    assert "not an NPZ file" in run(*arguments, "--model", "two")[2]
