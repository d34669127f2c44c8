"""Training in child processes that are killed: what runs in them, and how to start and await them."""

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from tests.training.support import BERT, MIX, make_recipe, open_store
from yt8m_assets.errors import PartitionBusyError
from yt8m_assets.progress import NullProgress
from yt8m_assets.recipes.schema import ModelRecipe, Recipe
from yt8m_assets.storage import ArtifactStore
from yt8m_assets.tracking import TrackedRun
from yt8m_assets.tracking.record import open_record
from yt8m_assets.training.config import TrainingConfig

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["tests.training.workers", "yt8m_assets.stages.training", "matplotlib.figure", "matplotlib.backends.backend_agg"]
)


class FileRun(TrackedRun):
    """A tracked run that appends every loss to a file, and may end the process at a step."""

    def __init__(self, path: Path, end_step: int | None = None, end_signal: int = signal.SIGKILL) -> None:
        super().__init__(open_record("file run", "training", None, None, None, None))
        self.path, self.end_step, self.end_signal = path, end_step, end_signal

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
        if step == self.end_step and "train/loss" in metrics:
            os.kill(os.getpid(), self.end_signal)


@dataclass
class FileTracking:
    """Opens `FileRun`s."""

    path: Path
    end_step: int | None = None
    end_signal: int = signal.SIGKILL

    @contextmanager
    def run(self, name: str, **details: Any) -> Iterator[FileRun]:
        yield FileRun(self.path, end_step=self.end_step, end_signal=self.end_signal)


@dataclass
class KilledInAWrite(FileTracking):
    """The process is killed at the start of an operation of the thread that writes checkpoints, the `number`th time."""

    operation: str = "put_folder"
    number: int = 3

    @contextmanager
    def run(self, name: str, **details: Any) -> Iterator[FileRun]:
        from yt8m_assets.storage.backend import LocalBackend
        from yt8m_assets.training import checkpoint

        owner: Any = checkpoint if self.operation == "write_tensors" else LocalBackend
        method, numbers = getattr(owner, self.operation), count(1)

        def killed(*arguments: Any) -> Any:
            if threading.current_thread().name.startswith("checkpoint") and next(numbers) == self.number:
                if self.operation == "write_tensors":
                    arguments[0].write_bytes(b"half of a fi")
                os.kill(os.getpid(), signal.SIGKILL)
            return method(*arguments)

        setattr(owner, self.operation, killed)
        yield FileRun(self.path)


def read_losses(path: Path) -> dict[int, float]:
    """Loss by step; a step that was repeated after an interruption must have repeated its loss."""
    losses: dict[int, float] = {}
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        if "train/loss" in entry:
            assert losses.setdefault(entry["step"], entry["train/loss"]) == entry["train/loss"], entry
    return losses


def train_stage(folder: Path, shards: Path, model: ModelRecipe, stage: str, tracking: FileTracking) -> None:
    """Run one stage to its end, or to a signal; SIGTERM ends with the exit code of a preemption."""
    import torch

    from yt8m_assets.stages import training as stages
    from yt8m_assets.training.interruption import TrainingPreempted

    torch.set_num_threads(1)
    recipe = make_recipe(shards, model)
    run = {"pretrain": stages.pretrain, "finetune": stages.finetune}[stage]
    for _ in range(100):
        try:
            run(recipe, open_store(folder), model.key, tracking=tracking, progress=NullProgress(), run_tags={})
            return
        except PartitionBusyError:
            time.sleep(0.05)  # the kernel has not yet released the lock of the process killed before
        except TrainingPreempted as preempted:
            raise SystemExit(preempted.exit_code) from preempted


def train_stage_of(
    folder: Path, shards: Path, pretraining: TrainingConfig, finetuning: TrainingConfig, stage: str, tracking: Any
) -> None:
    """`train_stage` of the tiny Mix model, with arguments that can be sent to a process."""
    train_stage(folder, shards, replace(MIX, pretraining=pretraining, finetuning=finetuning), stage, tracking)


def pass_recipe(shards: Path | str, changes: Mapping[str, Mapping[str, Any]]) -> Recipe:
    """MIX and BERT under the names of `changes`, by their first letter, with other fields of their pre-training.

    They are read from their files, in a folder or below a bucket's URI.
    """
    kinds = {"m": MIX, "b": BERT}
    rows = [(name, kinds[name[0]], fields) for name, fields in changes.items()]
    models = [replace(row, key=name, pretraining=replace(row.pretraining, **fields)) for name, row, fields in rows]
    recipe = make_recipe(Path("here"), *models, memory_budget=1)
    values = {name: getattr(recipe.data, name) for name in ("pretraining", "segments", "test")}
    patterns = {name: tuple(f"{shards}/{Path(uri).name}" for uri in uris) for name, uris in values.items()}
    data = replace(recipe.data, **patterns, segment_classes_uri=f"{shards}/classes.csv")
    return replace(recipe, data=data)


def pass_store(folder: Path, root: str = "") -> ArtifactStore:
    """A store below `root`, by default in a folder, that keeps its copies in the folder."""
    return ArtifactStore(root, folder / "cache") if root else open_store(folder)


def train_pass(folder: Path, root: str, recipe: Recipe, environment: Mapping[str, str]) -> None:
    """Pre-train a recipe's models together, to the end."""
    import torch

    os.environ.update(environment)

    from yt8m_assets.stages.training import train_models
    from yt8m_assets.tracking import NullTracking

    torch.set_num_threads(1)
    options: Any = {"tracking": NullTracking(), "progress": NullProgress(), "run_tags": {}}
    for _ in range(100):
        try:
            list(train_models(recipe, pass_store(folder, root), "pretrained_model", recipe.model_keys, **options))
            return
        except PartitionBusyError:
            time.sleep(0.05)


def start_pass(folder: Path, root: str, shards: Path | str, changes: Mapping[str, Mapping[str, Any]]) -> Any:
    """Start `train_pass` of `pass_recipe` in a child process."""
    process = CONTEXT.Process(target=_pass_of, args=(folder, root, shards, changes, dict(os.environ)))
    process.start()
    return process


def _pass_of(
    folder: Path,
    root: str,
    shards: Path | str,
    changes: Mapping[str, Mapping[str, Any]],
    environment: Mapping[str, str],
) -> None:
    train_pass(folder, root, pass_recipe(shards, changes), environment)


def start(folder: Path, shards: Path, model: ModelRecipe, stage: str, tracking: FileTracking) -> Any:
    """Start `train_stage` in a child process; `model` is MIX with other training configurations."""
    arguments = (folder, shards, model.pretraining, model.finetuning, stage, tracking)
    process = CONTEXT.Process(target=train_stage_of, args=arguments)
    process.start()
    return process


def finish(process: Any, seconds: float = 120) -> int:
    """Wait for a child; its exit code, negative for a signal."""
    process.join(seconds)
    assert process.exitcode is not None, "the child did not end"
    return process.exitcode
