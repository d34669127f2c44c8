"""The choice of a machine type."""

import pytest

from orchestration.launchers.machines import ACCELERATORS, CPU_MACHINES, GPU_MACHINES, choose_machine


@pytest.mark.parametrize(
    ("needs", "name"),
    [
        ((2, 8), "e2-standard-4"),
        ((4, 17), "e2-highmem-4"),
        ((5, 16), "e2-standard-8"),
        ((7, 26, 1, "l4"), "g2-standard-8"),
        ((14, 52, 2, "l4"), "g2-standard-24"),
        ((7, 26, 1, "t4"), "n1-standard-8"),
        ((12, 85, 1, "a100"), "a2-highgpu-1g"),
        ((12, 86, 2, "a100"), "a2-highgpu-2g"),
        ((7, 26, 8, "h200"), "a3-ultragpu-8g"),
    ],
)
def test_the_smallest_machine_that_fits_is_chosen(needs: tuple, name: str):
    assert choose_machine(*needs).name == name


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        ((64, 8), "no machine has 64 vCPU and 8 GiB: there are e2-standard-4"),
        ((7, 26, 3, "l4"), "machines with l4 come with 1, 2, 4, 8"),
        ((7, 26, 1, "k80"), "gpu_type = 'k80': choose one of t4, l4"),
        ((7, 90, 1, "a100"), "there are a2-highgpu-1g"),
    ],
)
def test_what_no_machine_holds_is_refused_with_what_there_is(needs: tuple, message: str):
    with pytest.raises(ValueError, match=message):
        choose_machine(*needs)


def test_accelerators_are_names_of_the_api():
    from google.cloud.aiplatform_v1.types import AcceleratorType

    assert set(ACCELERATORS) == set(GPU_MACHINES)
    assert set(ACCELERATORS.values()) <= set(AcceleratorType.__members__)
    assert all(machine.num_gpus == 0 for machine in CPU_MACHINES)
