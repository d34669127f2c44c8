"""Several models over one reading of the data: what each becomes, alone and together, failing and interrupted."""

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from models import list_models
from tests.memory_tracking import MemoryTracking
from tests.training.support import BERT, FINETUNING, MIX, PRETRAINING, make_recipe, open_store, prepare_store
from yt8m_assets.data.records.framing import ShardFile
from yt8m_assets.errors import NonFiniteError
from yt8m_assets.progress import NullProgress
from yt8m_assets.recipes import load_recipe
from yt8m_assets.recipes.schema import ModelRecipe, Recipe
from yt8m_assets.stages.lineage import resolve_inputs
from yt8m_assets.stages.nodes import Node
from yt8m_assets.stages.passes import plan_passes
from yt8m_assets.stages.training import finetune, make_job, pretrain, train_models
from yt8m_assets.storage import ArtifactStore, StageResult
from yt8m_assets.training import passes as module
from yt8m_assets.training.checkpoint import CheckpointWriter
from yt8m_assets.training.config import TrainingConfig
from yt8m_assets.training.interruption import StopRequest, TrainingPreempted
from yt8m_assets.training.passes import matmul_precision
from yt8m_assets.training.randomness import derive_seed
from yt8m_assets.training.step import Stepper

WINDOW = replace(PRETRAINING, window_frames=5)
NARROW: dict[str, dict[str, Any]] = {
    "gated": {"num_clusters": 4, "hidden_size": 16},
    "bert": {"num_heads": 2, "intermediate_size": 16},
    "mix": MIX.overrides,
}


def family(key: str) -> ModelRecipe:
    """A narrow model of each architecture; some look at windows, some at whole videos."""
    overrides = dict(NARROW[key.split("_")[0]])
    if key == "mix_nextvlad_iter300":
        overrides["num_sampled_frames"] = 40  # more than a video has
    windows = key.startswith("bert") and key != "bert_l3h12"
    training = replace(WINDOW if windows else PRETRAINING, num_steps=9 if key == "bert_first_l2h12" else 6)
    if key == "bert_l3h12":
        training = replace(training, evaluation_videos=0)  # of whole videos it cannot be scored
    if key == "bert_mean_l2h12":
        training = replace(training, ema_decay=0.9, precision="bfloat16")
    values: dict[str, Any] = {"title": key, "architecture": key, "overrides": overrides}
    return ModelRecipe(key=key, pretraining=training, finetuning=FINETUNING, **values)


NINE = tuple(family(key) for key in list_models())
THREE = (MIX, BERT, replace(MIX, key="late", pretraining=replace(PRETRAINING, num_steps=16, checkpoint_every=4)))
"""Of other views and lengths."""


TRAINED = ("pretrained_model", "finetuned_model")


def order_of(recipe: Recipe, store: ArtifactStore, asset: str, key: str) -> int:
    """What the order of a model's examples is drawn from."""
    return make_job(recipe, store, resolve_inputs(recipe, store, Node(asset, key)), False).data.seed


def together(
    recipe: Recipe, store: ArtifactStore, keys: Sequence[str] = (), asset: str = "pretrained_model", **options: Any
) -> dict[str, StageResult]:
    options = {"tracking": MemoryTracking(), "progress": NullProgress(), "run_tags": {}, **options}
    return dict(train_models(recipe, store, asset, keys or recipe.model_keys, **options))


def digests(store: ArtifactStore, recipe: Recipe) -> dict[str, str]:
    return {key: store.require(f"pretrained_model/{key}").digest for key in recipe.model_keys}


def alone(folder: Path, recipe: Recipe) -> dict[str, str]:
    store = prepare_store(folder, recipe)
    for key in recipe.model_keys:
        pretrain(recipe, store, key, tracking=MemoryTracking(), progress=NullProgress(), run_tags={})
    return digests(store, recipe)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> dict[str, str]:
    """Digests of the three, each trained alone."""
    return alone(tmp_path_factory.mktemp("alone"), make_recipe(shards, *THREE, holds_out_labels=True))


@pytest.fixture
def recipe(shards: Path) -> Recipe:
    return make_recipe(shards, *THREE, holds_out_labels=True)


@pytest.mark.parametrize(("budget", "workers"), [(1, 0), (10**9, 0), (1, 2)], ids=["files", "memory", "workers"])
def test_all_nine_are_trained_together_as_each_alone(tmp_path: Path, shards: Path, budget: int, workers: int) -> None:
    first = budget == 1 and not workers
    data: Any = {"memory_budget": budget, "num_workers": workers, "holds_out_labels": first}
    recipe = make_recipe(shards, *(NINE if first else NINE[::4]), **data)
    assert len(plan_passes(recipe, "pretrained_model", recipe.model_keys)) == 1
    expected = alone(tmp_path / "alone", recipe)
    store = prepare_store(tmp_path / "pass", recipe)
    together(recipe, store)
    assert digests(store, recipe) == expected
    assert len(set(expected.values())) == len(expected)


def test_any_grouping_gives_the_same_and_the_next_stage_too(
    tmp_path: Path, recipe: Recipe, three: dict[str, str]
) -> None:
    store = prepare_store(tmp_path, recipe)
    together(recipe, store, ["late", "bert"])
    assert together(recipe, store)["bert"].reused
    assert digests(store, recipe) == three
    orders = {asset: {order_of(recipe, store, asset, key) for key in recipe.model_keys} for asset in TRAINED}
    assert [len(orders[asset]) for asset in TRAINED] == [1, 3], "nothing is read together in fine-tuning"
    tuned = together(recipe, store, asset="finetuned_model")
    store.delete("finetuned_model/bert")
    again = finetune(recipe, store, "bert", tracking=MemoryTracking(), progress=NullProgress(), run_tags={})
    assert again.manifest.digest == tuned["bert"].manifest.digest


def test_a_pass_reads_each_video_once_and_a_model_alone_what_it_uses(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = 0
    plain = ShardFile.read

    def counted(self: ShardFile, start: int, size: int) -> Any:
        nonlocal read
        read += size
        return plain(self, start, size)

    monkeypatch.setattr(ShardFile, "read", counted)
    whole = tuple(replace(family(key), pretraining=PRETRAINING) for key in ("mix_nextvlad_iter300", "bert_l2h12"))
    drawn = replace(MIX, key="drawn", overrides={**MIX.overrides, "num_sampled_frames": 1})

    def bytes_read(*models: ModelRecipe) -> int:
        nonlocal read
        recipe = make_recipe(shards, *models, memory_budget=1)
        store = prepare_store(tmp_path / "+".join(recipe.model_keys), recipe)
        read = 0
        together(recipe, store)
        return read

    once = bytes_read(whole[0])
    assert bytes_read(*whole, drawn) == pytest.approx(once, rel=0.02)
    assert bytes_read(drawn) < 0.75 * once  # in the first epoch each record is read to verify it


def test_who_fails_drops_out_and_a_rerun_trains_it_alone(
    tmp_path: Path, recipe: Recipe, three: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, tracking = prepare_store(tmp_path, recipe), MemoryTracking()
    with monkeypatch.context() as patched:
        patched.setattr(Stepper, "run", failing(Stepper.run, seed_of(recipe, "bert"), NonFiniteError("poison")))
        published: dict[str, StageResult] = {}
        with pytest.raises(NonFiniteError, match="poison") as raised:
            for key, result in train_models(
                recipe, store, "pretrained_model", recipe.model_keys,
                tracking=tracking, progress=NullProgress(), run_tags={},
            ):  # fmt: skip
                published[key] = result
    assert list(published) == ["mix", "late"]
    (note,) = raised.value.__notes__
    assert "bert" in note
    assert "mix, late" in note
    assert {run.tags["model"]: run.status for run in tracking.runs} == {
        "mix": "FINISHED", "bert": "FAILED", "late": "FINISHED",
    }  # fmt: skip
    again = together(recipe, open_store(tmp_path))
    assert [key for key, result in again.items() if not result.reused] == ["bert"]
    assert digests(store, recipe) == three


def seed_of(recipe: Recipe, key: str) -> int:
    return derive_seed(recipe.seed, key, "pretrained_model")


def failing(plain: Callable[..., Any], seed: int, error: BaseException, at: int = 7) -> Callable[..., Any]:
    """`Stepper.run` that fails for the model of a seed."""

    def run(self: Stepper, batch: Any, step: int, rate: float) -> Any:
        if self.seed == seed and step == at:
            raise error
        return plain(self, batch, step, rate)

    return run


def test_an_interrupted_pass_goes_on_with_those_that_lag(
    tmp_path: Path, recipe: Recipe, three: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, plain = prepare_store(tmp_path, recipe), Stepper.run
    names = {seed_of(recipe, key): key for key in recipe.model_keys}
    with monkeypatch.context() as patched:
        patched.setattr(Stepper, "run", failing(plain, seed_of(recipe, "bert"), KeyboardInterrupt(), at=3))
        with pytest.raises(KeyboardInterrupt):
            together(recipe, store)
    steps: list[tuple[str, int]] = []

    def noted(self: Stepper, batch: Any, step: int, rate: float) -> Any:
        steps.append((names[self.seed], step))
        return plain(self, batch, step, rate)

    monkeypatch.setattr(Stepper, "run", noted)
    together(recipe, open_store(tmp_path))
    assert digests(store, recipe) == three
    assert steps[:4] == [("bert", 2), ("late", 2), ("bert", 3), ("late", 3)]  # "mix" had been saved after step 4
    assert steps[4:7] == [("mix", 4), ("bert", 4), ("late", 4)]
    assert len(steps) == 8 + 10 + 14


def test_a_stop_saves_every_model_and_none_waits_for_another(
    tmp_path: Path, recipe: Recipe, three: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, calls = prepare_store(tmp_path, recipe), []
    with monkeypatch.context() as patched:
        for name in ("save", "wait"):
            patched.setattr(CheckpointWriter, name, noting(calls, name, getattr(CheckpointWriter, name)))
        with pytest.raises(TrainingPreempted):
            together(recipe, store, tracking=StopsAt("bert", 6))
    saved = {key: store.list_keys(f"checkpoints/pretrained_model/{key}")[-1] for key in recipe.model_keys}
    assert [int(name.rsplit("-", 1)[-1]) for name in saved.values()] == [6, 6, 5]
    assert calls[-6:] == ["save"] * 3 + ["wait"] * 3
    together(recipe, open_store(tmp_path))
    assert digests(store, recipe) == three


def noting(calls: list[str], name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    """A method that notes its calls."""

    def method(self: Any, *arguments: Any) -> Any:
        calls.append(name)
        return plain(self, *arguments)

    return method


class StopsAt(MemoryTracking):
    """The process is told to end when a model has done a step."""

    def __init__(self, key: str, step: int) -> None:
        super().__init__()
        self.key, self.step = key, step

    def show(self, record: Any) -> Any:
        shown = super().show(record)
        if record.tags["model"] != self.key:
            return shown
        return _Stopping(shown, lambda: os.kill(os.getpid(), signal.SIGTERM), self.step)


class _Stopping:
    def __init__(self, shown: Any, stop: Callable[[], None], step: int) -> None:
        self.shown, self.stop, self.step = shown, stop, step

    def __enter__(self) -> Any:
        run = self.shown.__enter__()
        plain = run.log_metrics

        def log_metrics(metrics: Any, step: int) -> None:
            plain(metrics, step)
            if step == self.step:
                self.stop()

        run.log_metrics = log_metrics
        return run

    def __exit__(self, *error: Any) -> Any:
        return self.shown.__exit__(*error)


def test_models_that_take_other_examples_are_trained_in_other_passes() -> None:
    challenge = load_recipe("challenge")
    keys = list(challenge.model_keys)
    assert plan_passes(challenge, "pretrained_model", keys) == [keys]
    assert plan_passes(challenge, "finetuned_model", keys) == [[key] for key in keys]
    assert plan_passes(challenge, "pretrained_model", []) == []
    beyond = load_recipe("beyond")
    assert plan_passes(beyond, "pretrained_model", beyond.model_keys) == [[*keys, "frame_scorer"]]

    def changed(**changes: dict[str, Any]) -> Recipe:
        rows = [
            replace(row, pretraining=replace(row.pretraining, **changes.get(row.key, {}))) for row in challenge.models
        ]
        return replace(challenge, models=tuple(rows))

    others = {"batch_size": 64, "shuffle_buffer": 99, "windows_per_video": 2, "deterministic": True}
    for field, value in {**others, "float32_matmul_precision": "highest"}.items():
        passes = plan_passes(changed(bert_l3h12={field: value}), "pretrained_model", keys)
        assert passes == [[key for key in keys if key != "bert_l3h12"], ["bert_l3h12"]], field
    recipe = changed(
        bert_l2h12={"num_processes": 2}, bert_l3h12={"num_processes": 2}, mix_nextvlad_iter60={"num_steps": 7}
    )
    assert sorted(map(len, plan_passes(recipe, "pretrained_model", keys))) == [1, 1, 7]


def test_a_gpus_float32_products_are_as_the_training_says_and_a_cpus_as_ever() -> None:
    seen = []
    for device in ("cuda", "cpu"):
        with matmul_precision("high", torch.device(device)):
            seen.append(torch.get_float32_matmul_precision())
    assert seen == ["high", "highest"]
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_pass_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def noting(name: str, device: torch.device) -> Any:
        asked.append(name)
        return nullcontext()

    monkeypatch.setattr(module, "matmul_precision", noting)
    config = TrainingConfig(num_steps=1, float32_matmul_precision="high")
    assert list(module.run_pass({}, StopRequest(), torch.device("cpu"), config)) == []
    assert asked == ["high"]
