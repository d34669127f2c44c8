"""Kept pages, seen from outside: what the kernel counts of a process of its own, whose memory nobody else has used."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the C library of other systems has no such setting"),
]
ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, resource
from pathlib import Path
import torch
from yt8m_assets.device.allocator import kept_pages

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

def faults_of_steps(steps=4):
    '''Pages that passes over a layer of 64 MB fault in, once they have been made a few times.'''
    layer, inputs, before = torch.nn.Linear(2048, 8192), torch.randn(8, 2048), 0
    for step in range(4 + steps):
        if step == 4:
            before = faults()
        layer.zero_grad()
        (layer(inputs).square().sum() + layer.weight.square().sum()).backward()
    return faults() - before

torch.set_num_threads(1)
found = {"plain": faults_of_steps()}
for name, fails in (("kept", False), ("failed", True)):
    before = resident()
    try:
        with kept_pages():
            found[name] = faults_of_steps()
            held = resident()
            if fails:
                raise RuntimeError
    except RuntimeError:
        assert fails
    found[name + "_stays"] = (resident() - before) / (held - before)
with kept_pages(enabled=False):
    found["disabled"] = faults_of_steps()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found() -> dict[str, float]:
    command = [sys.executable, "-c", SCRIPT]
    return dict(json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout))


def test_the_steps_of_a_training_fault_their_pages_in_once(found: dict[str, float]) -> None:
    assert found["kept"] < found["plain"] / 4
    assert found["failed"] < found["plain"] / 4


def test_what_was_kept_goes_back_at_the_end(found: dict[str, float]) -> None:
    assert found["kept_stays"] < 0.5
    assert found["failed_stays"] < 0.5


def test_nothing_is_kept_where_it_is_not_asked_for(found: dict[str, float]) -> None:
    assert found["disabled"] > 4 * found["kept"]
