"""The training stages of the graph: `pretrain` and `finetune`."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Required, TypedDict, Unpack

import numpy as np
import torch
from torch import nn

from yt8m_assets.data.dataset.packed import Fold
from yt8m_assets.data.dataset.shards import ShardManifest
from yt8m_assets.device.hardware import check_gpu, find_hardware
from yt8m_assets.progress import Progress
from yt8m_assets.recipes.overlay import plain
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.adoption import adopt
from yt8m_assets.stages.data import read_segment_classes, read_shards
from yt8m_assets.stages.failures import raise_worst
from yt8m_assets.stages.indexing import read_index, read_video_ids
from yt8m_assets.stages.lineage import Inputs, Lineage, current_manifest
from yt8m_assets.stages.nodes import ASSETS, Node
from yt8m_assets.stages.passes import plan_passes, training_config
from yt8m_assets.stages.training_report import describe_start, flatten, publish_report
from yt8m_assets.storage import ArtifactStore, Manifest, StageResult
from yt8m_assets.tracking import Tracking
from yt8m_assets.training.checkpoint import CheckpointStore
from yt8m_assets.training.config import TrainingConfig
from yt8m_assets.training.data import TrainingData
from yt8m_assets.training.distributed import Team
from yt8m_assets.training.footprint import cut_to_memory
from yt8m_assets.training.interruption import StopRequest, stop_on_signals
from yt8m_assets.training.job import TrainingJob, run_job
from yt8m_assets.training.model_files import MODEL, TRAINING, WEIGHTS, ModelSpec, read_json, read_model
from yt8m_assets.training.passes import run_pass
from yt8m_assets.training.randomness import derive_seed
from yt8m_assets.training.trainer import Training
from yt8m_assets.training.validate import Judge

logger = logging.getLogger(__name__)

RunTags = Mapping[str, str] | Callable[[str], Mapping[str, str]]
"""Tags of the tracked runs, or what gives a model's."""


class Options(TypedDict, total=False):
    """What every training stage is told beside recipe, store and model."""

    tracking: Required[Tracking]
    progress: Required[Progress]
    run_tags: Required[RunTags]
    allow_fallback: bool
    start_afresh: bool
    judge: Judge | None


def pretrain(recipe: Recipe, store: ArtifactStore, model_key: str, **options: Unpack[Options]) -> StageResult:
    """Train a model on video labels and publish it; an interrupted run is continued.

    Where video labels are held out it is scored on them (GAP@20, Hit@1, PERR, MAP), and an average of the weights
    (`ema_decay`) is published where it scores better.

    Raises TrainingPreempted after SIGTERM or Ctrl-C, NonFiniteError, MissingArtifactError; CheckpointMismatchError when
    checkpoints of another configuration lie there, unless `start_afresh` throws them away; CorruptArtifactError when
    the newest checkpoint is damaged, unless `allow_fallback` continues from an older one.
    """
    return _only(train_models(recipe, store, "pretrained_model", [model_key], **options))


def finetune(recipe: Recipe, store: ArtifactStore, model_key: str, **options: Unpack[Options]) -> StageResult:
    """Train a pre-trained model on rated segments, keep the weights with the best hold-out MAP, and publish them.

    Best checkpoint, EMA and SWA (where configured) compete; the metadata says which won. Errors as `pretrain`.
    """
    return _only(train_models(recipe, store, "finetuned_model", [model_key], **options))


def train_models(
    recipe: Recipe, store: ArtifactStore, asset: str, model_keys: Sequence[str], **options: Unpack[Options]
) -> Iterator[tuple[str, StageResult]]:
    """Train models, those that can read the data together in one pass; yields each as soon as it is published.

    What is up to date is left as it is. If a model fails the others go on; when they are through, its error is raised,
    with a note of all that failed. An interrupted pass is continued: models that lag behind are trained first.
    """
    errors: dict[str, Exception] = {}
    due: dict[str, Inputs] = {}
    published: list[str] = []
    lineage = Lineage(recipe, store)
    adopting = [key for key in model_keys if asset == "pretrained_model" and recipe.model(key).starts_from]
    for key in (key for key in model_keys if key not in adopting):
        try:
            inputs = lineage.inputs(Node(asset, recipe.model(key).key))
        except Exception as error:  # noqa: BLE001 - raised at the end, when the other models are through
            errors[key] = error
            continue
        if inputs.published is None:
            due[key] = inputs
            continue
        # Of a run that ended between publishing and here; not of another recipe's, which is interrupted or under way.
        checkpoints_of(store, inputs).discard()
        published.append(key)
        yield key, StageResult(inputs.published, reused=True)
    for keys in _passes(recipe, asset, list(due), options["progress"]):
        with stop_on_signals() as stop:
            trainings = {key: _train(recipe, store, due[key], stop, **options) for key in keys}
            for key, outcome in run_pass(trainings, stop, Team().device, training_config(recipe, asset, keys[0])):
                if isinstance(outcome, Exception):
                    errors[key] = outcome
                else:
                    published.append(key)
                    yield key, outcome
        if stop.requested:
            break
    for key in adopting:
        try:
            result = adopt(recipe, store, key)
        except Exception as error:  # noqa: BLE001 - raised below
            errors[key] = error
            continue
        published.append(key)
        yield key, result
    raise_worst(errors, published)
    if due and stop.requested:  # too late for a training to save and end
        stop.pass_on()


def _passes(recipe: Recipe, asset: str, model_keys: Sequence[str], progress: Progress) -> Iterator[list[str]]:
    """The passes of some models, cut to the memory that there is before the next begins."""
    for keys in plan_passes(recipe, asset, model_keys):
        settings = {key: (model_spec(recipe, key), training_config(recipe, asset, key)) for key in keys}
        groups, text = cut_to_memory(settings, Team().device)
        if text:
            progress.log(text)
        yield from groups


def _only(results: Iterator[tuple[str, StageResult]]) -> StageResult:
    ((_, result),) = results
    return result


def make_job(
    recipe: Recipe, store: ArtifactStore, inputs: Inputs, allow_fallback: bool, fold: Fold | None = None
) -> TrainingJob:
    """Resolve a node's inputs to one training run; with a fold, to one that its videos are kept out of as well."""
    node = inputs.node
    row = recipe.model(str(node.model))
    finetunes = ASSETS[node.asset].training == "finetuning"
    manifest = inputs.parent("segment_shards" if finetunes else "pretraining_shards")
    shards = read_shards(recipe, store, manifest)
    scored = shards if finetunes else shards_to_score(shards, row.pretraining.evaluation_videos)
    trained, held_out = read_index(store, manifest, shards, held_out=False), held_out_ids(recipe, store, manifest)
    mark = [] if fold is None else [f"fold {fold.number} of {fold.count}"]
    if fold is not None:
        left_out = [replace(shard, fold=replace(fold, inside=True)) for shard in trained]
        held_out = {**held_out, mark[0]: np.concatenate([shard.load().ids for shard in left_out])}
        trained = tuple(replace(shard, fold=replace(fold, inside=False)) for shard in trained)
    config, last_step = training_config(recipe, node.asset, row.key), None
    if refits := node.asset == "refitted_model":
        config, last_step = as_learnt(config, store, inputs.parent("finetuned_model", row.key))
        trained, held_out = read_index(store, manifest, shards), {}
    return TrainingJob(
        name=row.key,
        finetunes=finetunes,
        spec=model_spec(recipe, row.key),
        config=config,
        last_step=last_step,
        data=TrainingData(
            rated=finetunes,
            reading=recipe.data.reading(store.cache),
            num_classes=recipe.data.num_classes,
            memory_budget=recipe.data.memory_budget,
            num_workers=recipe.data.num_workers,
            shards=trained,
            holdout_shards=() if refits else read_index(store, manifest, scored, held_out=True),
            held_out=held_out,
            rated_classes=read_segment_classes(recipe, store, manifest) if finetunes else None,
            digest=manifest.digest,
            # Of pre-training the same for all models, which read together; segments are in memory, each in its order.
            seed=derive_seed(recipe.seed, *([row.seed_key] if finetunes else []), node.asset, "order", *mark),
        ),
        seed=derive_seed(recipe.seed, row.seed_key, node.asset, *mark),
        checkpoints=checkpoints_of(store, inputs, fold),
        initial_path=store.fetch(inputs.parent("pretrained_model", row.key)) if finetunes else None,
        allow_fallback=allow_fallback,
    )


def as_learnt(config: TrainingConfig, store: ArtifactStore, split: Manifest) -> tuple[TrainingConfig, int | None]:
    """How to train on everything what the hold-out has chosen on the split: its average or none, and its step."""
    found = read_json(store.fetch(split, (TRAINING,)) / TRAINING)
    winner = found["weights"]
    decay, last = config.ema_decay if winner == "ema" else None, config.swa_last if winner == "swa" else 0
    config = replace(config, ema_decay=decay, swa_last=last)
    return config, int(found["best"]["step"]) if winner == "best" else int(found["steps"])


def model_spec(recipe: Recipe, model_key: str) -> ModelSpec:
    """The model of a recipe's row."""
    model, data = recipe.model(model_key), recipe.data
    return ModelSpec(
        architecture=model.architecture,
        overrides=dict(model.overrides),
        num_classes=data.num_classes,
        feature_sizes=(data.feature_sizes[0], data.feature_sizes[1]),
        max_frames=data.max_frames,
    )


def checkpoints_of(store: ArtifactStore, inputs: Inputs, fold: Fold | None = None) -> CheckpointStore:
    """The checkpoints of a training with these inputs: only one with equal inputs is continued by it."""
    identity = plain({"code_version": inputs.node.code_version, "config": inputs.config, "parents": inputs.parents})
    asset = inputs.node.asset if fold is None else f"{inputs.node.asset}-{fold.number}"
    return CheckpointStore(store, f"checkpoints/{asset}/{inputs.node.model}", identity)


def shards_to_score(shards: ShardManifest, num_videos: int) -> ShardManifest:
    """As many shards as hold `num_videos` held-out videos: shards are random parts of the data, and few are read."""
    found, videos = [], 0
    for shard in shards.shards:
        if shard.num_held_out and videos < num_videos:
            found.append(shard)
            videos += shard.num_held_out
    return replace(shards, shards=tuple(found))


def held_out_ids(recipe: Recipe, store: ArtifactStore, shards: Manifest) -> Mapping[str, np.ndarray]:
    """Shard -> ids (S11 [n]) of what the rated shards keep out by now; where there are none, what the published do."""
    rated = shards if shards.key == "segment_shards" else current_manifest(recipe, store, Node("segment_shards"))
    return read_video_ids(store, shards if rated is None else rated, held_out=True)


def load_model(store: ArtifactStore, manifest: Manifest, device: torch.device | str = "cpu") -> nn.Module:
    """The model of a pretrained_model or finetuned_model artifact, in evaluation mode on a device.

    Raises CorruptArtifactError when a file is damaged, CheckpointMismatchError when weights and architecture differ.
    """
    return read_model(store.fetch(manifest, only=(MODEL, WEIGHTS)), device, manifest.key)


def _train(
    recipe: Recipe,
    store: ArtifactStore,
    inputs: Inputs,
    stop: StopRequest,
    *,
    tracking: Tracking,
    progress: Progress,
    run_tags: RunTags,
    allow_fallback: bool = False,
    start_afresh: bool = False,
    judge: Judge | None = None,
) -> Training[StageResult]:
    node = inputs.node
    with store.publish(node.key, **inputs.publish_arguments()) as publication:
        job = replace(make_job(recipe, store, inputs, allow_fallback), judge=judge)
        job.checkpoints.refuse_others(start_afresh)
        job.checkpoints.sweep()
        hardware = find_hardware()
        check_gpu(hardware)
        newest = job.checkpoints.peek()
        kind, title = "finetuning" if job.finetunes else "pretraining", recipe.model(job.name).title
        tags = {
            **(run_tags(job.name) if callable(run_tags) else run_tags),
            "asset": node.asset,
            "partition": job.name,
            "recipe": recipe.name,
            "fingerprint": inputs.fingerprint,
            "code_version": node.code_version,
            **hardware.tags,
            **{f"parent.{key}": digest for key, digest in inputs.parents.items()},
        }
        with (
            tracking.run(
                f"{title} {kind}, {recipe.name} {inputs.fingerprint[:6]}",
                kind=kind,
                model=job.name,
                params=flatten(inputs.config),
                tags=tags,
                resume=newest.get("run") if newest else None,
            ) as tracked,
            progress.task(f"{kind} {job.name}", job.config.num_steps, "steps") as task,
        ):
            progress.log(f"{kind} {job.name}: {describe_start(recipe, job, newest, tracked)}; on {hardware.summary}")
            used = [("segment_shards", "segment_shards", "training")]
            if job.data.holdout_shards:
                used.append(("holdout_ratings", "holdout_ratings", "holdout"))
            if not job.finetunes:
                used = [("pretraining_shards", "pretraining_shards", "training")]
                if job.data.holdout_shards:
                    used.append(("pretraining_holdout", "pretraining_shards", "holdout"))
            for name, asset, context in used:
                parent = inputs.parent(asset)
                tracked.log_dataset(name, digest=parent.digest, source_uri=store.uri(parent), context=context)
            summary = yield from run_job(job, publication.path, tracked=tracked, task=task, stop=stop)
            publish_report(recipe, job, summary, publication, tracked)
    job.checkpoints.discard()
    return publication.result
