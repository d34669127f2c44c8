"""What one deployment has of its own (GPU type, spot machines, sizes, node labels), from YT8M_DEPLOYMENT.

The variable holds JSON, or the path of a JSON file::

    {"gpu_type": "l4", "spot": true, "hints": {"submission": {"memory_gib": 24}},
     "cluster": {"gpu_node_label": "nvidia.com/gpu.product", "gpu_node_values": {"l4": "NVIDIA-L4"}}}
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestration.launchers.machines import ACCELERATORS
from yt8m_assets.errors import ConfigError
from yt8m_assets.recipes.overlay import construct

VARIABLE = "YT8M_DEPLOYMENT"

GKE_ACCELERATORS = {
    "t4": "nvidia-tesla-t4",
    "l4": "nvidia-l4",
    "a100": "nvidia-tesla-a100",
    "a100-80gb": "nvidia-a100-80gb",
    "h100": "nvidia-h100-80gb",
    "h200": "nvidia-h200-141gb",
}
"""GPU type -> value of the node label by which GKE marks its GPU nodes."""


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """How a Kubernetes cluster names what the hints ask for; the defaults are GKE's."""

    gpu_node_label: str | None = "cloud.google.com/gke-accelerator"
    """Node label with the GPU's type; None: any node with a free GPU."""
    gpu_node_values: Mapping[str, str] = field(default_factory=lambda: dict(GKE_ACCELERATORS))
    """GPU type -> value of that label."""
    spot_node_label: str = "cloud.google.com/gke-spot"
    """Node label, and taint, of machines that can be taken away."""
    service_account: str | None = None
    """Kubernetes service account of step pods; None: the run launcher's."""
    node_selector: Mapping[str, str] = field(default_factory=dict)
    """Further labels a node must carry."""


@dataclass(frozen=True, kw_only=True)
class DeploymentOptions:
    """What differs from the resource hints in this deployment."""

    gpu_type: str | None = None
    """GPU of every GPU step; None: what the hints name."""
    spot: bool = False
    """GPU steps may run on machines that can be taken away; training resumes from its last checkpoint."""
    require_gpu: bool = True
    """A step whose hints ask for a GPU refuses to run where torch sees none."""
    pending_minutes: float = 60
    """A Kubernetes step whose pod has not started after so long fails with the scheduler's reason; 0: never."""
    hints: Mapping[str, Any] = field(default_factory=dict)
    """Asset (or `checks`, `ablate`) -> fields of its resource hints that differ here."""
    cluster: ClusterOptions = field(default_factory=ClusterOptions)
    """Names of the Kubernetes cluster."""

    def __post_init__(self) -> None:
        if self.gpu_type is not None and self.gpu_type not in ACCELERATORS:
            raise ConfigError(f"{VARIABLE}: gpu_type = {self.gpu_type!r}: choose one of {', '.join(ACCELERATORS)}")
        if self.pending_minutes < 0:
            raise ConfigError(f"{VARIABLE}: pending_minutes = {self.pending_minutes}: must not be negative")


def read_deployment(value: str | None) -> DeploymentOptions:
    """The options in the text of YT8M_DEPLOYMENT: JSON, or the path of a JSON file; all defaults when it is empty.

    Raises ConfigError that names the field at fault.
    """
    if not value:
        return DeploymentOptions()
    try:
        text = value if value.lstrip().startswith("{") else Path(value).expanduser().read_text()
        values = json.loads(text)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{VARIABLE}: neither JSON nor the path of a JSON file: {error}") from error
    return construct(DeploymentOptions, values, VARIABLE)
