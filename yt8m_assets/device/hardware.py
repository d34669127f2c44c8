"""What this machine computes on: torch's build, the driver, the GPUs; and why a GPU that should be there is not."""

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from yt8m_assets.errors import ConfigError

REQUIRE_GPU = "YT8M_REQUIRE_GPU"
"""Environment variable (1 or empty) of steps that must not start without a GPU; set where hints ask for one."""
MIN_DRIVER = {"13": 580, "12": 525, "11": 450}
"""Major version of CUDA that torch was built for -> oldest NVIDIA driver that runs it."""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The facts, as torch and the kernel report them."""

    torch_version: str
    """Version of torch, with its build: 2.13.0+cpu."""
    cuda_build: str | None
    """CUDA version that torch was built for; None for a CPU build."""
    driver: str | None
    """Version of the NVIDIA driver; None where there is none."""
    gpus: tuple[str, ...]
    """Name and memory of each GPU that torch can use."""
    bfloat16: bool
    """Whether the device that would be used computes in bfloat16."""

    @property
    def has_gpu(self) -> bool:
        """Whether torch can use a GPU."""
        return bool(self.gpus)

    @property
    def summary(self) -> str:
        """One line for a log or a tag."""
        build = f"CUDA {self.cuda_build}" if self.cuda_build else "a CPU build"
        driver = f"driver {self.driver}" if self.driver else "no NVIDIA driver"
        return f"{', '.join(self.gpus) or 'CPU only'}; torch {self.torch_version} ({build}), {driver}"

    @property
    def tags(self) -> dict[str, str]:
        """Tags of a tracked run."""
        return {
            "device": ", ".join(self.gpus) or "CPU",
            "driver": self.driver or "none",
            "cuda": self.cuda_build or "none",
            "torch": self.torch_version,
        }

    def why_no_gpu(self) -> str:
        """What to do about a GPU that torch does not see."""
        if self.driver and not self.cuda_build:
            return "this torch is a CPU build: use the image's target cuda, or install torch from a CUDA index"
        if self.driver and self.cuda_build:
            needed = MIN_DRIVER.get(self.cuda_build.split(".")[0], 0)
            if int(self.driver.split(".")[0]) < needed:
                return (
                    f"driver {self.driver} is too old for CUDA {self.cuda_build}, which needs {needed} or newer: "
                    "update the driver (GKE: gpu-driver-version=latest), or install torch built for an older CUDA"
                )
            return "the driver is there, but no device: look at nvidia-smi, CUDA_VISIBLE_DEVICES and LD_LIBRARY_PATH"
        return "there is no NVIDIA driver: use a machine with a GPU, and give the container one (nvidia.com/gpu: 1)"


def find_hardware() -> Hardware:
    """Ask torch and the kernel. Imports torch."""
    import torch

    names = []
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(number)
            names.append(f"{properties.name} ({properties.total_memory / 2**30:.0f} GiB)")
    return Hardware(
        torch_version=torch.__version__,
        cuda_build=torch.version.cuda,
        driver=_driver(),
        gpus=tuple(names),
        bfloat16=torch.cuda.is_bf16_supported(including_emulation=False) if names else True,
    )


def check_gpu(hardware: Hardware, environment: Mapping[str, str] | None = None) -> None:
    """Raises ConfigError with reason and cure where a GPU is required (YT8M_REQUIRE_GPU) and torch sees none."""
    values = os.environ if environment is None else environment
    if values.get(REQUIRE_GPU, "") not in ("", "0") and not hardware.has_gpu:
        raise ConfigError(
            "this step asks for a GPU and would compute on the CPU for days: "
            f"{hardware.summary}. {hardware.why_no_gpu()}"
            f'; "require_gpu": false in YT8M_DEPLOYMENT, or {REQUIRE_GPU}=0, lets it run all the same'
        )


def _driver() -> str | None:
    kernel = Path("/proc/driver/nvidia/version")
    text = kernel.read_text() if kernel.is_file() else _ask_nvidia_smi()
    found = re.search(r"\b(\d{3}\.\d+(?:\.\d+)?)\b", text)
    return found[1] if found else None


def _ask_nvidia_smi() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
