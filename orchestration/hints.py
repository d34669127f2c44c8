"""What each asset needs of a machine, written once and translated for every executor.

`step_tags` gives the op tags with which assets, checks and jobs are built: the Kubernetes step executor reads
`dagster-k8s/config`, `VertexAIRunLauncher` reads `vertex-ai/config`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from orchestration.cluster import VARIABLE, ClusterOptions, DeploymentOptions
from orchestration.launchers.machines import ACCELERATORS, MIN_BOOT_DISK_GB, choose_machine
from yt8m_assets.assets.shell import StepTags
from yt8m_assets.device.hardware import REQUIRE_GPU
from yt8m_assets.errors import ConfigError
from yt8m_assets.recipes.overlay import apply_overrides
from yt8m_assets.stages.nodes import ASSETS

if TYPE_CHECKING:
    from yt8m_assets.recipes.schema import Recipe


K8S_TAG = "dagster-k8s/config"
VERTEX_TAG = "vertex-ai/config"
IMAGE_GB = 40
"""Of a Vertex AI job's boot disk: the system, and the image unpacked."""


@dataclass(frozen=True, kw_only=True)
class ResourceHints:
    """What a step of one asset needs, whoever runs it."""

    num_gpus: int = 0
    """GPUs of one machine."""
    gpu_type: str | None = None
    """t4, l4, a100, a100-80gb, h100 or h200."""
    num_cpus: float = 1
    """vCPUs; leave a little of a node to the system, so 7 for a node of 8."""
    memory_gib: float = 4
    """Memory, shared memory included."""
    shared_memory_gib: float = 0
    """Size of /dev/shm, which reader processes and NCCL use; 0 leaves the container's own."""
    disk_gib: int = 60
    """Local disk for copies of artifacts, indexes and temporary files; the image is not part of it."""
    spot: bool = False
    """May run on machines that can be taken away; training resumes from its last checkpoint."""

    def __post_init__(self) -> None:
        if self.num_gpus < 0:
            raise ConfigError(f"num_gpus = {self.num_gpus}: must not be negative")
        if self.num_gpus and self.gpu_type not in ACCELERATORS:
            raise ConfigError(f"gpu_type = {self.gpu_type!r}: choose one of {', '.join(ACCELERATORS)}")
        for name in ("num_cpus", "memory_gib", "disk_gib"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be above zero")
        if not 0 <= self.shared_memory_gib < self.memory_gib:
            raise ConfigError(f"shared_memory_gib = {self.shared_memory_gib}: must lie in [0, memory_gib)")


MACHINES: Mapping[str, ResourceHints] = {
    "small": ResourceHints(num_cpus=2, memory_gib=8),
    "roomy": ResourceHints(num_cpus=2, memory_gib=16),
    "large": ResourceHints(num_cpus=4, memory_gib=16),
    "gpu": ResourceHints(num_gpus=1, gpu_type="l4", num_cpus=7, memory_gib=26, shared_memory_gib=8, disk_gib=80),
}
"""What the graph's entries call a machine -> what that is, for the challenge's real data.

A node with one L4, 8 vCPU and 32 GiB holds every GPU step; a node of 8 vCPU and 32 GiB every other one.
"""
OTHER_STEPS = {"checks": "small", "ablate": "large"}
"""Steps that are no asset: each asset check, and the job `ablate`'s."""


def resource_hints() -> dict[str, ResourceHints]:
    """Asset, or other step -> its needs."""
    machines = {name: asset.machine for name, asset in ASSETS.items()}
    machines |= {asset.optional: asset.machine for asset in ASSETS.values() if asset.optional}
    return {name: MACHINES[machine] for name, machine in (machines | OTHER_STEPS).items()}


def hints_for(recipe: "Recipe", deployment: DeploymentOptions | None = None) -> dict[str, ResourceHints]:
    """The hints of a recipe: as many GPUs as its training has processes, and none for a simulated data set.

    A simulated recipe is sized for CPUs, so that it also runs on a cluster that has no GPU node. What the deployment
    says comes last. Raises ConfigError for an asset or a field that does not exist.
    """
    deployment = deployment or DeploymentOptions()
    hints = resource_hints()
    if recipe.data.simulation is not None:
        hints = dict.fromkeys(hints, MACHINES["small"])
    else:
        for asset, declared in ASSETS.items():
            if declared.training:
                trainings = [getattr(model, declared.training) for model in recipe.models]
                hints[asset] = _scaled(hints[asset], max(training.num_processes for training in trainings))
    for asset, hint in hints.items():
        if hint.num_gpus:
            hints[asset] = replace(hint, gpu_type=deployment.gpu_type or hint.gpu_type, spot=deployment.spot)
    for asset, changes in deployment.hints.items():
        if asset not in hints:
            raise ConfigError(f"{VARIABLE}: hints: {asset} is not known; known: {', '.join(hints)}")
        try:
            hints[asset] = apply_overrides(hints[asset], changes, asset)
        except ConfigError as error:
            raise ConfigError(f"{VARIABLE}: hints: {asset}: {error}") from None
    return hints


def hints_together(hints: Iterable[ResourceHints]) -> ResourceHints:
    """What one machine must have that does several steps, one after another."""
    found = list(hints)
    largest = max(found, key=lambda hint: hint.num_gpus)
    sizes = ("num_cpus", "memory_gib", "shared_memory_gib", "disk_gib")
    return replace(largest, **{name: max(getattr(hint, name) for hint in found) for name in sizes})


def _scaled(base: ResourceHints, num_gpus: int) -> ResourceHints:
    scale = num_gpus / base.num_gpus
    return replace(base, num_gpus=num_gpus, num_cpus=base.num_cpus * scale, memory_gib=base.memory_gib * scale)


def k8s_config(hints: ResourceHints, deployment: DeploymentOptions | None = None) -> dict[str, Any]:
    """The value of the `dagster-k8s/config` tag for a step: one container and its pod."""
    deployment = deployment or DeploymentOptions()
    cluster = deployment.cluster
    memory = f"{hints.memory_gib * 1024:.0f}Mi"
    limits = {"memory": memory}
    requests = {"cpu": f"{hints.num_cpus:g}", "memory": memory, "ephemeral-storage": f"{hints.disk_gib}Gi"}
    selector = dict(cluster.node_selector)
    tolerations = []
    env = {"OMP_NUM_THREADS": str(max(1, int(hints.num_cpus / max(1, hints.num_gpus))))}
    if hints.num_gpus:
        limits["nvidia.com/gpu"] = str(hints.num_gpus)
        tolerations.append({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"})
        if cluster.gpu_node_label:
            selector[cluster.gpu_node_label] = _label_value(cluster, str(hints.gpu_type))
        env |= gpu_environment(hints, deployment)
    if hints.spot:
        selector[cluster.spot_node_label] = "true"
        spot = {"key": cluster.spot_node_label, "operator": "Equal", "value": "true", "effect": "NoSchedule"}
        tolerations.append(spot)
    container: dict[str, Any] = {
        "resources": {"limits": limits, "requests": requests},
        "env": [{"name": name, "value": value} for name, value in env.items()],
    }
    # Only the run's own pod asks Kubernetes for anything.
    pod: dict[str, Any] = {"tolerations": tolerations, "node_selector": selector}
    pod["automount_service_account_token"] = False
    if hints.shared_memory_gib:
        size = f"{hints.shared_memory_gib * 1024:.0f}Mi"
        container["volume_mounts"] = [{"name": "shared-memory", "mount_path": "/dev/shm"}]
        pod["volumes"] = [{"name": "shared-memory", "empty_dir": {"medium": "Memory", "size_limit": size}}]
    if cluster.service_account:
        pod["service_account_name"] = cluster.service_account
    # An autoscaler that moves a training pod to pack its nodes would cost a checkpoint interval for nothing.
    annotations = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
    return {
        "container_config": container,
        "pod_spec_config": {name: value for name, value in pod.items() if value not in ([], {})},
        "pod_template_spec_metadata": {"annotations": annotations},
    }


def _label_value(cluster: ClusterOptions, gpu_type: str) -> str:
    try:
        return cluster.gpu_node_values[gpu_type]
    except KeyError:
        known = ", ".join(cluster.gpu_node_values) or "none"
        raise ConfigError(f"{VARIABLE}: cluster.gpu_node_values has no {gpu_type}; it has {known}") from None


def gpu_environment(hints: ResourceHints, deployment: DeploymentOptions) -> dict[str, str]:
    """Variables by which a step that is meant for a GPU refuses to compute without one."""
    return {REQUIRE_GPU: "1"} if hints.num_gpus and deployment.require_gpu else {}


def vertex_config(hints: ResourceHints, deployment: DeploymentOptions | None = None) -> dict[str, Any]:
    """The value of the `vertex-ai/config` tag: machine, accelerator and disk. /dev/shm cannot be set there.

    Raises ConfigError when no machine type holds what is asked.
    """
    try:
        machine = choose_machine(hints.num_cpus, hints.memory_gib, hints.num_gpus, hints.gpu_type, spot=hints.spot)
    except ValueError as error:
        raise ConfigError(f"{hints}: {error}") from error
    disk = max(MIN_BOOT_DISK_GB, hints.disk_gib + IMAGE_GB)
    config: dict[str, Any] = {"machine_type": machine.name, "boot_disk_size_gb": disk}
    if hints.num_gpus:
        config |= {"accelerator_type": ACCELERATORS[str(hints.gpu_type)], "accelerator_count": hints.num_gpus}
        variables = gpu_environment(hints, deployment or DeploymentOptions())
        config |= {"env_vars": [f"{name}={value}" for name, value in variables.items()]} if variables else {}
    if hints.spot:
        config["scheduling_strategy"] = "SPOT"
    return config


def step_tags(
    executor: str,
    hints: Mapping[str, ResourceHints],
    deployment: DeploymentOptions | None = None,
) -> StepTags:
    """The op tags of a step, by its name in `hints`; none for in_process and multiprocess, or without a hint."""

    def tags(step: str) -> dict[str, Any]:
        if step in hints and executor == "k8s":
            return {K8S_TAG: k8s_config(hints[step], deployment)}
        if step in hints and executor == "vertex":
            return {VERTEX_TAG: vertex_config(hints[step], deployment)}
        return {}

    return tags
