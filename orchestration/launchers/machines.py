"""Machine types of Google Cloud's custom training, and the smallest one that holds what a step needs.

Source: the machine families of Compute Engine (E2, N1, G2, A2, A3) as Vertex AI offers them for custom training. Which
of them a region has, and under which quota, is the project's affair.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """One machine type: its name, vCPUs, memory in GiB, and the GPUs it comes with."""

    name: str
    num_cpus: int
    memory_gib: int
    num_gpus: int = 0


ACCELERATORS = {
    "t4": "NVIDIA_TESLA_T4",
    "l4": "NVIDIA_L4",
    "a100": "NVIDIA_TESLA_A100",
    "a100-80gb": "NVIDIA_A100_80GB",
    "h100": "NVIDIA_H100_80GB",
    "h200": "NVIDIA_H200_141GB",
}
"""GPU type -> Vertex AI's AcceleratorType."""
MIN_BOOT_DISK_GB = 100
"""Smallest boot disk of a custom job, and its default."""
MAX_BOOT_DISK_GB = 64_000
"""Largest boot disk of a custom job."""
SPOT_OR_FLEX_ONLY = frozenset({"a3-highgpu-1g", "a3-highgpu-2g", "a3-highgpu-4g"})
"""Parts of an H100 machine, which are not offered on demand."""

CPU_MACHINES = (
    Machine("e2-standard-4", 4, 16),
    Machine("e2-highmem-4", 4, 32),
    Machine("e2-standard-8", 8, 32),
    Machine("e2-highmem-8", 8, 64),
    Machine("e2-standard-16", 16, 64),
    Machine("e2-highmem-16", 16, 128),
    Machine("e2-standard-32", 32, 128),
)
GPU_MACHINES = {
    "t4": (
        Machine("n1-standard-4", 4, 15, 1),
        Machine("n1-standard-8", 8, 30, 1),
        Machine("n1-standard-16", 16, 60, 1),
        Machine("n1-standard-16", 16, 60, 2),
        Machine("n1-standard-32", 32, 120, 4),
    ),
    "l4": (
        Machine("g2-standard-4", 4, 16, 1),
        Machine("g2-standard-8", 8, 32, 1),
        Machine("g2-standard-12", 12, 48, 1),
        Machine("g2-standard-16", 16, 64, 1),
        Machine("g2-standard-32", 32, 128, 1),
        Machine("g2-standard-24", 24, 96, 2),
        Machine("g2-standard-48", 48, 192, 4),
        Machine("g2-standard-96", 96, 384, 8),
    ),
    "a100": (
        Machine("a2-highgpu-1g", 12, 85, 1),
        Machine("a2-highgpu-2g", 24, 170, 2),
        Machine("a2-highgpu-4g", 48, 340, 4),
        Machine("a2-highgpu-8g", 96, 680, 8),
    ),
    "a100-80gb": (
        Machine("a2-ultragpu-1g", 12, 170, 1),
        Machine("a2-ultragpu-2g", 24, 340, 2),
        Machine("a2-ultragpu-4g", 48, 680, 4),
        Machine("a2-ultragpu-8g", 96, 1360, 8),
    ),
    "h100": (
        Machine("a3-highgpu-1g", 26, 234, 1),
        Machine("a3-highgpu-2g", 52, 468, 2),
        Machine("a3-highgpu-4g", 104, 936, 4),
        Machine("a3-highgpu-8g", 208, 1872, 8),
    ),
    "h200": (Machine("a3-ultragpu-8g", 224, 2952, 8),),
}


def choose_machine(
    num_cpus: float, memory_gib: float, num_gpus: int = 0, gpu_type: str | None = None, *, spot: bool = False
) -> Machine:
    """The smallest machine with at least these vCPUs and GiB and exactly these GPUs, of those that are offered so.

    Raises ValueError that lists what there is when none fits.
    """
    if num_gpus and gpu_type not in GPU_MACHINES:
        raise ValueError(f"gpu_type = {gpu_type!r}: choose one of {', '.join(GPU_MACHINES)}")
    offered = GPU_MACHINES[str(gpu_type)] if num_gpus else CPU_MACHINES
    counts = sorted({machine.num_gpus for machine in offered})
    if num_gpus not in counts:
        raise ValueError(f"num_gpus = {num_gpus}: machines with {gpu_type} come with {', '.join(map(str, counts))}")
    counted = [machine for machine in offered if machine.num_gpus == num_gpus]
    fitting = [m for m in counted if m.num_cpus >= num_cpus and m.memory_gib >= memory_gib]
    if not fitting:
        names = ", ".join(f"{m.name} ({m.num_cpus} vCPU, {m.memory_gib} GiB)" for m in counted)
        raise ValueError(f"no machine has {num_cpus:g} vCPU and {memory_gib:g} GiB: there are {names}")
    if not spot:
        fitting = [machine for machine in fitting if machine.name not in SPOT_OR_FLEX_ONLY]
    if not fitting:
        raise ValueError(f"{num_gpus} x {gpu_type} is offered as Spot or Flex-start only: set spot, or take 8")
    return min(fitting, key=lambda machine: (machine.num_cpus, machine.memory_gib))
