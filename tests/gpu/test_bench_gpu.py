"""The benchmark of a GPU, on narrow models and this machine's CPU: every part runs, and says what it is to say."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.benchmarks import bench_gpu, gpu_checks
from tests.benchmarks.gpu_cases import Setup

ROOT = Path(__file__).parents[2]
PARTS = [name for name in bench_gpu.PARTS if name != "training_step_compiled"]
"""Compiling takes minutes here; that it works is tested with the trainer."""


def test_every_part_runs_and_says_what_it_found(capfd: pytest.CaptureFixture[str]) -> None:
    bench_gpu.main([*PARTS, "--device", "cpu", "--tiny", "--minutes", "4"])
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines() if line.startswith("{")]
    assert [row for row in rows if "error" in row or not row.get("ok", True)] == []
    assert [row["part"] for row in rows if row["name"] == "part"] == PARTS
    assert rows[-1] == {"name": "end", "not_reached": []}
    said = {name: [row for row in rows if row["name"] == name] for name in PARTS}
    assert len(said["goldens"]) == 16
    assert {row["model"] for row in said["training_step"]} == {row["model"] for row in said["prediction"]}
    assert all(row["operators"] > 100 and row["over_memory_floor"] > 1 for row in said["training_step"])
    assert said["pass"][0]["models"] == 9


def test_what_the_time_does_not_reach_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    bench_gpu.main(["goldens", "resume", "--device", "cpu", "--tiny", "--minutes", "0.0001"])
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert rows[-1]["not_reached"] in (["rest of goldens", "resume"], ["goldens", "resume"])


def test_a_part_that_fails_is_named_and_the_next_follows(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(setup: Setup) -> None:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setitem(bench_gpu.PARTS, "goldens", broken)
    bench_gpu.main(["goldens", "non_finite", "--device", "cpu", "--tiny"])
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert rows[1]["error"] == "RuntimeError: no kernel image is available"
    assert next(row for row in rows if row["name"] == "non_finite")["ok"]


def test_a_wrong_result_is_not_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of the goldens looks."""
    monkeypatch.setattr(gpu_checks, "FLOAT32_TOLERANCE", 1e-9)
    assert not next(gpu_checks.goldens(Setup(device=torch.device("cpu"), tiny=True)))["ok"]


def test_it_needs_the_core_alone() -> None:
    """A borrowed machine has torch and little else."""
    code = "import sys; import tests.benchmarks.bench_gpu; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not loaded & {"dagster", "mlflow", "gcsfs", "matplotlib", "skopt", "rich", "pytest", "orchestration"}
