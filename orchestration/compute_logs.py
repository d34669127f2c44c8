"""What steps write to stdout and stderr, kept in the bucket and shown on Dagster's pages.

Dagster's own manager for Google Cloud Storage comes with dagster-gcp, which needs an older pandas than this project. In
dagster.yaml::

    compute_logs:
      module: orchestration.compute_logs
      class: BucketComputeLogManager
      config: {root_uri: "gs://bucket/yt8m/compute-logs"}
"""

import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

from dagster import Field, IntSource, StringSource
from dagster._core.storage.cloud_storage_compute_log_manager import (
    PollingComputeLogSubscriptionManager,
    TruncatingCloudStorageComputeLogManager,
)
from dagster._core.storage.compute_log_manager import CapturedLogSubscription, ComputeIOType
from dagster._core.storage.local_compute_log_manager import IO_TYPE_EXTENSION, LocalComputeLogManager
from dagster._serdes import ConfigurableClass, ConfigurableClassData

from yt8m_assets.storage.remote import open_filesystem

logger = logging.getLogger(__name__)


class BucketComputeLogManager(TruncatingCloudStorageComputeLogManager, ConfigurableClass):
    """Captures logs to local files and copies them to a bucket: whole at the end, and so far while a step runs.

    A bucket that cannot be written costs the logs and a warning, never the step.
    """

    def __init__(
        self,
        root_uri: str,
        local_dir: str | None = None,
        upload_interval: int = 30,
        inst_data: ConfigurableClassData | None = None,
    ) -> None:
        self._root_uri, self._upload_interval, self._inst_data = root_uri.rstrip("/"), upload_interval, inst_data
        self._files, self._prefix = open_filesystem(self._root_uri)
        self._local_manager = LocalComputeLogManager(local_dir or tempfile.gettempdir())
        self._subscriptions = PollingComputeLogSubscriptionManager(self)
        super().__init__()

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        """Where the configuration was read from."""
        return self._inst_data

    @classmethod
    def config_type(cls) -> Mapping[str, Any]:
        """The settings under `compute_logs.config`."""
        interval = "Seconds between two copies of a running step's logs; 0: at its end only."
        return {
            "root_uri": Field(StringSource, description="Folder of a bucket: gs://bucket/folder."),
            "local_dir": Field(StringSource, is_required=False, description="Folder of the local files."),
            "upload_interval": Field(IntSource, is_required=False, default_value=30, description=interval),
        }

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> Self:
        """The manager of a dagster.yaml."""
        return cls(inst_data=inst_data, **config_value)

    @property
    def local_manager(self) -> LocalComputeLogManager:
        """Writes and reads the local files."""
        return self._local_manager

    @property
    def upload_interval(self) -> int | None:
        """Seconds between two copies of a running step's logs."""
        return self._upload_interval or None

    def _name(self, log_key: Sequence[str], io_type: ComputeIOType, partial: bool = False) -> str:
        return "/".join(log_key) + f".{IO_TYPE_EXTENSION[io_type]}{'.partial' if partial else ''}"

    def _path(self, name: str) -> str:
        return f"{self._prefix}/{name}"

    def cloud_storage_has_logs(self, log_key: Sequence[str], io_type: ComputeIOType, partial: bool = False) -> bool:
        """Whether the bucket has the log."""
        return bool(self._files.exists(self._path(self._name(log_key, io_type, partial))))

    def upload_to_cloud_storage(self, log_key: Sequence[str], io_type: ComputeIOType, partial: bool = False) -> None:
        """Copy a log to the bucket."""
        try:
            super().upload_to_cloud_storage(log_key, io_type, partial)
        except Exception as error:  # noqa: BLE001 a step must not fail for its log
            logger.warning("%s: cannot keep the log %s: %s", self._root_uri, "/".join(log_key), error)

    def _upload_file_obj(
        self, data: IO[bytes], log_key: Sequence[str], io_type: ComputeIOType, partial: bool = False
    ) -> None:
        content = data.read()  # at most 50 MB; the file itself may grow while it is sent
        if content or not partial:
            self._files.pipe_file(self._path(self._name(log_key, io_type, partial)), content)

    def download_from_cloud_storage(
        self, log_key: Sequence[str], io_type: ComputeIOType, partial: bool = False
    ) -> None:
        """Copy a log from the bucket to its local file."""
        extension = IO_TYPE_EXTENSION[io_type]
        path = Path(self._local_manager.get_captured_local_path(log_key, extension, partial=partial))
        path.parent.mkdir(parents=True, exist_ok=True)
        self._files.get_file(self._path(self._name(log_key, io_type, partial)), path)

    def display_path_for_type(self, log_key: Sequence[str], io_type: ComputeIOType) -> str:
        """Where the log lies."""
        return f"{self._root_uri}/{self._name(log_key, io_type)}"

    def download_url_for_type(self, log_key: Sequence[str], io_type: ComputeIOType) -> str | None:
        """The webserver's own download, which takes the log from the bucket."""
        return self._local_manager.get_captured_log_download_url(log_key, io_type)

    def delete_logs(self, log_key: Sequence[str] | None = None, prefix: Sequence[str] | None = None) -> None:
        """Delete the logs of a key, or of all keys below a prefix."""
        self._local_manager.delete_logs(log_key=log_key, prefix=prefix)
        names = ["/".join(prefix or [])] if not log_key else []
        for io_type in (ComputeIOType.STDOUT, ComputeIOType.STDERR):
            names += [self._name(log_key, io_type, partial) for partial in (False, True)] if log_key else []
        for name in names:
            if name and self._files.exists(self._path(name)):
                self._files.rm(self._path(name), recursive=True)

    def get_log_keys_for_log_key_prefix(
        self, log_key_prefix: Sequence[str], io_type: ComputeIOType
    ) -> Sequence[list[str]]:
        """The keys directly below a prefix that have a log in the bucket."""
        extension = f".{IO_TYPE_EXTENSION[io_type]}"
        try:
            entries = self._files.ls(self._path("/".join(log_key_prefix)))
        except FileNotFoundError:
            return []
        found = [str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in entries]
        return [[*log_key_prefix, name.removesuffix(extension)] for name in found if name.endswith(extension)]

    def on_subscribe(self, subscription: CapturedLogSubscription) -> None:
        """Poll for a page that shows a running step."""
        self._subscriptions.add_subscription(subscription)

    def on_unsubscribe(self, subscription: CapturedLogSubscription) -> None:
        """End the polling."""
        self._subscriptions.remove_subscription(subscription)

    def dispose(self) -> None:
        """Stop the threads."""
        self._subscriptions.dispose()
        self._local_manager.dispose()
