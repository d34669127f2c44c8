"""The whole graph with its artifacts in a bucket: `YT8M_STORAGE=gs://...`, real gcsfs, an emulated Cloud Storage."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestration.driver import Outcome, open_driver
from orchestration.settings import Settings
from orchestration.state import State, prepare_state
from tests.emulator import storage_emulator
from tests.tiny import tiny_recipe
from yt8m_assets.progress import NullProgress
from yt8m_assets.recipes import load_recipe
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.storage import ArtifactStore
from yt8m_assets.submission import validate_submission

logger = logging.getLogger(__name__)
ROOT = Path(__file__).parents[2]
RECIPE = tiny_recipe().with_models(("one",))


def problems(store: ArtifactStore) -> list[str]:
    """What is wrong with the submission in the store."""
    classes = (store.fetch(store.require("segment_shards")) / "segment_label_ids.csv").read_text().split()[1:]
    submission = store.fetch(store.require("submission")) / "submission.csv"
    return [str(problem) for problem in validate_submission(submission, [int(text) for text in classes])]


def everything(store: ArtifactStore, recipe: Recipe) -> dict[str, tuple[int, str]]:
    """Key -> generation and digest of the artifacts with files of people's interest; each file is checked."""
    keys = ["submission", "leaderboard", "ensemble_weights"]
    keys += [
        f"{asset}/{key}" for asset in ("finetuned_model", "oof_ranking", "test_ranking") for key in recipe.model_keys
    ]
    manifests = [store.require(key) for key in keys]
    for manifest in manifests:
        store.fetch(manifest)
    return {manifest.key: (manifest.generation, manifest.digest) for manifest in manifests}


@pytest.fixture
def machine(
    tmp_path: Path, emulator: str, migrated_database: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[State, Settings]:
    """A machine with an empty disk, and settings that name a folder of the bucket."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator)
    monkeypatch.setenv("DAGSTER_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    return prepare_machine(tmp_path / "first", f"gs://yt/{tmp_path.name}", migrated_database)


def prepare_machine(folder: Path, storage_uri: str, migrated_database: Path) -> tuple[State, Settings]:
    state = prepare_state(folder)
    shutil.copyfile(migrated_database, state.root / "mlflow" / "mlflow.db")
    return state, Settings.from_environment(state, {"YT8M_STORAGE": storage_uri})


def materialize(machine: tuple[State, Settings], until: str | None = None) -> Outcome:
    with open_driver(RECIPE, *machine, NullProgress()) as driver:
        return driver.materialize(until=until)


@pytest.mark.cloud
def test_the_tiny_graph_runs_over_a_bucket_and_any_machine_goes_on_from_there(
    machine: tuple[State, Settings], migrated_database: Path, tmp_path: Path
) -> None:
    state, settings = machine
    assert settings.storage_uri.startswith("gs://")
    first = materialize(machine)
    assert first.num_current == 0
    store = ArtifactStore(settings.storage_uri, settings.cache_path)
    assert problems(store) == []
    made = everything(store, RECIPE)
    assert not list(state.artifacts.iterdir()), "artifacts are in the bucket alone"
    assert not list((state.cache / "staging").iterdir())
    second = materialize(machine)
    assert (second.num_current, second.runs) == (first.num_nodes, ())

    other = prepare_machine(tmp_path / "second", settings.storage_uri, migrated_database)
    assert len(materialize(other, until="finetuned_model").runs) == 2
    elsewhere = ArtifactStore(settings.storage_uri, other[1].cache_path)
    assert everything(elsewhere, RECIPE) == made, "what is in the bucket is taken over, not made again"


def command(folder: Path, emulator: str) -> dict[str, object]:
    """Options of a process that runs `yt8m demo` as a person would."""
    names = ("DAGSTER_HOME", "YT8M_RECIPE", "YT8M_EXECUTOR", "MLFLOW_TRACKING_URI")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    own = {"YT8M_STATE": str(folder / "state"), "YT8M_STORAGE": "gs://yt/runs/demo", "HOME": str(folder)}
    return {"cwd": ROOT, "env": {**kept, **own, "STORAGE_EMULATOR_HOST": emulator}, "text": True}


DEMO = [sys.executable, "-m", "orchestration.cli", "demo"]


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_whole_demo_over_a_bucket_killed_once_ends_with_a_valid_submission_and_then_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe("demo")
    key = recipe.model_keys[1]
    with storage_emulator(tmp_path / "bucket") as emulator:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator)
        store = ArtifactStore("gs://yt/runs/demo", tmp_path / "cache")
        options = command(tmp_path, emulator)
        started = time.monotonic()
        with (tmp_path / "killed.log").open("w") as log:
            killed = subprocess.Popen(DEMO, stdout=log, stderr=log, **options)  # type: ignore[call-overload]
            while killed.poll() is None and not store.list_keys(f"checkpoints/pretrained_model/{key}"):
                time.sleep(0.5)
            killed.send_signal(signal.SIGKILL)
            assert killed.wait() == -signal.SIGKILL, (tmp_path / "killed.log").read_text()
        before = everything_of(store, recipe.model_keys[0])
        resumed = subprocess.run(DEMO, capture_output=True, check=False, **options)  # type: ignore[call-overload]
        seconds = time.monotonic() - started
        assert resumed.returncode == 0, resumed.stderr
        assert store.require(f"pretrained_model/{key}").metadata["resumed_from_step"] > 0
        assert everything_of(store, recipe.model_keys[0]) == before, "what was published before is not made again"
        assert problems(store) == []
        assert "gs://yt/runs/demo/submission/" in resumed.stdout
        made = everything(store, recipe)

        started = time.monotonic()
        again = subprocess.run(DEMO, capture_output=True, check=False, **options)  # type: ignore[call-overload]
        assert again.returncode == 0, again.stderr
        assert "recipe demo: 0 made, 101 were up to date" in again.stderr
        assert everything(store, recipe) == made
        logger.info("over a bucket: %.0f s, and %.0f s again", seconds, time.monotonic() - started)
    assert not list((tmp_path / "state" / "artifacts").iterdir())


def everything_of(store: ArtifactStore, key: str) -> list[tuple[int, str]]:
    """Generation and digest of a model's two trainings."""
    manifests = [store.require(f"{asset}/{key}") for asset in ("pretrained_model", "finetuned_model")]
    return [(manifest.generation, manifest.digest) for manifest in manifests]
