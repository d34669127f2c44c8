"""One command on one machine with GPUs, written down for SkyPilot and for Slurm."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

IMAGE_REGISTRY = "pkg.dev"
"""Google's registries, which Docker on a machine of theirs is introduced to by gcloud."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command and what it needs of a machine."""

    name: str
    """Name for people: letters, digits and dashes."""
    command: Sequence[str]
    """The words of the command."""
    hours: float
    """It is told to stop after so long."""
    num_cpus: float
    """vCPUs."""
    memory_gib: float
    """Memory."""
    disk_gib: int
    """Local disk."""
    num_gpus: int = 0
    """GPUs of the machine."""
    gpu_type: str | None = None
    """t4, l4, a100, a100-80gb, h100 or h200; None: any."""
    shared_memory_gib: float = 0
    """Size of /dev/shm; 0: as it comes."""
    spot: bool = False
    """May run on a machine that can be taken away."""
    image: str | None = None
    """Container image; None: the command is installed where it runs."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that it sees."""


def skypilot_task(job: Job, state: str, region: str | None = None) -> dict[str, Any]:
    """The fields of a SkyPilot task file: the image runs as a container on a machine of Google's.

    `state` is the container's folder for what it writes. Raises ValueError without an image.
    """
    if job.image is None:
        raise ValueError("SkyPilot: an image is needed")
    resources: dict[str, Any] = {
        "infra": f"gcp/{region}" if region else "gcp",
        "cpus": f"{job.num_cpus:g}+",
        "memory": f"{job.memory_gib:g}+",
        "disk_size": job.disk_gib,
        "autostop": {"idle_minutes": 5, "down": True},
    }
    options = ["--rm", "--init", "--network", "host"]  # of the host: there the machine's account is asked for
    if job.num_gpus:
        resources["accelerators"] = f"{str(job.gpu_type).upper()}:{job.num_gpus}"
        options += ["--gpus", "all"]
    if job.spot:
        resources["use_spot"] = True
    if job.shared_memory_gib:
        options += ["--shm-size", f"{job.shared_memory_gib:g}g"]
    for name in job.environment:
        options += ["--env", name]
    words = ["timeout", "--signal", "TERM", f"{job.hours:g}h", "docker", "run", *options, job.image, *job.command]
    task = {
        "name": job.name,
        "resources": resources,
        "envs": dict(job.environment),
        "run": f"{shlex.join([*words, '--state', state])}\n",
    }
    registry = job.image.split("/")[0]
    if registry.endswith(IMAGE_REGISTRY):
        task["setup"] = f"gcloud auth configure-docker {registry} --quiet\n"
    return task


def slurm_script(job: Job) -> str:
    """A script for sbatch; an image runs in Apptainer, without one the command is looked for on the node's path.

    The step gets SIGTERM five minutes before its time is up, and is put back into the queue where its node is taken.
    """
    minutes = max(1, round(job.hours * 60))
    gpu = f"{job.gpu_type}:{job.num_gpus}" if job.gpu_type else str(job.num_gpus)
    settings = {
        "job-name": job.name,
        "nodes": 1,
        "ntasks": 1,
        "cpus-per-task": max(1, round(job.num_cpus)),
        "mem": f"{round(job.memory_gib * 1024)}M",
        **({"gpus": gpu} if job.num_gpus else {}),
        "time": f"{minutes // 1440}-{minutes // 60 % 24:02d}:{minutes % 60:02d}:00",
        "signal": "TERM@300",
        "output": f"{job.name}-%j.log",
    }
    image = f'apptainer exec {"--nv " * bool(job.num_gpus)}--bind "$state" {shlex.quote(f"docker://{job.image}")} '
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH --{name}={value}" for name, value in settings.items()),
        "#SBATCH --requeue",
        "set -euo pipefail",
        *(f"export {name}={shlex.quote(value)}" for name, value in job.environment.items()),
        'state="${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/$SLURM_JOB_NAME-$SLURM_JOB_ID"',
        'mkdir -p "$state"',
        f'srun {image if job.image else ""}{shlex.join(job.command)} --state "$state"',
    ]
    return "\n".join(lines) + "\n"
