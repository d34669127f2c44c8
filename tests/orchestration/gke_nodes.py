"""What a GKE node has to give, by Google's published figures and formulas, and the nodes that docs/cloud.md makes.

Nothing here comes from the code under test: sizes of machines are those of a price list, the share that a node keeps
for itself is that of "Plan GKE Standard node sizes" and of the cluster autoscaler's table for Container-Optimized OS.
"""

import json
import re
import shlex
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[2]
MACHINES = json.loads((ROOT / "tests" / "golden" / "gcp" / "machine_types.json").read_text())
GIB = 2**30
SYSTEM_CPUS, SYSTEM_GIB = 0.6, 1.0
"""Requests of GKE's own pods on a node (logging, metrics, DNS, network, metadata, GPU plugin): a generous sum."""


@dataclass(frozen=True)
class Node:
    """One machine of a node pool: what its pods may ask for together (CPUs, bytes, bytes, GPUs)."""

    pool: str
    cpu: float
    memory: float
    disk: float
    gpus: int
    gpu_type: str | None


def allocatable_cpus(vcpus: int) -> float:
    """A node keeps 6 % of its first core, 1 % of the second, 0.5 % of the next two and 0.25 % of the rest."""
    kept = sum(0.06 if core == 0 else 0.01 if core == 1 else 0.005 if core < 4 else 0.0025 for core in range(vcpus))
    return vcpus - kept


def allocatable_memory(gib: float) -> float:
    """A node keeps 25 % of its first 4 GB, 20 % to 8, 10 % to 16, 6 % to 128, 2 % above, 100 MiB, and the kernel's."""
    physical = gib * 1024
    kernel = physical / 64 + 16 + 64 + min(0.00175 * physical, 248)
    steps = [(0, 0.25), (4000, 0.2), (8000, 0.1), (16000, 0.06), (128000, 0.02), (float("inf"), 0.0)]
    kept = sum(share * max(0.0, min(physical, upper) - lower) for (lower, share), (upper, _) in pairwise(steps))
    # The node that Google prints has 0.9 % less than this sum.
    return 0.99 * (physical - kernel - kept - 100) * 2**20


def allocatable_disk(gib: float) -> float:
    """Of the boot disk: 10 % for eviction, and min(half, 6 GiB + 35 %, 100 GiB), after the system's own partitions."""
    capacity = gib * GIB - (0.015635 * gib * GIB + 4.148 * GIB)
    return 0.9 * capacity - min(0.5 * gib, 6 + 0.35 * gib, 100) * GIB


def documented_nodes() -> list[Node]:
    """A node of each pool that the `gcloud container` commands of docs/cloud.md create."""
    text = (ROOT / "docs" / "cloud.md").read_text().replace("\\\n", " ")
    makes_nodes = re.compile(r"gcloud container (clusters|node-pools) create ")
    commands = [shlex.split(line) for line in text.splitlines() if makes_nodes.match(line)]
    return [_node(command) for command in commands]


def _node(command: list[str]) -> Node:
    options = {name: value for name, value in pairwise(command) if name.startswith("--")}
    vcpus, gib = MACHINES["vcpu_and_gib"][options["--machine-type"]]
    accelerator = dict(part.split("=") for part in options.get("--accelerator", "").split(",") if part)
    gpus = int(accelerator.get("count", 0))
    if gpus:
        assert options["--machine-type"] in MACHINES["gpus"][accelerator["type"]][str(gpus)], command
    return Node(
        pool=command[4],
        cpu=allocatable_cpus(vcpus) - SYSTEM_CPUS,
        memory=allocatable_memory(gib) - SYSTEM_GIB * GIB,
        disk=allocatable_disk(float(options.get("--disk-size", 100))),
        gpus=gpus,
        gpu_type=accelerator.get("type"),
    )


def quantity(text: str) -> float:
    """A Kubernetes quantity as a number."""
    match = re.fullmatch(r"([0-9.]+)(m|Ki|Mi|Gi|)", str(text))
    assert match, text
    return float(match[1]) * {"m": 0.001, "": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}[match[2]]


def misfits(pod: dict, node: Node) -> list[str]:
    """Why a pod's JSON cannot be placed on an empty node: what it asks for and there is not; empty where it fits."""
    asked = {"cpu": 0.0, "memory": 0.0, "ephemeral-storage": 0.0, "nvidia.com/gpu": 0.0}
    for container in pod["containers"]:
        sizes = container.get("resources", {})
        requests = {**sizes.get("limits", {}), **sizes.get("requests", {})}
        for name, value in requests.items():
            asked[name] += quantity(value)
    has = {"cpu": node.cpu, "memory": node.memory, "ephemeral-storage": node.disk, "nvidia.com/gpu": node.gpus}
    problems = [f"{name}: {asked[name]:g} of {has[name]:g}" for name in asked if asked[name] > has[name]]
    wanted = pod.get("nodeSelector", {}).get("cloud.google.com/gke-accelerator")
    if wanted != node.gpu_type and wanted is not None:
        problems.append(f"GPU type {wanted}, not {node.gpu_type}")
    tolerated = {item.get("key") for item in pod.get("tolerations", [])}
    if node.gpus and "nvidia.com/gpu" not in tolerated:
        problems.append("GKE taints GPU nodes")
    return problems
