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
    """The state folder, `.state` of the project unless told otherwise."""

    @property
    def dagster_home(self) -> Path:
        """Dagster's instance: dagster.yaml and its SQLite files."""
        return self.root / "dagster"

    @property
    def mlflow_database_uri(self) -> str:
        """The embedded tracking database."""
        return f"sqlite:///{self.root / 'mlflow' / 'mlflow.db'}"

    @property
    def mlflow_artifacts(self) -> Path:
        """Where the embedded tracking server keeps the files of its runs."""
        return self.root / "mlflow" / "artifacts"

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

    Sets DAGSTER_HOME for this process and its children. Raises StorageError when the folder cannot be written.
    """
    state = State(root=(root or project_root() / STATE_FOLDER).resolve())
    home = state.dagster_home
    shared = _INSTANCE_YAML.format(home=home, limit=RUN_LIMIT_SECONDS)
    try:
        for folder in (home, state.mlflow_artifacts, state.artifacts):
            folder.mkdir(parents=True, exist_ok=True)
        for name, text in (("dagster.yaml", shared), (DRIVER_CONFIG, shared + _NO_CAPTURE_YAML)):
            _write_if_different(home / name, text)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(
            f"{state.root}: cannot write: {error.strerror or error}; choose another with --state"
        ) from error
    os.environ["DAGSTER_HOME"] = str(home)
    return state


def _write_if_different(path: Path, text: str) -> None:
    if path.is_file() and path.read_text() == text:
        return
    with atomic_write(path) as temporary:
        temporary.write_text(text)
