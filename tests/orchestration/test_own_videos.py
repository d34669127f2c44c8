"""Labels per second for a video of one's own, by two commands."""

import csv
import json
from pathlib import Path

import numpy as np

from tests.data.dataset.test_imports import MEDIAPIPE, PATH, floats, foreign, write
from tests.orchestration.conftest import Graph, Run
from yt8m_assets.data.dataset.imports import legal_id


def test_two_commands_give_the_labels_of_every_second(run: Run, own_graph: Graph, tmp_path: Path) -> None:
    state, mine = own_graph.state.root, tmp_path / "mine"
    lists = dict(zip(MEDIAPIPE, (floats(9, 1024), floats(9, 128)), strict=True))
    uri = write(tmp_path / "a.tfrecord", foreign(PATH, lists, "clip/data_path"))
    code, out, error = run("import-features", uri, "--to", mine, "--state", state)
    assert code == 0, error
    assert f"{mine}: 1 videos, 9 seconds, 0 with labels" in out
    code, out, error = run("timeline", PATH, "--shards", mine, "--state", state)
    assert code == 0, error
    picture = Path(out.strip())
    assert picture == state / "timelines" / legal_id(PATH) / "timeline.png"
    content = json.loads(picture.with_name("timeline.json").read_text())
    with picture.with_name("timeline.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["second"]), int(row["place"])) for row in rows] == [(s, p) for s in range(9) for p in range(1, 5)]
    shown = {entry["class_id"]: entry for entry in content["classes"]}
    for row in rows:
        entry = shown[int(row["class_id"])]
        assert row["name"] == entry["name"]
        assert float(row["probability"]) == entry["probabilities"][int(row["second"])]
    by_second = np.array([float(row["probability"]) for row in rows]).reshape(9, 4)
    assert (np.diff(by_second, axis=1) <= 0).all()
    assert run("timeline", legal_id(PATH), "--shards", mine, "--state", state)[1] == out
    for arguments, message in (
        (("timeline", "nobody", "--shards", mine), f"video 'nobody' is not in the shards {mine}"),
        (("import-features", uri, "--to", mine), f"{mine}: holds an import already"),
        (("import-features", tmp_path / "none", "--to", tmp_path / "b"), "none"),
    ):
        code, _, error = run(*arguments, "--state", state)
        assert code == 1
        assert message in error
        assert error.count("\n") == 1
    code, out, _ = run("inspect", mine, "--state", state)
    assert code == 0
    assert "1" in out
