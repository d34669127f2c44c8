"""Rows F02-F12 and F53 of the failure matrix, as far as checkpoints and whole training runs go."""

import ast
import io
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.memory_tracking import MemoryTracking
from tests.training.support import MIX, make_recipe, open_store, prepare_store, write_shards
from yt8m_assets.assets.models import FALLBACK_TAG
from yt8m_assets.data.dataset.batches import Batch
from yt8m_assets.errors import CheckpointMismatchError, CorruptArtifactError, NonFiniteError
from yt8m_assets.progress import NullProgress, PlainProgress
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.lineage import resolve_inputs
from yt8m_assets.stages.nodes import Node
from yt8m_assets.stages.training import checkpoints_of as checkpoints_of_inputs
from yt8m_assets.stages.training import pretrain
from yt8m_assets.storage import ArtifactStore
from yt8m_assets.training import step as step_module
from yt8m_assets.training import trainer as trainer_module
from yt8m_assets.training.checkpoint import CheckpointStore
from yt8m_assets.training.interruption import TrainingPreempted
from yt8m_assets.training.model_files import read_tensors
from yt8m_assets.training.step import Stepper

ROOT = Path(__file__).parents[2]
KEY = "checkpoints/pretrained_model/mix"


class StopAt(MemoryTracking):
    """Asks for a stop by SIGTERM at a step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def run(self, *arguments: Any, **options: Any) -> Any:
        opened = super().run(*arguments, **options)
        target = self

        class Watched:
            def __enter__(self) -> Any:
                run = opened.__enter__()
                log_metrics = run.log_metrics

                def logging(metrics: Any, step: int) -> None:
                    log_metrics(metrics, step)
                    if step == target.step:
                        os.kill(os.getpid(), 15)

                run.log_metrics = logging  # type: ignore[method-assign]
                return run

            def __exit__(self, *error: Any) -> Any:
                return opened.__exit__(*error)

        return Watched()


def run_pretraining(recipe: Recipe, store: ArtifactStore, **options: Any) -> Any:
    tracking = options.pop("tracking", None) or MemoryTracking()
    return pretrain(recipe, store, "mix", tracking=tracking, progress=NullProgress(), run_tags={}, **options)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recipe]:
    """A folder with a pre-training that was stopped after step 9 of 12: checkpoints of steps 8 and 9."""
    folder = tmp_path_factory.mktemp("interrupted")
    write_shards(folder / "shards")
    recipe = make_recipe(folder / "shards", MIX)
    store = prepare_store(folder, recipe)
    with pytest.raises(TrainingPreempted, match="after step 9"):
        run_pretraining(recipe, store, tracking=StopAt(9))
    return folder, recipe


@pytest.fixture
def case(tmp_path: Path, interrupted: tuple[Path, Recipe]) -> tuple[Path, Recipe]:
    """A copy of the interrupted pre-training to damage."""
    shutil.copytree(interrupted[0], tmp_path / "run", symlinks=True)
    return tmp_path / "run", interrupted[1]


def checkpoint_files(folder: Path, step: int, name: str = "model.safetensors") -> Path:
    [path] = folder.glob(f"artifacts/{KEY}/step-{step:08d}/*/{name}")
    return path


def checkpoints_of(folder: Path, recipe: Recipe) -> CheckpointStore:
    store = open_store(folder)
    inputs = resolve_inputs(recipe, store, Node("pretrained_model", "mix"))
    return checkpoints_of_inputs(store, inputs)


def test_f03_sigterm_saved_the_step_and_the_rerun_continues_there(case: tuple[Path, Recipe]) -> None:
    folder, recipe = case
    tracking = MemoryTracking()
    result = run_pretraining(recipe, open_store(folder), tracking=tracking)
    assert result.manifest.metadata["resumed_from_step"] == 9
    assert [step for step, _ in tracking.runs[0].series("train/loss")] == list(range(1, 13)), "the earlier ones, too"


def test_f03_steps_before_the_interruption_count_for_no_rate(case: tuple[Path, Recipe]) -> None:
    folder, recipe = case
    stream = io.StringIO()
    arguments = {"tracking": MemoryTracking(), "progress": PlainProgress(stream), "run_tags": {}}
    pretrain(recipe, open_store(folder), "mix", **arguments)  # type: ignore[arg-type]
    assert stream.getvalue().splitlines()[-1].startswith("pretraining mix: 12 steps, 3 of them in ")


def test_f03_rates_after_an_interruption_are_of_the_steps_since_and_of_the_time_they_took(
    case: tuple[Path, Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that only steps move, by a second each; a point every five steps, of which the first has one."""
    folder, recipe = case
    recipe = replace(recipe, models=(replace(MIX, pretraining=replace(MIX.pretraining, log_every=5)),))
    state = checkpoints_of(folder, recipe).peek()
    assert state is not None
    seconds, run = [100], Stepper.run

    def ticking(self: Stepper, *arguments: Any) -> torch.Tensor:
        seconds[0] += 1
        return run(self, *arguments)

    clock = SimpleNamespace(perf_counter=lambda: seconds[0], monotonic=time.monotonic)
    monkeypatch.setattr(Stepper, "run", ticking)
    monkeypatch.setattr(trainer_module, "time", clock)
    monkeypatch.setattr("yt8m_assets.training.passes.time", clock)
    tracking = MemoryTracking()
    metadata = run_pretraining(recipe, open_store(folder), tracking=tracking).manifest.metadata
    series = tracking.runs[0].series("train/examples_per_second")
    assert [step for step, _ in series[:-2]] == list(range(1, 10)), "those before the interruption, by a real clock"
    assert series[-2:] == [(10, 8.0), (12, 8.0)]
    assert tracking.runs[0].series("train/step_seconds")[-2:] == [(10, 1.0), (12, 1.0)]
    before = state["loop"]["train_seconds"]
    assert metadata["examples_per_second"] == pytest.approx(12 * 8 / (before + 3), rel=1e-2)


def test_f03_a_stopped_run_is_killed_and_not_failed(tmp_path: Path, interrupted: tuple[Path, Recipe]) -> None:
    recipe, tracking = interrupted[1], StopAt(2)
    store = prepare_store(tmp_path, recipe)
    with pytest.raises(TrainingPreempted):
        run_pretraining(recipe, store, tracking=tracking)
    assert tracking.runs[0].status == "KILLED"
    run_pretraining(recipe, store, tracking=tracking)
    [run] = tracking.runs
    assert (run.status, run.attempt) == ("FINISHED", 2)
    assert [step for step, _ in run.series("train/loss")] == list(range(1, 13))


def test_f06_one_flipped_bit_in_the_weights_is_noticed_before_loading(case: tuple[Path, Recipe]) -> None:
    folder, recipe = case
    path = checkpoint_files(folder, 9)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert read_tensors(path)  # safetensors itself does not notice
    with pytest.raises(CorruptArtifactError, match=r"model\.safetensors: sha256"):
        run_pretraining(recipe, open_store(folder))


@pytest.mark.parametrize("damage", ["cut", "append", "empty", "missing"])
def test_f07_f08_a_damaged_newest_checkpoint_is_an_error_that_names_both(
    case: tuple[Path, Recipe], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder, recipe = case
    path = checkpoint_files(folder, 9, "optimizer.safetensors")
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"cut": content[:-100], "append": content + b"x", "empty": b""}[damage])
    expected = rf"step-00000009.*{KEY}/step-00000008 is older: .*--allow-fallback; .* {FALLBACK_TAG}: true"
    with pytest.raises(CorruptArtifactError, match=expected):
        run_pretraining(recipe, open_store(folder))
    result = run_pretraining(recipe, open_store(folder), allow_fallback=True)
    assert result.manifest.metadata["resumed_from_step"] == 8
    assert "falling back to checkpoints/pretrained_model/mix/step-00000008" in caplog.text


def test_f09_a_checkpoint_of_another_configuration_is_refused_field_by_field(case: tuple[Path, Recipe]) -> None:
    folder, recipe = case
    wider = replace(MIX, overrides={**MIX.overrides, "hidden_size": 32})
    changed = replace(recipe, models=(wider,))
    with pytest.raises(CheckpointMismatchError, match=r"config\.overrides\.hidden_size: the checkpoint has 16.* 32"):
        checkpoints_of(folder, changed).latest()
    with pytest.raises(CheckpointMismatchError, match=r"hidden_size: .*\n.*--start-afresh"):
        run_pretraining(changed, open_store(folder))
    assert checkpoints_of(folder, recipe).latest().state["loop"]["step"] == 9  # type: ignore[union-attr]
    result = run_pretraining(changed, open_store(folder), start_afresh=True)
    assert result.manifest.metadata["resumed_from_step"] == 0


def test_starting_afresh_keeps_what_belongs_to_the_run(case: tuple[Path, Recipe]) -> None:
    folder, recipe = case
    result = run_pretraining(recipe, open_store(folder), start_afresh=True)
    assert result.manifest.metadata["resumed_from_step"] == 9


def test_a_change_of_how_a_run_is_executed_keeps_its_checkpoints(case: tuple[Path, Recipe]) -> None:
    folder, recipe = case
    other = replace(MIX, pretraining=replace(MIX.pretraining, log_every=2, checkpoint_every=7))
    result = run_pretraining(replace(recipe, models=(other,)), open_store(folder))
    assert result.manifest.metadata["resumed_from_step"] == 9


def test_a_run_with_batch_norm_is_not_continued_with_batches_split_otherwise(case: tuple[Path, Recipe]) -> None:
    folder, recipe = case
    other = replace(MIX, pretraining=replace(MIX.pretraining, accumulation=2))
    with pytest.raises(CheckpointMismatchError, match="accumulation"):
        run_pretraining(replace(recipe, models=(other,)), open_store(folder))


def test_f10_nothing_in_the_project_unpickles() -> None:
    forbidden = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    for path in [p for folder in ("models", "yt8m_assets", "orchestration") for p in (ROOT / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not forbidden & {name.split(".")[0] for name in names}, path
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                call = f"{node.value.id}.{node.attr}"
                assert call not in ("torch.load", "torch.save", "pandas.read_pickle", "pd.read_pickle"), path


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_f10_a_malicious_pickle_is_refused_and_never_run(tmp_path: Path, case: tuple[Path, Recipe]) -> None:
    witness = tmp_path / "executed"
    malicious = tmp_path / "model.pt"
    torch.save({"w": Payload(witness)}, malicious)
    with pytest.raises(CorruptArtifactError, match=r"read from \.safetensors files only"):
        read_tensors(malicious)
    renamed = malicious.rename(tmp_path / "model.safetensors")
    with pytest.raises(CorruptArtifactError, match="not a whole safetensors file"):
        read_tensors(renamed)
    folder, recipe = case
    checkpoints = checkpoints_of(folder, recipe)
    key = f"{KEY}/step-00000011"
    with checkpoints.store.publish(key, fingerprint=checkpoints.fingerprint) as publication:
        shutil.copy(renamed, publication.path / "model.pt")
    with pytest.raises(CorruptArtifactError, match=r"model\.pt.*safetensors and state\.json only"):
        checkpoints.latest()
    assert not witness.exists()


BOMB = """
import resource, sys, time
from pathlib import Path
from yt8m_assets.errors import CorruptArtifactError
from yt8m_assets.training.model_files import read_tensors
pages = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (pages + 2**28, pages + 2**28))
for name in sys.argv[1:]:
    started = time.perf_counter()
    try:
        read_tensors(Path(name))
    except CorruptArtifactError:
        if time.perf_counter() - started > 1:
            sys.exit(f"{name}: took too long")
    else:
        sys.exit(f"{name}: was read")
"""


def test_f11_a_header_bomb_is_refused_at_once_with_flat_memory(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    bombs = {
        "header": (2**62).to_bytes(8, "little") + b"{}",
        "tensor": len(header).to_bytes(8, "little") + header,
    }
    for name, content in bombs.items():
        (tmp_path / f"{name}.safetensors").write_bytes(content)
    paths = [str(tmp_path / f"{name}.safetensors") for name in bombs]
    done = subprocess.run([sys.executable, "-c", BOMB, *paths], cwd=ROOT, timeout=120, check=False)
    assert done.returncode == 0


def test_f12_a_failed_run_keeps_its_checkpoint_and_is_marked(
    case: tuple[Path, Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, recipe = case
    run = Stepper.run

    def poisoned(self: Stepper, batch: Batch, step: int, rate: float) -> torch.Tensor:
        if step == 10:
            with torch.no_grad():
                next(iter(self.optimizer.parameters.values())).fill_(float("nan"))
        return run(self, batch, step, rate)

    monkeypatch.setattr(step_module.Stepper, "run", poisoned)
    tracking = MemoryTracking()
    with pytest.raises(NonFiniteError, match=r"step 11 .*videos of the batch: t0"):
        run_pretraining(recipe, open_store(folder), tracking=tracking)
    assert tracking.runs[0].status == "FAILED"
    monkeypatch.undo()
    assert run_pretraining(recipe, open_store(folder)).manifest.metadata["resumed_from_step"] == 10


def test_f53_a_checkpoint_of_another_schema_is_refused_by_name(
    case: tuple[Path, Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, recipe = case
    monkeypatch.setattr("yt8m_assets.training.checkpoint.SCHEMA", 2)
    with pytest.raises(CheckpointMismatchError, match="schema: the checkpoint has 1, this run has 2"):
        checkpoints_of(folder, recipe).latest()


def test_f53_the_golden_checkpoint_of_schema_1_still_loads(tmp_path: Path) -> None:
    golden = ROOT / "tests/golden/checkpoints"
    shutil.copytree(golden, tmp_path / "store")
    checkpoints = CheckpointStore(
        ArtifactStore(str(tmp_path / "store"), tmp_path), "checkpoints/golden", {"model": "m"}
    )
    found = checkpoints.latest()
    assert found is not None
    assert found.state["loop"]["step"] == 3
    assert found.groups["model"]["w"].tolist() == [1.0, 2.0]
    assert found.groups["optimizer"]["m/w"].tolist() == [0.5, -0.5]


def test_f02_after_an_exception_the_run_continues_from_its_checkpoint(
    case: tuple[Path, Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, recipe = case
    monkeypatch.setattr(step_module.Stepper, "run", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_pretraining(recipe, open_store(folder))
    monkeypatch.undo()
    started = time.monotonic()
    result = run_pretraining(recipe, open_store(folder))
    assert result.manifest.metadata["resumed_from_step"] == 9
    assert time.monotonic() - started < 60
