"""What a run says about the machine and the code: load under MLflow's names of system metrics, and version tags."""

import contextlib
import functools
import importlib
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_MEGABYTE = 1e6
_MONITORS = ("cpu_monitor.CPUMonitor", "disk_monitor.DiskMonitor", "network_monitor.NetworkMonitor")
_GPU_MONITORS = ("gpu_monitor.GPUMonitor", "rocm_monitor.ROCMMonitor")
"""Of `mlflow.system_metrics.metrics`; those of GPUs begin only where there is one, and the package that asks it."""


class SystemMonitor:
    """The machine's load under MLflow's names, which shows it on a tab of its own; network counts from the beginning.

    Read by MLflow's own monitors, and beside them the memory of this process. GPUs tell their use, memory and power
    through `nvidia-ml-py` (the extra `gpu`); without it torch tells the memory of those that it uses.
    """

    def __init__(self) -> None:
        self._monitors, self._sees_gpus = [self._open(name) for name in _MONITORS], False
        for name in _GPU_MONITORS:
            with contextlib.suppress(ImportError, RuntimeError):  # which say that there is nothing to be seen
                self._monitors.append(self._open(name))
                self._sees_gpus = True

    @staticmethod
    def _open(name: str) -> Any:
        module, _, kind = name.partition(".")
        return getattr(importlib.import_module(f"mlflow.system_metrics.metrics.{module}"), kind)()

    def metrics(self) -> dict[str, float]:
        """The load of this moment."""
        import psutil

        values = {"process_memory_usage_megabytes": psutil.Process().memory_info().rss / _MEGABYTE}
        for monitor in self._monitors:
            monitor.collect_metrics()
            values |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        torch = sys.modules.get("torch")
        if not self._sees_gpus and torch is not None and torch.cuda.is_initialized():
            for index in range(torch.cuda.device_count()):
                free, total = torch.cuda.mem_get_info(index)
                values[f"gpu_{index}_memory_usage_megabytes"] = (total - free) / _MEGABYTE
                values[f"gpu_{index}_memory_usage_percentage"] = 100 * (total - free) / total
        return {f"system/{name}": float(value) for name, value in values.items()}


@functools.cache
def code_tags() -> dict[str, str]:
    """Version of the package, and the commit: the image's (YT8M_COMMIT), or that of the checkout it runs from."""
    tags = {"mlflow.source.name": "yt8m", "mlflow.source.type": "LOCAL"}
    try:
        tags["package_version"] = importlib.metadata.version("yt8m-assets")
    except importlib.metadata.PackageNotFoundError:
        tags["package_version"] = "not installed"
    if os.environ.get("YT8M_COMMIT"):
        return tags | {"mlflow.source.git.commit": os.environ["YT8M_COMMIT"]}
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return tags
    if result.returncode == 0:
        tags["mlflow.source.git.commit"] = result.stdout.strip()
    return tags
