"""Where everything a run writes lies, and the one function that prepares it."""

import os
from dataclasses import dataclass
from pathlib import Path

from yt8m_assets.errors import StorageError
from yt8m_assets.storage_backend import atomic_write

STATE_FOLDER = ".state"
RUN_LIMIT_SECONDS = 7 * 24 * 3600
"""A run that no job has given a limit ends after this long (a dead worker is noticed by nothing else)."""
DRIVER_CONFIG = "driver.yaml"
"""Instance settings of the command line: the same storage, but no capture of stdout, which belongs to the bars."""

_INSTANCE_YAML = """\
# Written by yt8m; changes are overwritten. The settings of a server are in orchestration/deploy/.
storage:
  sqlite:
    base_dir: {home}/storage
local_artifact_storage:
  module: dagster._core.storage.root
  class: LocalArtifactStorage
  config:
    base_dir: {home}
telemetry:
  enabled: false
nux:
  enabled: false
concurrency:
  pools:
    granularity: op
    default_limit: 1
  runs:
    max_concurrent_runs: 4
run_monitoring:
  enabled: true
  poll_interval_seconds: 30
  start_timeout_seconds: 300
  cancel_timeout_seconds: 120
  free_slots_after_run_end_seconds: 60
  max_runtime_seconds: {limit}
run_retries:
  enabled: true
  max_retries: 0
python_logs:
  managed_python_loggers: [models, yt8m_assets]
"""
_NO_CAPTURE_YAML = """\
compute_logs:
  module: dagster._core.storage.noop_compute_log_manager
  class: NoOpComputeLogManager
"""


@dataclass(frozen=True, kw_only=True)
class State:
    """The prepared folders; every path is absolute."""

    root: Path
    """The state folder: `.state` of the project, YT8M_STATE, or what the command line says."""
    dagster_home: Path
    """Dagster's instance: dagster.yaml and its SQLite files; below the root unless DAGSTER_HOME was set to another."""

    @property
    def mlflow_database_uri(self) -> str:
        """The embedded tracking database."""
        return f"sqlite:///{self.root / 'mlflow' / 'mlflow.db'}"

    @property
    def mlflow_artifacts(self) -> Path:
        """Where the embedded tracking server keeps the files of its runs."""
        return self.root / "mlflow" / "artifacts"

    @property
    def cache(self) -> Path:
        """Copies and indexes that can be made again."""
        return self.root / "cache"

    @property
    def tracking_spool(self) -> Path:
        """What waits for a tracking server that is gone."""
        return self.root / "spool"

    @property
    def artifacts(self) -> Path:
        """The embedded artifact root."""
        return self.root / "artifacts"


def project_root() -> Path:
    """The folder with pyproject.toml above this file; the working folder for an installation without one."""
    for folder in Path(__file__).resolve().parents:
        if (folder / "pyproject.toml").is_file():
            return folder
    return Path.cwd()


def prepare_state(root: Path | None = None) -> State:
    """Make the state folders and write Dagster's settings where they differ; quick when all is there.

    Sets DAGSTER_HOME for this process and its children. A DAGSTER_HOME that was set already (a server's) is used as it
    is, unless `root` is given. Raises StorageError when the folder cannot be written.
    """
    named = root or Path(os.environ.get("YT8M_STATE") or project_root() / STATE_FOLDER)
    folder = named.expanduser().resolve()
    given = os.environ.get("DAGSTER_HOME")
    home = Path(given).expanduser().resolve() if given and root is None else folder / "dagster"
    state = State(root=folder, dagster_home=home)
    shared = _INSTANCE_YAML.format(home=home, limit=RUN_LIMIT_SECONDS)
    files = {"dagster.yaml": shared, DRIVER_CONFIG: shared + _NO_CAPTURE_YAML}
    try:
        for path in (state.mlflow_artifacts, state.artifacts, state.cache):
            path.mkdir(parents=True, exist_ok=True)
        if home == folder / "dagster":
            home.mkdir(exist_ok=True)
            for name, text in files.items():
                _write_if_different(home / name, text)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        reason = error.strerror or error
        raise StorageError(f"{folder}: cannot write: {reason}; choose another folder with --state") from error
    os.environ["DAGSTER_HOME"] = str(home)
    return state


def _write_if_different(path: Path, text: str) -> None:
    if path.is_file() and path.read_text() == text:
        return
    with atomic_write(path) as temporary:
        temporary.write_text(text)
