"""Every step of the challenge can be placed on a node that docs/cloud.md creates, by published figures of the nodes."""

import pytest

from orchestration.hints import ResourceHints, hints_for, resource_hints
from orchestration.launchers.machines import ACCELERATORS, CPU_MACHINES, GPU_MACHINES
from tests.orchestration.gke_nodes import (
    MACHINES,
    ROOT,
    allocatable_cpus,
    allocatable_disk,
    allocatable_memory,
    documented_nodes,
    misfits,
)
from tests.orchestration.test_hints import manifest
from yt8m_assets.recipes import load_recipe


def pod(hints: ResourceHints) -> dict:
    return manifest(hints)["spec"]["template"]["spec"]


def test_the_formulas_give_the_node_that_google_prints():
    """e2-standard-4 with a 100 GB disk: 3.92 CPU, 13498416 Ki and 47060071478 bytes, in "Plan node sizes"."""
    assert allocatable_cpus(4) == pytest.approx(3.92)
    assert 0.99 < allocatable_memory(16) / (13498416 * 1024) <= 1
    assert allocatable_disk(100) == pytest.approx(47060071478, rel=0.001)


@pytest.mark.parametrize("step", resource_hints())
@pytest.mark.parametrize("recipe", ["challenge", "beyond"])
def test_every_step_fits_a_documented_node(recipe: str, step: str):
    hints = hints_for(load_recipe(recipe))[step]
    found = {node.pool: misfits(pod(hints), node) for node in documented_nodes()}
    assert [] in found.values(), found


def test_a_step_that_fits_nowhere_is_noticed():
    for wrong in (ResourceHints(disk_gib=200), ResourceHints(num_cpus=8), ResourceHints(memory_gib=32)):
        assert all(misfits(pod(wrong), node) for node in documented_nodes())


def test_the_pools_of_steps_grow_from_nothing_and_back():
    """A pool that is always on would be paid for all month; one without autoscaling would not do for a backfill."""
    text = (ROOT / "docs" / "cloud.md").read_text().replace("\\\n", " ")
    pools = [line for line in text.splitlines() if line.startswith("gcloud container node-pools create")]
    assert len(pools) == 3
    for line in pools:
        assert "--enable-autoscaling" in line
        assert "--num-nodes 0 --min-nodes 0" in line


def test_machines_have_the_sizes_of_the_price_list():
    listed = MACHINES["vcpu_and_gib"]
    for machine in CPU_MACHINES:
        assert [machine.num_cpus, machine.memory_gib] == listed[machine.name], machine
    types = {name.upper().replace("-", "_"): counts for name, counts in MACHINES["gpus"].items()}
    for gpu_type, machines in GPU_MACHINES.items():
        for machine in machines:
            assert [machine.num_cpus, machine.memory_gib] == listed[machine.name], machine
            assert machine.name in types[ACCELERATORS[gpu_type]][str(machine.num_gpus)], machine
