"""The state folder: where it is, what is in it, and that preparing it twice changes nothing."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dagster as dg
import pytest
import yaml

from orchestration.instance import driver_instance
from orchestration.settings import Settings
from orchestration.state import find_state, prepare_state, project_root
from tests.orchestration.conftest import ENVIRONMENT
from yt8m_assets.errors import ConfigError, StorageError


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, "")  # so that it is restored after prepare_state has set it
        monkeypatch.delenv(name)


@pytest.mark.parametrize("name", ["what?", "a%20b"])
def test_a_path_that_an_address_of_sqlite_cannot_say_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="an address of SQLite cannot say"):
        find_state(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a b", "#1", "[x]", "50% more", "\xe9t\xe9"])
def test_other_odd_paths_reach_the_database_that_they_name(tmp_path: Path, name: str) -> None:
    import sqlalchemy

    state = find_state(tmp_path / name)
    (state.root / "mlflow").mkdir(parents=True)
    engine = sqlalchemy.create_engine(state.mlflow_database_uri)
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE t (x)"))
    engine.dispose()
    assert (state.root / "mlflow" / "mlflow.db").is_file()


def test_everything_is_absolute_and_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state = prepare_state(Path("here"))
    assert state.root == tmp_path / "here"
    assert os.environ["DAGSTER_HOME"] == str(state.dagster_home)
    for path in (state.dagster_home, state.mlflow_artifacts, state.artifacts, state.cache):
        assert path.is_dir()
        assert path.is_relative_to(state.root)
    settings = yaml.safe_load((state.dagster_home / "dagster.yaml").read_text())
    assert settings["telemetry"] == {"enabled": False}
    assert settings["concurrency"]["pools"]["default_limit"] == 1
    assert settings["run_monitoring"]["free_slots_after_run_end_seconds"] == 60
    assert settings["run_monitoring"]["max_runtime_seconds"] == 7 * 24 * 3600
    assert settings["storage"]["sqlite"]["base_dir"].startswith(str(tmp_path))


def test_preparing_again_is_quick_and_writes_nothing(tmp_path: Path) -> None:
    prepare_state(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    started = time.process_time()  # the machine may be busy with others
    prepare_state(tmp_path)
    assert time.process_time() - started < 0.2
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_dagster_accepts_the_settings(tmp_path: Path) -> None:
    state = prepare_state(tmp_path)
    with dg.DagsterInstance.from_config(str(state.dagster_home)) as instance, driver_instance(state) as driver:
        assert instance.run_monitoring_enabled
        assert not instance.telemetry_enabled
        assert instance.storage_directory().startswith(str(tmp_path))
        driver.add_run(dg.DagsterRun("job", run_id="0" * 32))
        assert [run.job_name for run in instance.get_runs()] == ["job"], "the same database is open twice"
        assert driver.root_directory == instance.root_directory


def test_edited_settings_are_kept_and_reach_the_command_line(tmp_path: Path) -> None:
    path = prepare_state(tmp_path).dagster_home / "dagster.yaml"
    path.write_text(path.read_text().replace("default_limit: 1", "default_limit: 3"))
    edited = path.read_text()
    state = prepare_state(tmp_path)
    assert path.read_text() == edited
    with driver_instance(state) as driver:
        assert driver.global_op_concurrency_default_limit == 3
        assert type(driver.compute_log_manager).__name__ == "NoOpComputeLogManager"
    for damaged in (b"a: [", b"a: \xe5"):
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"dagster\.yaml: not YAML: .*delete it and it is made again"):
            prepare_state(tmp_path)
    path.unlink()
    prepare_state(tmp_path)
    assert yaml.safe_load(path.read_text())["concurrency"]["pools"]["default_limit"] == 1


@pytest.mark.parametrize(
    ("sound", "damaged", "reason"),
    [
        ("max_runtime_seconds", "max_runtime_secondz", 'unexpected config entry "max_runtime_secondz"'),
        ("nux:", "nux\x7f:", "dagster.yaml: not YAML"),
        ("module: dagster._core", "module: dagster._cire", "import module dagster._cire"),
    ],
)
def test_settings_that_dagster_refuses_are_named(tmp_path: Path, sound: str, damaged: str, reason: str) -> None:
    path = prepare_state(tmp_path).dagster_home / "dagster.yaml"
    path.write_text(path.read_text().replace(sound, damaged))
    with pytest.raises(ConfigError, match=rf"{path}: .*; mend it, or delete it and it is made again") as caught:
        driver_instance(prepare_state(tmp_path))
    assert reason in str(caught.value)
    path.unlink()
    driver_instance(prepare_state(tmp_path)).dispose()


def test_settings_nobody_edited_follow_the_program_and_a_moved_folder(tmp_path: Path) -> None:
    state = prepare_state(tmp_path / "first")
    state.root.rename(tmp_path / "second")
    moved = prepare_state(tmp_path / "second")
    path = moved.dagster_home / "dagster.yaml"
    settings = yaml.safe_load(path.read_text())
    assert settings["storage"]["sqlite"]["base_dir"] == str(tmp_path / "second" / "dagster" / "storage")
    path.write_text("# Written by yt8m; changes are overwritten.\nstorage: {}\n")
    prepare_state(tmp_path / "second")
    assert "base_dir" in path.read_text()


def test_looking_for_the_state_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YT8M_STATE", str(tmp_path / "state"))
    assert find_state().dagster_home == tmp_path / "state" / "dagster"
    assert not list(tmp_path.iterdir())
    assert "DAGSTER_HOME" not in os.environ


def test_found_from_the_project_whatever_the_working_folder(tmp_path: Path) -> None:
    script = "from orchestration.state import project_root; print(project_root())"
    environment = {**os.environ, "PYTHONPATH": str(project_root())}
    answer = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert Path(answer.stdout.strip()) == Path(__file__).parents[2]


def test_a_servers_dagster_home_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "server"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    monkeypatch.setenv("YT8M_STATE", str(tmp_path / "state"))
    state = prepare_state()
    assert state.dagster_home == home
    assert os.environ["DAGSTER_HOME"] == str(home)
    assert (home / "dagster.yaml").read_text() == "telemetry: {enabled: false}\n"
    with driver_instance(state) as instance:
        assert Path(instance.root_directory) == home


def test_a_state_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        prepare_state(tmp_path / "file" / "state")


def test_settings_have_embedded_defaults(tmp_path: Path) -> None:
    state = prepare_state(tmp_path)
    settings = Settings.from_environment(state, {})
    assert settings.recipe == "demo"
    assert settings.storage_uri == str(state.artifacts)
    assert settings.tracking_uri == f"sqlite:///{tmp_path}/mlflow/mlflow.db"
    assert str(settings.artifact_location).startswith("file:///")
    assert settings.executor == "multiprocess"


def test_settings_follow_the_environment(tmp_path: Path) -> None:
    values = {"YT8M_RECIPE": "challenge", "YT8M_STORAGE": "gs://b/f", "YT8M_EXECUTOR": "in_process"}
    settings = Settings.from_environment(prepare_state(tmp_path), {**values, "MLFLOW_TRACKING_URI": "http://host:1"})
    assert (settings.recipe, settings.storage_uri, settings.executor) == ("challenge", "gs://b/f", "in_process")
    assert settings.artifact_location is None
    assert settings.mlflow_ui_url == "http://host:1"
    with pytest.raises(ConfigError, match="YT8M_EXECUTOR = 'abacus'"):
        Settings.from_environment(prepare_state(tmp_path), {"YT8M_EXECUTOR": "abacus"})
    assert settings.backfill == "single_run"
    assert (
        Settings.from_environment(prepare_state(tmp_path), {"YT8M_BACKFILL": "per_partition"}).backfill
        == "per_partition"
    )
    with pytest.raises(ConfigError, match="YT8M_BACKFILL = 'all': choose one of single_run, per_partition"):
        Settings.from_environment(prepare_state(tmp_path), {"YT8M_BACKFILL": "all"})


def test_how_many_generations_stay_reaches_the_store(tmp_path: Path) -> None:
    from orchestration.resources import build_resources

    state = prepare_state(tmp_path)
    settings = Settings.from_environment(state, {"YT8M_KEEP_GENERATIONS": "7"})
    assert settings.open_store().keep_generations == 7
    assert build_resources(settings)["store"].keep_generations == 7
    for wrong in ("1", "many"):
        with pytest.raises(ConfigError, match="YT8M_KEEP_GENERATIONS"):
            Settings.from_environment(state, {"YT8M_KEEP_GENERATIONS": wrong})


@pytest.mark.parametrize(
    ("uri", "links", "files"),
    [
        ("http://u:secret@host:1/x", "http://host:1/x", False),
        ("https://host", "https://host", False),
        ("sqlite:////data/own.db", "http://127.0.0.1:5000", True),
        ("postgresql+psycopg://u:secret@host/mlflow", "http://127.0.0.1:5000", True),
        ("databricks", "", False),
    ],
)
def test_links_lead_to_who_serves_the_tracking(tmp_path: Path, uri: str, links: str, files: bool) -> None:
    state = prepare_state(tmp_path)
    settings = Settings.from_environment(state, {"MLFLOW_TRACKING_URI": uri})
    assert settings.mlflow_ui_url == links
    assert settings.artifact_location == (state.mlflow_artifacts.as_uri() if files else None)
    assert settings.tracking_uri == uri


def test_relative_paths_are_of_the_callers_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    values = {"YT8M_RECIPE": "mine.json", "YT8M_STORAGE": "out", "MLFLOW_TRACKING_URI": "sqlite:///own.db"}
    settings = Settings.from_environment(prepare_state(tmp_path / "state"), values)
    assert settings.recipe == f"{tmp_path}/mine.json"
    assert settings.storage_uri == f"{tmp_path}/out"
    assert settings.tracking_uri == f"sqlite:///{tmp_path}/own.db"


def test_one_at_a_time_makes_dagster_s_databases(tmp_path: Path) -> None:
    """Two that do it at once, as two commands over a new state would, leave databases that nobody can open."""
    for number in range(5):
        state = prepare_state(tmp_path / str(number))
        with ThreadPoolExecutor(3) as pool:
            opened = [pool.submit(driver_instance, state) for _ in range(3)]
        for instance in opened:
            instance.result().dispose()
        with driver_instance(state) as again:
            assert not again.get_runs(limit=1)


def test_the_cache_lies_in_the_state_folder_unless_another_is_named(tmp_path, monkeypatch):
    state = prepare_state(tmp_path / "state")
    settings = Settings.from_environment(state, {})
    assert (settings.cache_path, settings.cache_bytes) == (state.cache, None)
    monkeypatch.chdir(tmp_path)
    settings = Settings.from_environment(state, {"YT8M_CACHE": "disk", "YT8M_CACHE_GB": "3"})
    cache = settings.open_store().cache
    assert (cache.path, cache.shards.max_bytes, cache.shards.keep_free) == (tmp_path / "disk", 3 * 2**30, 0)
    with pytest.raises(ConfigError, match="YT8M_CACHE_GB = -1: must be at least 1"):
        Settings.from_environment(state, {"YT8M_CACHE_GB": "-1"})
