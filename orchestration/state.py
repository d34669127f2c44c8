"""Where everything a run writes lies, and the one function that prepares it."""

import logging
import os
import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from orchestration.relocation import relocate_tracking
from yt8m_assets.errors import ConfigError, StorageError
from yt8m_assets.storage.files import atomic_write

logger = logging.getLogger(__name__)

STATE_FOLDER = ".state"
RUN_LIMIT_SECONDS = 7 * 24 * 3600
"""A run that no job has given a limit ends after this long (a dead worker is noticed by nothing else)."""

_MARK = "# Written by yt8m"
_HEADER = (
    _MARK + ", {digest}. Edit what you like: an edited file is left as it is, one that is deleted is made again.\n"
)
_INSTANCE_YAML = """\
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
_UNSAYABLE = re.compile(r"\?|%[0-9A-Fa-f]{2}")
"""In a path: the database would be made at another place, without a word, or not at all."""


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
    def artifacts(self) -> Path:
        """The embedded artifact root."""
        return self.root / "artifacts"


def project_root() -> Path:
    """The folder with pyproject.toml above this file; the working folder for an installation without one."""
    for folder in Path(__file__).resolve().parents:
        if (folder / "pyproject.toml").is_file():
            return folder
    return Path.cwd()


def find_state(root: Path | None = None) -> State:
    """The state folders, whether or not they exist: nothing is written and no variable is set.

    A DAGSTER_HOME that was set (a server's) is used as it is, unless `root` is given.
    """
    named = root or Path(os.environ.get("YT8M_STATE") or project_root() / STATE_FOLDER)
    folder = named.expanduser().resolve()
    if _UNSAYABLE.search(str(folder)):
        raise ConfigError(
            f"state folder {folder}: an address of SQLite cannot say `?`, or `%` with two digits; choose another path"
        )
    given = os.environ.get("DAGSTER_HOME")
    home = Path(given).expanduser().resolve() if given and root is None else folder / "dagster"
    return State(root=folder, dagster_home=home)


def state_of_definitions() -> State:
    """`find_state` for definitions that Dagster loads; one line says how to make Dagster look there."""
    state = find_state()
    if not os.environ.get("DAGSTER_HOME"):
        home = str(state.dagster_home) + ("" if state.dagster_home.is_dir() else "  (any yt8m command makes it)")
        logger.warning("Dagster does not look into this state; to see what is there: export DAGSTER_HOME=%s", home)
    return state


def prepare_state(root: Path | None = None) -> State:
    """Make the folders of `find_state` and write Dagster's settings where they are missing; quick when all is there.

    A state that was moved or copied is made to point to itself. Sets DAGSTER_HOME for this process and its children.
    Raises StorageError when the folder cannot be written.
    """
    state = find_state(root)
    try:
        for path in (state.mlflow_artifacts, state.artifacts, state.cache):
            path.mkdir(parents=True, exist_ok=True)
        relocate_tracking(state.root / "mlflow" / "mlflow.db", state.mlflow_artifacts)
        if state.dagster_home == state.root / "dagster":
            state.dagster_home.mkdir(exist_ok=True)
            _write_settings(state.dagster_home)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        reason = error.strerror or error
        raise StorageError(f"{state.root}: cannot write: {reason}; choose another folder with --state") from error
    os.environ["DAGSTER_HOME"] = str(state.dagster_home)
    return state


def _write_settings(home: Path) -> None:
    """Dagster's settings; what a person has edited stays. Raises ConfigError where that is no YAML."""
    path = home / "dagster.yaml"
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not YAML: {error}; mend it, or delete it and it is made again") from error
    body = _INSTANCE_YAML.format(home=home, limit=RUN_LIMIT_SECONDS)
    ours = _HEADER.format(digest=_digest(body)) + body
    if not _is_ours(text):
        _require_settings(path, text)
    elif text != ours:
        with atomic_write(path) as temporary:
            temporary.write_text(ours)


def _is_ours(text: str) -> bool:
    """Whether nobody has edited a settings file since it was written."""
    header, _, body = text.partition("\n")
    written_before = header.startswith(_MARK) and "changes are overwritten" in header
    return not text or written_before or (header.startswith(_MARK) and _digest(body) in header)


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:16]


def _require_settings(path: Path, text: str) -> None:
    import yaml

    try:
        settings = yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: not YAML: {reason}; mend it, or delete it and it is made again") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: holds no settings; delete it and it is made again")
