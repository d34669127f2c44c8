"""On a GPU: results, going on, and errors. What it costs there is measured by `make bench-gpu`."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tests.benchmarks import gpu_checks
from tests.benchmarks.gpu_cases import Setup

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU that torch can use"),
]


@pytest.mark.parametrize(
    "check",
    [
        gpu_checks.goldens,
        gpu_checks.short_attention,
        gpu_checks.training_equals_cpu,
        gpu_checks.recorded_steps,
        gpu_checks.resume,
        gpu_checks.non_finite,
        gpu_checks.out_of_memory,
    ],
)
@pytest.mark.parametrize("tiny", [True, False])
def test_a_gpu_does_what_a_cpu_does(check: Callable[[Setup], Iterator[dict[str, Any]]], tiny: bool) -> None:
    rows = list(check(Setup(device=torch.device("cuda"), tiny=tiny)))
    assert rows
    assert [row for row in rows if not row["ok"]] == []
