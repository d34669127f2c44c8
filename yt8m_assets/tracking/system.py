"""What a run says about the machine and the code: load under MLflow's names of system metrics, and version tags."""

import functools
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

_MEGABYTE = 1e6


def system_metrics() -> dict[str, float]:
    """CPU, memory and disk now, and the memory of each CUDA device in use; MLflow shows them on a tab of their own."""
    import psutil

    memory = psutil.virtual_memory()
    disk = psutil.disk_usage("/")
    values = {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": memory.used / _MEGABYTE,
        "system/system_memory_usage_percentage": memory.percent,
        "system/process_memory_usage_megabytes": psutil.Process().memory_info().rss / _MEGABYTE,
        "system/disk_usage_percentage": disk.percent,
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            values[f"system/gpu_{index}_memory_usage_megabytes"] = (total - free) / _MEGABYTE
            values[f"system/gpu_{index}_memory_usage_percentage"] = 100 * (total - free) / total
    return values


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
