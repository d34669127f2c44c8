"""Kept pages, seen from outside: what the kernel counts of this process."""

import resource
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from yt8m_assets.device.allocator import kept_pages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the C library of other systems has no such setting")


def faults_of_steps(steps: int = 8) -> int:
    """Pages that forward and backward passes of a large layer fault in, once they have been made a few times."""
    layer, inputs = nn.Linear(1024, 4096), torch.randn(8, 1024)
    before = 0
    for step in range(8 + steps):
        if step == 8:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        layer.zero_grad()
        (layer(inputs).square().sum() + layer.weight.square().sum()).backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_the_steps_of_a_training_fault_their_pages_in_once() -> None:
    with kept_pages():
        kept = faults_of_steps()
    with kept_pages(enabled=False):
        given_back = faults_of_steps()
    assert kept < given_back / 4


@pytest.mark.parametrize("fails", [False, True])
def test_what_was_kept_goes_back_at_the_end(fails: bool) -> None:
    faults_of_steps()
    before = resident()
    try:
        with kept_pages():
            faults_of_steps()
            held = resident()
            if fails:
                raise RuntimeError
    except RuntimeError:
        assert fails
    assert resident() - before < (held - before) / 2
