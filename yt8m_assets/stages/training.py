"""The training stages of the graph: `pretrain` and `finetune`."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Required, TypedDict, Unpack

import numpy as np
import torch
from torch import nn

from yt8m_assets.data.dataset.shards import ShardManifest
from yt8m_assets.device.hardware import check_gpu, find_hardware
from yt8m_assets.evaluation.picking import whole_scores
from yt8m_assets.progress import Progress
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.data import read_shards
from yt8m_assets.stages.indexing import read_index, read_video_ids
from yt8m_assets.stages.lineage import Inputs, current_manifest, resolve_inputs
from yt8m_assets.stages.nodes import Node, plain
from yt8m_assets.storage import ArtifactStore, Manifest, Publication, StageResult
from yt8m_assets.tracking import TrackedRun, Tracking
from yt8m_assets.training.checkpoint import CheckpointStore
from yt8m_assets.training.data import TrainingData
from yt8m_assets.training.interruption import stop_on_signals
from yt8m_assets.training.job import TrainingJob, run_job
from yt8m_assets.training.model_files import MODEL, WEIGHTS, ModelSpec, read_model
from yt8m_assets.training.randomness import derive_seed
from yt8m_assets.training.report import write_report

logger = logging.getLogger(__name__)

REPORTED = (
    "steps",
    "parameters",
    "seconds",
    "examples_per_second",
    "evaluation_seconds",
    "evaluation_share",
    "resumed_from_step",
    "weights",
    "candidates",
    "best_step",
)
"""What of a run's summary becomes metadata of the artifact."""


class Options(TypedDict, total=False):
    """What every training stage is told beside recipe, store and model."""

    tracking: Required[Tracking]
    progress: Required[Progress]
    run_tags: Required[Mapping[str, str]]
    allow_fallback: bool
    start_afresh: bool


def pretrain(recipe: Recipe, store: ArtifactStore, model_key: str, **options: Unpack[Options]) -> StageResult:
    """Train a model on video labels and publish it; an interrupted run is continued.

    Where video labels are held out it is scored on them (GAP@20, Hit@1, PERR, MAP), and an average of the weights
    (`ema_decay`) is published where it scores better.

    Raises TrainingPreempted after SIGTERM or Ctrl-C, NonFiniteError, MissingArtifactError; CheckpointMismatchError when
    checkpoints of another configuration lie there, unless `start_afresh` throws them away; CorruptArtifactError when
    the newest checkpoint is damaged, unless `allow_fallback` continues from an older one.
    """
    return _train(recipe, store, Node("pretrained_model", model_key), **options)


def finetune(recipe: Recipe, store: ArtifactStore, model_key: str, **options: Unpack[Options]) -> StageResult:
    """Train a pre-trained model on rated segments, keep the weights with the best hold-out MAP, and publish them.

    Best checkpoint, EMA and SWA (where configured) compete; the metadata says which won. Errors as `pretrain`.
    """
    return _train(recipe, store, Node("finetuned_model", model_key), **options)


def make_job(recipe: Recipe, store: ArtifactStore, inputs: Inputs, allow_fallback: bool) -> TrainingJob:
    """Resolve a node's inputs to one training run."""
    node = inputs.node
    row = recipe.model(str(node.model))
    finetunes = node.asset == "finetuned_model"
    manifest = inputs.parent("segment_shards" if finetunes else "pretraining_shards")
    shards = read_shards(recipe, store, manifest)
    scored = shards if finetunes else shards_to_score(shards, row.pretraining.evaluation_videos)
    return TrainingJob(
        name=row.key,
        finetunes=finetunes,
        spec=model_spec(recipe, row.key),
        config=row.finetuning if finetunes else row.pretraining,
        data=TrainingData(
            rated=finetunes,
            reading=recipe.data.reading(store.cache),
            num_classes=recipe.data.num_classes,
            memory_budget=recipe.data.memory_budget,
            num_workers=recipe.data.num_workers,
            shards=read_index(store, manifest, shards, held_out=False),
            holdout_shards=read_index(store, manifest, scored, held_out=True),
            held_out=held_out_ids(recipe, store, manifest),
            digest=manifest.digest,
        ),
        seed=derive_seed(recipe.seed, row.key, node.asset),
        checkpoints=checkpoints_of(store, inputs),
        initial_path=store.fetch(inputs.parent("pretrained_model", row.key)) if finetunes else None,
        allow_fallback=allow_fallback,
    )


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


def checkpoints_of(store: ArtifactStore, inputs: Inputs) -> CheckpointStore:
    """The checkpoints of a training with these inputs: only one with equal inputs is continued by it."""
    identity = plain({"code_version": inputs.node.code_version, "config": inputs.config, "parents": inputs.parents})
    return CheckpointStore(store, f"checkpoints/{inputs.node.key}", identity)


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
    node: Node,
    *,
    tracking: Tracking,
    progress: Progress,
    run_tags: Mapping[str, str],
    allow_fallback: bool = False,
    start_afresh: bool = False,
) -> StageResult:
    inputs = resolve_inputs(recipe, store, node)
    if inputs.published is not None:
        # Of a run that ended between publishing and here; not of another recipe's, which is interrupted or under way.
        checkpoints_of(store, inputs).discard()
        return StageResult(inputs.published, reused=True)
    with store.publish(node.key, **inputs.publish_arguments()) as publication:
        job = make_job(recipe, store, inputs, allow_fallback)
        job.checkpoints.refuse_others(start_afresh)
        job.checkpoints.sweep()
        hardware = find_hardware()
        check_gpu(hardware)
        newest = job.checkpoints.peek()
        kind, title = "finetuning" if job.finetunes else "pretraining", recipe.model(job.name).title
        tags = {
            **run_tags,
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
            used = {"segment_shards": "training", "holdout_ratings": "holdout"}
            for asset, context in (used if job.finetunes else {"pretraining_shards": "training"}).items():
                parent = inputs.parent(asset)
                tracked.log_dataset(parent.key, digest=parent.digest, source_uri=store.uri(parent), context=context)
            with stop_on_signals() as stop:
                summary = run_job(job, publication.path, tracked=tracked, task=task, stop=stop)
            _publish_report(recipe, job, summary, publication, tracked)
    job.checkpoints.discard()
    return publication.result


def describe_start(recipe: Recipe, job: TrainingJob, newest: Mapping[str, Any] | None, tracked: TrackedRun) -> str:
    """What a person who opens the log of a training in progress wants to know."""
    config = job.config
    done = f", goes on after step {newest['loop']['step']}" if newest else ""
    where = f"MLflow run {tracked.url or tracked.run_id}" if tracked.run_id else "not tracked"
    return f"{config.num_steps} steps of {config.batch_size} examples{done}; recipe {recipe.name}; {where}"


def _publish_report(
    recipe: Recipe, job: TrainingJob, summary: dict[str, Any], publication: Publication, tracked: TrackedRun
) -> None:
    """Pictures, metadata, and the model's entry in the registry."""
    title = recipe.model(job.name).title
    for path in write_report(publication.report_path, summary, title):
        tracked.log_artifact(path, "report")
    metadata = {name: summary[name] for name in REPORTED}
    metadata |= whole_scores(summary["scores"])
    metadata |= {f"start_{name}": value for name, value in whole_scores(summary["start"] or {}).items()}
    tracked.log_dict(metadata, "summary.json")
    metadata |= {"mlflow_run_id": tracked.run_id, "mlflow_url": tracked.url}
    if job.finetunes:
        score = summary["scores"]["map"]
        text = f"{title}: hold-out MAP@100000 {score:.4f} ({summary['weights']})"
        name = f"yt8m-{recipe.name}-{job.name}"  # champions of two recipes were never compared: their hold-outs differ
        version = tracked.register_model(name, publication.path, metric=score, description=text)
        metadata["registered_version"] = version
        tracked.set_tags({"weights": summary["weights"]})
    tracked.keep(publication.path)
    publication.metadata.update(metadata)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names; other values as they are."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
