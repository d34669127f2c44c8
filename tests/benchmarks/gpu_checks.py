"""Whether a device computes what a CPU does, goes on where it was cut off, and says what is wrong."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from models import short_attention as short
from tests.benchmarks.gpu_cases import Setup
from tests.models.golden_harness import CASES, Golden
from tests.training.support import BERT, MIX, make_recipe, open_store, prepare_store, write_shards
from yt8m_assets.errors import NonFiniteError, OutOfMemoryError
from yt8m_assets.progress import NullProgress
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.training import train_models
from yt8m_assets.tracking import NullTracking, TrackedRun

Row = dict[str, Any]
FLOAT32_TOLERANCE = 1e-4
"""Of a probability, against the original's."""
BFLOAT16_FACTOR = 2.0
"""How much further from the original bfloat16 may be on a device than on this machine's CPU."""


def goldens(setup: Setup) -> Iterator[Row]:
    """Every architecture's probabilities against the original's own, in float32 and in bfloat16."""
    for case in CASES:
        golden = Golden(case if setup.tiny else f"{case}__fulldim")
        for run in (run for run in golden.info["runs"] if not run.startswith("train")):
            model = golden.build()
            golden.load(model, run)
            expected = golden.arrays[f"{run}/predictions"]
            on_cpu = _distance(model, golden, run, expected, torch.device("cpu"), half=True)
            model = model.to(setup.device)
            single = _distance(model, golden, run, expected, setup.device, half=False)
            half = _distance(model, golden, run, expected, setup.device, half=True)
            ok = single <= FLOAT32_TOLERANCE and half <= BFLOAT16_FACTOR * on_cpu + FLOAT32_TOLERANCE
            yield {
                "case": golden.name,
                "run": run,
                "float32": single,
                "bfloat16": half,
                "cpu_bfloat16": on_cpu,
                "ok": ok,
            }


def _distance(model: Any, golden: Golden, run: str, expected: Any, device: torch.device, half: bool) -> float:
    inputs = [None if value is None else value.to(device) for value in golden.inputs(run)]
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=half):
        found = model(*inputs).probabilities.float().cpu().numpy()
    return float(np.abs(found - expected).max())


def short_attention(setup: Setup) -> Iterator[Row]:
    """The kernel for a window's few frames against float64, and that it is what ran."""
    for num_frames, num_heads, size, dtype, tolerance in (
        (5, 12, 96, torch.bfloat16, 4e-3),
        (5, 8, 144, torch.bfloat16, 4e-3),
        (5, 8, 16, torch.float32, 1e-5),
        (8, 3, 200, torch.float32, 1e-5),
        (1, 2, 3, torch.float32, 1e-5),
    ):
        projected = torch.randn(33, num_frames, 3 * num_heads * size, device=setup.device, dtype=dtype)
        expected = short.attention(projected.double(), num_heads)
        distance = float((short.short_attention(projected, num_heads) - expected).norm() / expected.norm())
        ran = setup.device.type != "cuda" or short.kernel.works
        yield {
            "frames": num_frames,
            "heads": num_heads,
            "size": size,
            "distance": distance,
            "ok": ran and distance < tolerance,
        }


def training_equals_cpu(setup: Setup, num_steps: int = 20) -> Iterator[Row]:
    """Losses of a training without dropout in float32, on the device and on the CPU."""
    small = replace(setup, device=torch.device("cpu"))
    for key in ("bert_mean_l2h12", "gated_netvlad_h1024c16"):
        losses = []
        for place in (small, setup):
            spec = place.spec(key)
            dropout = {"dropout": 0.0} if key.startswith("bert") else {}
            cut = _Narrow(device=place.device, tiny=place.tiny, overrides={**spec.overrides, **dropout})
            stepper, batch = cut.stepper(key, precision="float32", batch_size=8), cut.batch(key).rows(slice(0, 8))
            losses.append([float(stepper.run(batch, step, 1e-3)) for step in range(num_steps)])
            stepper.check()
        relative = float(np.max(np.abs(np.subtract(*losses)) / np.abs(losses[0])))
        fell = losses[1][-1] < losses[1][0]
        yield {"model": key, "steps": num_steps, "relative": relative, "learned": fell, "ok": fell and relative < 1e-2}


class _Narrow(Setup):
    """With other options of the model."""

    def __init__(self, *, device: torch.device, tiny: bool, overrides: Mapping[str, Any]) -> None:
        super().__init__(device=device, tiny=tiny)
        object.__setattr__(self, "overrides", dict(overrides))

    def spec(self, key: str) -> Any:
        return replace(super().spec(key), overrides=self.overrides)  # type: ignore[attr-defined]


class _Cut(NullTracking):
    """Ends a training, as a fault would, when it reports a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    @contextmanager
    def show(self, record: Any) -> Iterator[TrackedRun]:
        run, until = TrackedRun(record), self.step
        log = run.log_metrics

        def log_metrics(metrics: Mapping[str, float], step: int) -> None:
            log(metrics, step)
            if step >= until:
                raise InterruptedError("cut off here")

        run.log_metrics = log_metrics  # type: ignore[method-assign]
        yield run


def resume(setup: Setup) -> Iterator[Row]:
    """A training that is cut off and goes on publishes the same bytes as one that is not, with `deterministic`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder / "shards")
        models = [
            replace(model, pretraining=replace(model.pretraining, deterministic=True, precision="bfloat16"))
            for model in (MIX, BERT)
        ]
        recipe = make_recipe(folder / "shards", *models)
        whole = _digests(recipe, folder / "whole", NullTracking())
        for attempt in (_Cut(8), NullTracking()):
            try:
                found = _digests(recipe, folder / "cut", attempt)
            except InterruptedError:
                continue
        yield {"models": list(whole), "ok": found == whole}


def _digests(recipe: Recipe, folder: Path, tracking: NullTracking) -> dict[str, str]:
    store = open_store(folder) if folder.exists() else prepare_store(folder, recipe)
    options: Any = {"tracking": tracking, "progress": NullProgress(), "run_tags": {}}
    with patch("yt8m_assets.training.report.plot_curves"):  # a borrowed machine may have no matplotlib
        made = train_models(recipe, store, "pretrained_model", recipe.model_keys, **options)
        return {key: result.manifest.digest for key, result in made}


def recorded_steps(setup: Setup, num_steps: int = 8) -> Iterator[Row]:
    """Steps that are replayed from a CUDA graph leave the weights and moments of steps launched kernel by kernel."""
    for key in ("bert_mean_l2h12", "gated_netvlad_h1024c16", "mix_nextvlad_iter60"):
        found, replayed = [], 0
        for recorded in (False, True):
            stepper, batch = setup.stepper(key, cuda_graphs=recorded), setup.batch(key)
            losses = [float(stepper.run(batch, step, 1e-3)) for step in range(num_steps)]
            stepper.check()
            state = [value.detach() for value in (*stepper.model.parameters(), *stepper.model.buffers())]
            state += stepper.optimizer.state_tensors().values()
            found.append((losses, state))
            replayed += len(stepper.graphs.graphs) if stepper.graphs is not None else 0
        (plain, before), (graphed, after) = found
        apart = max(float((a.double() - b.double()).abs().max()) for a, b in zip(before, after, strict=True))
        relative = float(np.max(np.abs(np.subtract(plain, graphed)) / np.abs(plain)))
        equal = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        ok = relative < 1e-3 and replayed == (setup.device.type == "cuda")
        yield {"model": key, "recorded": replayed, "bit_identical": equal, "apart": apart, "loss": relative, "ok": ok}


def non_finite(setup: Setup) -> Iterator[Row]:
    """A step with a loss that is no number changes no weight, blocks those after it, and is named with its videos."""
    for first in (0, 6):  # launched kernel by kernel, and replayed
        stepper, batch = setup.stepper("bert_mean_l2h12"), setup.batch("bert_mean_l2h12")
        for step in range(first):
            stepper.run(batch, step, 1e-3)
        before = {name: value.detach().clone() for name, value in stepper.model.named_parameters()}
        poisoned = replace(batch, labels=batch.labels.clone().fill_(float("nan")))
        said = ""
        try:
            for step, part in enumerate((poisoned, batch), start=first):
                stepper.run(part, step, 1e-3)
            stepper.check()
        except NonFiniteError as error:
            said = str(error)
        same = all(torch.equal(value, before[name]) for name, value in stepper.model.named_parameters())
        yield {"said": said[:120], "ok": same and said.startswith(f"step {first + 1} ") and "v00000" in said}


def out_of_memory(setup: Setup) -> Iterator[Row]:
    """A step that does not fit says which settings to lower."""
    if setup.device.type != "cuda":
        yield {"skipped": "a CPU's memory has no limit that a test may reach"}
        return
    stepper, batch = setup.stepper("gated_netvlad_h1024c16"), setup.batch("gated_netvlad_h1024c16")
    setup.wait()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(setup.device).total_memory
    said = ""
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated(setup.device) + 2**20) / total)
    try:
        stepper.run(batch, 0, 1e-3)
        setup.wait()
    except OutOfMemoryError as error:
        said = str(error)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    yield {"said": said[:200], "ok": "lower batch_size" in said}
