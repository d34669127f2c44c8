"""A GPU that is asked for and not there is said, with the reason and the cure, before days of training on a CPU."""

import pytest
import torch

from yt8m_assets.device.hardware import Hardware, check_gpu, find_hardware
from yt8m_assets.errors import ConfigError

CPU = Hardware(torch_version="2.13.0+cpu", cuda_build=None, driver=None, gpus=(), bfloat16=True)
CUDA = {"torch_version": "2.13.0", "cuda_build": "13.0", "bfloat16": True}
L4 = Hardware(**CUDA, driver="580.65.06", gpus=("NVIDIA L4 (22 GiB)",))


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (CPU, "there is no NVIDIA driver"),
        (
            Hardware(**CUDA, driver="535.183.01", gpus=()),
            r"driver 535\.183\.01 is too old for CUDA 13\.0, which needs 580",
        ),
        (Hardware(**CUDA, driver="580.65.06", gpus=()), "the driver is there, but no device"),
        (
            Hardware(torch_version="2.13.0+cpu", cuda_build=None, driver="580.1", gpus=(), bfloat16=True),
            "this torch is a CPU build: use",
        ),
    ],
)
def test_a_required_gpu_that_is_missing_is_refused_with_its_reason(found: Hardware, reason: str):
    with pytest.raises(ConfigError, match=reason) as caught:
        check_gpu(found, {"YT8M_REQUIRE_GPU": "1"})
    assert found.summary in str(caught.value)
    assert '"require_gpu": false in YT8M_DEPLOYMENT' in str(caught.value)
    for allowed in ({}, {"YT8M_REQUIRE_GPU": "0"}, {"YT8M_REQUIRE_GPU": ""}):
        check_gpu(found, allowed)


def test_a_gpu_that_is_there_is_taken():
    check_gpu(L4, {"YT8M_REQUIRE_GPU": "1"})
    assert L4.summary == "NVIDIA L4 (22 GiB); torch 2.13.0 (CUDA 13.0), driver 580.65.06"


def test_this_machine_is_described_as_torch_sees_it(monkeypatch: pytest.MonkeyPatch):
    found = find_hardware()
    assert found.has_gpu == torch.cuda.is_available()
    assert found.torch_version == torch.__version__
    monkeypatch.setenv("YT8M_REQUIRE_GPU", "1")
    if not found.has_gpu:
        with pytest.raises(ConfigError, match="asks for a GPU"):
            check_gpu(found)
