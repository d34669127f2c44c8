"""Data-parallel training over several processes."""

from typing import Any

from yt8m_assets.errors import ConfigError


def run_on_ranks(*arguments: Any, **options: Any) -> dict[str, Any]:
    """Run a job on several ranks."""
    raise ConfigError("training.num_processes: must be 1")
