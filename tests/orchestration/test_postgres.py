"""Dagster and MLflow over a real PostgreSQL, set up by the files of orchestration/deploy as they are."""

import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import google.auth
import google.oauth2.credentials
import pytest
import yaml

import orchestration
from orchestration.driver import open_driver
from orchestration.instance import driver_instance
from orchestration.settings import Settings
from orchestration.state import State, prepare_state
from tests.emulator import HOST, wait_for_port
from tests.ports import free_port
from tests.postgres import Database, Postgres
from tests.tiny import tiny_recipe
from yt8m_assets.progress import NullProgress
from yt8m_assets.storage import ArtifactStore

ROOT = Path(__file__).parents[2]
DEPLOY = Path(orchestration.__file__).parent / "deploy"
RECIPE = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom tests.tiny import tiny_recipe\nRECIPE = tiny_recipe()\n"
MODELS = ("one", "two")


@pytest.fixture
def database(postgres: Postgres) -> Database:
    return postgres.create("dagster")


@pytest.fixture
def state(tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch) -> State:
    """A DAGSTER_HOME as docs/cloud.md makes it (the example file, the database in the environment), and a state."""
    home = tmp_path / "home"
    home.mkdir()
    shutil.copyfile(DEPLOY / "dagster-postgres.yaml", home / "dagster.yaml")
    for name, value in {**database.environment, "DAGSTER_HOME": str(home), "YT8M_STATE": str(tmp_path / "own")}.items():
        monkeypatch.setenv(name, value)
    return prepare_state()


def digests(instance: dg.DagsterInstance, asset: str, partition: str) -> list[Any]:
    """The digests that the event log has of one partition's materialisations."""
    wanted = dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=[partition])
    records = instance.fetch_materializations(wanted, limit=9).records
    return [record.asset_materialization.metadata["digest"].value for record in records if record.asset_materialization]


def test_a_pass_is_recorded_in_postgresql_and_nowhere_else(
    state: State, database: Database, migrated_database: Path, tmp_path: Path
) -> None:
    shutil.copyfile(migrated_database, state.root / "mlflow" / "mlflow.db")
    settings = Settings.from_environment(state, {})
    store = ArtifactStore(settings.storage_uri, settings.cache_path)
    with open_driver(tiny_recipe(), state, settings, NullProgress()) as driver:
        first = driver.materialize(until="pretrained_model")
        assert (first.num_nodes, first.num_current) == (3, 0)
        assert driver.materialize(until="pretrained_model").runs == ()
        driver.instance.event_log_storage.set_concurrency_slots("gpu", 2)
    with driver_instance(state) as instance:  # what another process reads
        assert {run.run_id for run in instance.get_runs()} == set(first.runs)
        assert instance.get_materialized_partitions(dg.AssetKey("pretrained_model")) == set(MODELS)
        for key in MODELS:
            assert digests(instance, "pretrained_model", key) == [store.require(f"pretrained_model/{key}").digest]
        events = [entry.dagster_event_type for entry in instance.all_logs(first.runs[-1])]
        assert events[-1] == dg.DagsterEventType.RUN_SUCCESS
        pool = instance.event_log_storage.get_concurrency_info("gpu")
        assert (pool.slot_count, pool.active_slot_count, pool.pending_step_count) == (2, 0, 0)
    assert database.ask("SELECT count(*) FROM runs WHERE status = 'SUCCESS'") == [(len(first.runs),)]
    assert not list((tmp_path / "home").rglob("*.db")), "nothing went to SQLite"


def test_vertex_jobs_reach_the_database_without_a_password(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """dagster-vertex.yaml as it is, but for TLS: the token of the account is what the database is asked with."""
    home = tmp_path / "vertex"
    home.mkdir()
    config = yaml.safe_load((DEPLOY / "dagster-vertex.yaml").read_text())
    assert config["storage"]["postgres"]["postgres_db"].pop("params") == {"sslmode": "require"}
    (home / "dagster.yaml").write_text(yaml.safe_dump(config))
    given = {name: value for name, value in database.environment.items() if name != "DAGSTER_PG_PASSWORD"}
    given |= dict.fromkeys(("YT8M_GCP_PROJECT", "YT8M_GCP_LOCATION", "YT8M_IMAGE"), "x")
    given |= dict.fromkeys(("YT8M_GCP_SERVICE_ACCOUNT", "YT8M_GCP_NETWORK_ATTACHMENT"), "x")
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("DAGSTER_PG_PASSWORD", raising=False)
    token = google.oauth2.credentials.Credentials(token=database.password)
    monkeypatch.setattr(token, "refresh", lambda request: None, raising=False)
    monkeypatch.setattr(google.auth, "default", lambda scopes: (token, "x"))
    with dg.DagsterInstance.from_config(str(home)) as instance:
        instance.run_storage.set_cursor_values({"seen": "yes"})
        assert instance.run_storage.get_cursor_values({"seen"}) == {"seen": "yes"}
    assert not any("PASSWORD" in entry for entry in config["run_launcher"]["config"]["env_vars"])


@dg.asset
def seen() -> None:
    """Something to record."""


def test_the_cluster_reaches_cloud_sql_without_a_password(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The storages as the chart makes them of helm-values.yaml, over a database made and granted as docs/cloud.md says.

    As in Cloud SQL, the administrator is no superuser, and the account's user owns nothing. TLS is left out.
    """
    values = yaml.safe_load((DEPLOY / "helm-values.yaml").read_text())
    asked = values["postgresql"]
    assert (values["global"]["postgresqlAuthWifEnabled"], asked["authProvider"]) == (True, {"type": "gcp_wif"})
    assert asked["postgresqlParams"] == {"sslmode": "require"}
    project, server = f"p{secrets.token_hex(4)}", postgres.administration
    account, token = asked["postgresqlUsername"].replace("PROJECT", project), secrets.token_hex(12)
    for made in (
        f"CREATE ROLE {project} CREATEDB CREATEROLE",
        f"CREATE USER {project}_admin PASSWORD '{token}' IN ROLE {project}",
        f"CREATE DATABASE {project} OWNER {project}",
        f"CREATE USER \"{account}\" PASSWORD '{token}'",
    ):
        server.ask(made)
    (grant,) = re.findall(r"```sql\n(GRANT .*?)```", (ROOT / "docs" / "cloud.md").read_text(), re.DOTALL)
    administrator = Database(port=server.port, name=project, user=f"{project}_admin", password=token)
    administrator.ask(grant.replace("PROJECT", project))

    place = {"hostname": HOST, "port": server.port, "db_name": project, "username": account}
    config = {"postgres_db": {**place, "scheme": asked["postgresqlScheme"]}, "auth_provider": {"gcp_wif": {}}}
    storages = {
        "run_storage": ("dagster_postgres.run_storage", "PostgresRunStorage"),
        "event_log_storage": ("dagster_postgres.event_log", "PostgresEventLogStorage"),
        "schedule_storage": ("dagster_postgres.schedule_storage", "PostgresScheduleStorage"),
    }
    named = {name: {"module": module, "class": kind, "config": config} for name, (module, kind) in storages.items()}
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(named))
    credentials = google.oauth2.credentials.Credentials(token=token)
    monkeypatch.setattr(credentials, "refresh", lambda request: None, raising=False)
    monkeypatch.setattr(google.auth, "default", lambda scopes: (credentials, "x"))
    monkeypatch.setenv("DAGSTER_PG_PASSWORD", "")
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        instance.run_storage.set_cursor_values({"seen": "yes"})
        assert instance.run_storage.get_cursor_values({"seen"}) == {"seen": "yes"}
        assert dg.materialize([seen], instance=instance).success
        assert instance.get_latest_materialization_event(dg.AssetKey("seen")) is not None


def example_server() -> tuple[list[str], dict[str, str], list[str]]:
    """Arguments, plain variables and the names of secret variables of MLflow's server in the Kubernetes example."""
    deployment = next(iter(yaml.safe_load_all((DEPLOY / "kubernetes-mlflow.yaml").read_text())))
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    plain = {item["name"]: item["value"] for item in container["env"] if "value" in item}
    return container["args"], plain, [item["name"] for item in container["env"] if "value" not in item]


@pytest.fixture
def mlflow_server(postgres: Postgres, emulator: str, tmp_path: Path) -> Iterator[str]:
    """Address of the server of kubernetes-mlflow.yaml: its arguments and variables, on loopback with another bucket."""
    arguments, environment, secret_names = example_server()
    assert secret_names == ["MLFLOW_BACKEND_STORE_URI"]
    port = free_port()
    own = {"0.0.0.0": HOST, "5000": str(port), "gs://BUCKET/mlflow": f"gs://yt/{tmp_path.name}/mlflow"}
    for before, after in own.items():
        assert any(before in word for word in arguments)
        arguments = [word.replace(before, after) for word in arguments]
    secret = {"MLFLOW_BACKEND_STORE_URI": postgres.create("mlflow").uri, "STORAGE_EMULATOR_HOST": emulator}
    with (tmp_path / "mlflow.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            env={**os.environ, **environment, **secret},
            cwd=tmp_path,
            stdout=log,
            stderr=log,
        )
    try:
        wait_for_port(port, server, 120)
        yield f"http://{HOST}:{port}"
    finally:
        server.terminate()
        server.wait(30)


def passes(commands: list[list[str]], environment: dict[str, str]) -> None:
    """Run `yt8m` with each list of arguments, all at once; every one must end well."""
    command = [sys.executable, "-m", "orchestration.cli"]
    running = [
        subprocess.Popen(
            [*command, *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for arguments in commands
    ]
    said = [process.communicate(timeout=400)[0] for process in running]
    assert [process.returncode for process in running] == [0] * len(commands), said
    assert not [text for text in said if "tracking" in text], "nothing was left for later"


@pytest.mark.cloud
@pytest.mark.timeout(600)
def test_two_processes_train_at_once_over_postgresql_and_a_bucket(
    state: State, database: Database, mlflow_server: str, emulator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole production example: both databases in PostgreSQL, artifacts and MLflow's files in gs://."""
    from mlflow import MlflowClient
    from mlflow.artifacts import download_artifacts

    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE)
    storage = f"gs://yt/{tmp_path.name}/artifacts"
    own = {
        "YT8M_STORAGE": storage,
        "YT8M_RECIPE": str(recipe),
        "STORAGE_EMULATOR_HOST": emulator,
        "HOME": str(tmp_path),
    }
    environment = {**os.environ, **own, "MLFLOW_TRACKING_URI": mlflow_server, "OMP_NUM_THREADS": "1"}
    passes([["materialize", "--until", "holdout_ratings"]], environment)
    train = ["materialize", "--until", "finetuned_model", "--models"]
    passes([[*train, key] for key in MODELS], environment)

    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator)
    store = ArtifactStore(storage, tmp_path / "cache")
    client = MlflowClient(mlflow_server, mlflow_server)
    experiment = client.get_experiment_by_name("yt8m")
    assert experiment is not None
    assert experiment.artifact_location.startswith("mlflow-artifacts:")
    for key in MODELS:
        manifest = store.require(f"finetuned_model/{key}")
        champion = client.get_model_version_by_alias(f"yt8m-tiny-{key}", "champion")
        found = client.search_runs([experiment.experiment_id], f"tags.model = '{key}' and tags.kind = 'finetuning'")
        assert champion.run_id is not None
        assert [run.info.run_id for run in found] == [champion.run_id] == [manifest.metadata["mlflow_run_id"]]
        assert found[0].info.status == "FINISHED"
        assert found[0].data.tags["recipe"] == "tiny"
        assert client.get_metric_history(champion.run_id, "train/loss")
        assert str(champion.source).startswith("mlflow-artifacts:")
        files = Path(download_artifacts(champion.source, tracking_uri=mlflow_server, dst_path=str(tmp_path / key)))
        weights = next(name for name in manifest.files if name.endswith(".safetensors"))
        assert (next(files.rglob(Path(weights).name))).read_bytes() == (store.fetch(manifest) / weights).read_bytes()
    with driver_instance(state) as instance:
        assert {run.status for run in instance.get_runs()} == {dg.DagsterRunStatus.SUCCESS}
        for key in MODELS:
            assert digests(instance, "finetuned_model", key) == [store.require(f"finetuned_model/{key}").digest]
    assert not [path for path in tmp_path.rglob("*.db") if path.stat().st_size], "nothing went to SQLite"


@pytest.mark.cloud
@pytest.mark.timeout(600)
def test_the_daemon_takes_runs_from_the_queue_and_a_pool_holds_their_steps_apart(
    state: State, database: Database, migrated_database: Path, tmp_path: Path
) -> None:
    """A backfill of both models, launched and watched as the UI does; `default_limit: 1` lets one train at a time."""
    from tests.orchestration.servers import serve

    shutil.copyfile(migrated_database, state.root / "mlflow" / "mlflow.db")
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE)
    environment = {**os.environ, "YT8M_RECIPE": str(recipe), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment["YT8M_BACKFILL"] = "per_partition"  # else one run trains both, in one reading of the data
    passes([["materialize", "--until", "pretraining_shards"]], environment)
    with serve(environment, tmp_path) as dagster:
        ended = dagster.wait(dagster.backfill("pretrained_model", MODELS), 240)
    assert ended["status"] == "COMPLETED_SUCCESS"
    assert len(ended["runs"]) == 2
    with driver_instance(state) as instance:
        assert instance.get_materialized_partitions(dg.AssetKey("pretrained_model")) == set(MODELS)
        times = []
        for run in ended["runs"]:
            logs = [entry for entry in instance.all_logs(run["id"]) if entry.dagster_event_type]
            at = {entry.dagster_event_type: entry.timestamp for entry in logs}
            assert at[dg.DagsterEventType.RUN_ENQUEUED] <= at[dg.DagsterEventType.RUN_START]
            times.append((at[dg.DagsterEventType.STEP_START], at[dg.DagsterEventType.STEP_SUCCESS]))
        (_, first_end), (second_start, _) = sorted(times)
        assert first_end <= second_start, "the pool has one slot"
        assert instance.event_log_storage.get_concurrency_info("gpu").active_slot_count == 0
