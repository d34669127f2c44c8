"""The training stages of the graph: `pretrain`, `finetune`, and the import of finished weights."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from models import load_tf_variables
from yt8m_assets.errors import ConfigError
from yt8m_assets.evaluation.picking import whole_scores
from yt8m_assets.progress import Progress
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.data import read_shards, read_video_ids
from yt8m_assets.stages.hardware import check_gpu, find_hardware
from yt8m_assets.stages.lineage import Inputs, Node, current_manifest, plain, resolve_inputs
from yt8m_assets.storage import ArtifactStore, Manifest, Publication, StageResult
from yt8m_assets.tracking import TrackedRun, Tracking
from yt8m_assets.training.artifacts import ModelSpec, load_model, write_model
from yt8m_assets.training.checkpoint import CheckpointStore
from yt8m_assets.training.distributed import run_on_ranks
from yt8m_assets.training.evaluate_videos import shards_to_score
from yt8m_assets.training.inputs import HeldOut
from yt8m_assets.training.interruption import stop_on_signals
from yt8m_assets.training.job import TrainingJob, checkpoint_key, run_job
from yt8m_assets.training.report import write_report
from yt8m_assets.training.result import num_parameters

__all__ = ["finetune", "load_model", "pretrain", "publish_imported"]

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


def pretrain(
    recipe: Recipe,
    store: ArtifactStore,
    model_key: str,
    *,
    tracking: Tracking,
    progress: Progress,
    run_tags: Mapping[str, str],
    allow_fallback: bool = False,
    start_afresh: bool = False,
) -> StageResult:
    """Train a model on video labels and publish it; an interrupted run is continued.

    Where video labels are held out it is scored on them (GAP@20, Hit@1, PERR, MAP), and an average of the weights
    (`ema_decay`) is published where it scores better.

    Raises TrainingPreempted after SIGTERM or Ctrl-C, NonFiniteError, MissingArtifactError; CheckpointMismatchError when
    checkpoints of another configuration lie there, unless `start_afresh` throws them away; CorruptArtifactError when
    the newest checkpoint is damaged, unless `allow_fallback` continues from an older one.
    """
    node = Node("pretrained_model", model_key)
    return _train(recipe, store, node, tracking, progress, run_tags, allow_fallback, start_afresh)


def finetune(
    recipe: Recipe,
    store: ArtifactStore,
    model_key: str,
    *,
    tracking: Tracking,
    progress: Progress,
    run_tags: Mapping[str, str],
    allow_fallback: bool = False,
    start_afresh: bool = False,
) -> StageResult:
    """Train a pre-trained model on rated segments, keep the weights with the best hold-out MAP, and publish them.

    Best checkpoint, EMA and SWA (where configured) compete; the metadata says which won. Errors as `pretrain`.
    """
    node = Node("finetuned_model", model_key)
    return _train(recipe, store, node, tracking, progress, run_tags, allow_fallback, start_afresh)


def make_job(recipe: Recipe, store: ArtifactStore, inputs: Inputs, allow_fallback: bool) -> TrainingJob:
    """Resolve a node's inputs to one training run."""
    node = inputs.node
    row = recipe.model(str(node.model))
    finetunes = node.asset == "finetuned_model"
    shards_asset = "segment_shards" if finetunes else "pretraining_shards"
    shards = read_shards(recipe, store, inputs.parent(shards_asset))
    num_scored = row.pretraining.evaluation_videos
    return TrainingJob(
        asset=node.asset,
        model_key=row.key,
        spec=ModelSpec.of(recipe, row.key),
        config=row.finetuning if finetunes else row.pretraining,
        data=recipe.data,
        train_uris=tuple(shards.uris(held_out=False)),
        holdout_uris=tuple(shards.uris(held_out=True) if finetunes else shards_to_score(shards, num_scored)),
        held_out=_held_out(recipe, store, inputs.parent(shards_asset)),
        shards_digest=inputs.parent(shards_asset).digest,
        seed=recipe.seed,
        initial_path=store.fetch(inputs.parent("pretrained_model", row.key)) if finetunes else None,
        identity=run_identity(inputs),
        allow_fallback=allow_fallback,
    )


def run_identity(inputs: Inputs) -> dict[str, Any]:
    """What a checkpoint must have in common with a run of these inputs to be continued by it."""
    return plain({"code_version": inputs.node.code_version, "config": inputs.config, "parents": inputs.parents})


def _held_out(recipe: Recipe, store: ArtifactStore, shards: Manifest) -> HeldOut:
    """What the published shards keep out, and what the rated shards do by now."""
    own = read_video_ids(store, shards, held_out=True)
    rated = shards if shards.key == "segment_shards" else current_manifest(recipe, store, Node("segment_shards"))
    by_shard = own if rated is None or rated is shards else read_video_ids(store, rated, held_out=True)
    return HeldOut(tuple(video_id for ids in own.values() for video_id in ids), by_shard)


def _train(
    recipe: Recipe,
    store: ArtifactStore,
    node: Node,
    tracking: Tracking,
    progress: Progress,
    run_tags: Mapping[str, str],
    allow_fallback: bool,
    start_afresh: bool,
) -> StageResult:
    inputs = resolve_inputs(recipe, store, node)
    if inputs.published is not None:
        # Of a run that ended between publishing and here; not of another recipe's, which is interrupted or under way.
        CheckpointStore(store, checkpoint_key(node), run_identity(inputs)).discard()
        return StageResult(inputs.published, reused=True)
    with store.publish(node.key, **inputs.publish_arguments()) as publication:
        job = make_job(recipe, store, inputs, allow_fallback)
        checkpoints = job.checkpoints(store)
        checkpoints.refuse_others(start_afresh)
        checkpoints.sweep()
        _run(recipe, store, job, inputs, publication, tracking, progress, run_tags)
    checkpoints.discard()
    assert publication.manifest is not None
    return StageResult(publication.manifest)


def _run(
    recipe: Recipe,
    store: ArtifactStore,
    job: TrainingJob,
    inputs: Inputs,
    publication: Publication,
    tracking: Tracking,
    progress: Progress,
    run_tags: Mapping[str, str],
) -> None:
    kind = "finetuning" if job.finetunes else "pretraining"
    title = recipe.model(job.model_key).title
    hardware = find_hardware()
    check_gpu(hardware)
    newest = job.checkpoints(store).peek()
    tags = {
        **run_tags,
        "asset": job.asset,
        "partition": job.model_key,
        "recipe": recipe.name,
        "fingerprint": inputs.fingerprint,
        "code_version": inputs.node.code_version,
        **hardware.tags,
        **{f"parent.{key}": digest for key, digest in inputs.parents.items()},
    }
    with (
        tracking.run(
            f"{title} {kind}, {recipe.name} {inputs.fingerprint[:6]}",
            kind=kind,
            model=job.model_key,
            params=flatten(inputs.config),
            tags=tags,
            resume_id=newest["loop"]["run_id"] if newest else None,
        ) as tracked,
        progress.task(f"{kind} {job.model_key}", job.config.num_steps, "steps") as task,
    ):
        progress.log(f"{kind} {job.model_key}: {describe_start(recipe, job, newest, tracked)}; on {hardware.summary}")
        shards = inputs.parent("segment_shards" if job.finetunes else "pretraining_shards")
        tracked.log_dataset(shards.key, digest=shards.digest, source_uri=store.uri(shards), context="training")
        if job.finetunes:
            ratings = inputs.parent("holdout_ratings")
            tracked.log_dataset(ratings.key, digest=ratings.digest, source_uri=store.uri(ratings), context="holdout")
        with stop_on_signals() as stop:
            run = run_on_ranks if job.config.num_processes > 1 else run_job
            summary = run(job, store, publication.path, tracked=tracked, task=task, stop=stop)
        _publish_report(recipe, job, summary, publication, tracked)


def describe_start(recipe: Recipe, job: TrainingJob, newest: Mapping[str, Any] | None, tracked: TrackedRun) -> str:
    """What a person who opens the log of a training in progress wants to know."""
    config = job.config
    done = f", goes on after step {newest['loop']['step']}" if newest else ""
    where = f"MLflow run {tracked.url or tracked.run_id}" if tracked.run_id else "not tracked"
    return f"{config.num_steps} steps of {config.batch_size} examples{done}; recipe {recipe.name}; {where}"


def registered_name(recipe: Recipe, model_key: str) -> str:
    """A model's name in the registry: champions of two recipes were never compared, their hold-outs differ."""
    return f"yt8m-{recipe.name}-{model_key}"


def _publish_report(
    recipe: Recipe, job: TrainingJob, summary: dict[str, Any], publication: Publication, tracked: TrackedRun
) -> None:
    """Pictures, metadata, and the model's entry in the registry."""
    title = recipe.model(job.model_key).title
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
        name = registered_name(recipe, job.model_key)
        version = tracked.register_model(name, publication.path, metric=score, description=text)
        metadata["registered_version"] = version
        tracked.set_tags({"weights": summary["weights"]})
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


def publish_imported(
    recipe: Recipe,
    store: ArtifactStore,
    asset: str,
    model_key: str,
    variables: Mapping[str, np.ndarray],
    num_steps: int | None = None,
) -> StageResult:
    """Publish TensorFlow variables (names of SPEC section 12) as a pretrained_model or finetuned_model of the recipe.

    `num_steps` is the number of steps they were trained for (by default the recipe's), where the learning-rate
    schedule of fine-tuning goes on. A fine-tuned model that is imported needs no pre-trained one: where none is
    published, the same weights stand in for it. Raises ValueError naming what is missing, unused or mis-shaped, and
    MissingArtifactError when the data is not there.
    """
    if asset not in ("pretrained_model", "finetuned_model"):
        raise ConfigError(f"asset = {asset!r}: choose pretrained_model or finetuned_model")
    row = recipe.model(model_key)
    config = row.pretraining if asset == "pretrained_model" else row.finetuning
    spec = ModelSpec.of(recipe, model_key)
    model = spec.build()
    load_tf_variables(model, dict(variables))  # type: ignore[arg-type]
    if asset == "finetuned_model" and current_manifest(recipe, store, Node("pretrained_model", model_key)) is None:
        publish_imported(recipe, store, "pretrained_model", model_key, variables)
    inputs = resolve_inputs(recipe, store, Node(asset, model_key))
    steps = config.num_steps if num_steps is None else num_steps
    training = {
        "steps": steps,
        "examples": steps * config.batch_size,
        "optimizer_steps": 0,
        "weights": "imported",
        "candidates": {},
        "start": None,
        "best": None,
        "evaluations": [],
    }
    with torch.no_grad(), store.publish(inputs.node.key, **inputs.publish_arguments()) as publication:
        write_model(publication.path, spec, dict(model.state_dict()), training)
        publication.metadata.update(
            {"imported": True, "weights": "imported", "steps": steps, "parameters": num_parameters(model)}
        )
    assert publication.manifest is not None
    return StageResult(publication.manifest)
