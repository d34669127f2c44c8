"""A state folder that is moved or copied stays current and works, and never touches the old place."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from orchestration.cli import main
from orchestration.instance import driver_instance
from orchestration.relocation import relocate_tracking
from orchestration.state import prepare_state
from tests.orchestration.conftest import Graph
from yt8m_assets.errors import StorageError
from yt8m_assets.stages.lineage import Lineage
from yt8m_assets.stages.nodes import ASSETS, nodes
from yt8m_assets.storage import ArtifactStore


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Name -> size and time of change of every file."""
    stats = {str(path.relative_to(folder)): path.stat() for path in folder.rglob("*") if path.is_file()}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


@pytest.mark.parametrize(
    "moved", [pytest.param(True, id="moved", marks=pytest.mark.slow), pytest.param(False, id="copied")]
)
def test_a_state_in_another_place_is_current_and_works(
    own_graph: Graph,
    tmp_path: Path,
    moved: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("DAGSTER_HOME", "")
    here, there = own_graph.state.root, tmp_path / "another place" / "state"
    prepare_state(here)  # its dagster.yaml is this folder's
    shutil.copytree(here, there)
    if moved:
        shutil.rmtree(here)
    before = snapshot(here)
    recipe = tmp_path / "recipe.py"
    recipe.write_text("from tests.tiny import tiny_recipe\nRECIPE = tiny_recipe()\n")
    options = ("--state", str(there), "--recipe", str(recipe))
    with caplog.at_level(logging.WARNING, "orchestration"):
        assert main(["materialize", *options]) == 0
    assert "recipe tiny: 0 made" in capsys.readouterr().err
    assert f"{here}/mlflow/artifacts; this state was moved or copied" in caplog.text
    lineage = Lineage(own_graph.recipe, ArtifactStore(str(there / "artifacts"), there / "cache"))
    assert all(lineage.current(node) for asset in ASSETS for node in nodes(own_graph.recipe, asset))
    assert main(["predict", "--shifts=2", "--models", "one", *options]) == 0
    if moved:
        lineage.store.delete("leaderboard")
        lineage.store.delete("finetuned_model/one")
        assert main(["materialize", *options]) == 0, "training, tracking and report work there"
    assert snapshot(here) == before, "nothing was written into the old place"
    client = MlflowClient(prepare_state(there).mlflow_database_uri)
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id]):
            place = str(run.info.artifact_uri)
            assert place.startswith((there / "mlflow" / "artifacts").as_uri()), place


def test_a_database_of_another_kind_of_place_is_left_alone(tmp_path: Path, migrated_database: Path) -> None:
    from mlflow import MlflowClient

    database = tmp_path / "mlflow.db"
    assert relocate_tracking(database, tmp_path / "mlflow" / "artifacts") == 0
    shutil.copyfile(migrated_database, database)
    client = MlflowClient(f"sqlite:///{database}")
    client.create_experiment("in a bucket", "gs://bucket/folder")
    client.create_experiment("somewhere", (tmp_path / "somewhere").as_uri())
    assert relocate_tracking(database, tmp_path / "mlflow" / "artifacts") == 0
    old = (tmp_path / "old" / "mlflow" / "artifacts").as_uri()
    number = client.create_experiment("ours", old)
    client.create_run(number)
    assert relocate_tracking(database, tmp_path / "mlflow" / "artifacts") == 2
    places = {e.name: e.artifact_location for e in MlflowClient(f"sqlite:///{database}").search_experiments()}
    assert places["ours"] == (tmp_path / "mlflow" / "artifacts").as_uri()
    assert places["in a bucket"] == "gs://bucket/folder"


def test_a_database_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    state = prepare_state(tmp_path / "state")
    database = state.root / "mlflow" / "mlflow.db"
    database.write_text("no database" * 100)
    with pytest.raises(
        StorageError, match=rf"{database}: file is not a database; stop `yt8m ui` where it runs, delete {database}"
    ):
        prepare_state(state.root)
    with pytest.raises(StorageError, match="gone: cannot write Dagster's records; choose another folder with --state"):
        driver_instance(replace(state, dagster_home=tmp_path / "gone"))
