"""What a training says of itself: when it starts, and in its artifact and its tracked run when it is through."""

from collections.abc import Mapping
from typing import Any

from yt8m_assets.evaluation.picking import whole_scores
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.storage import Publication
from yt8m_assets.tracking import TrackedRun
from yt8m_assets.training.job import TrainingJob
from yt8m_assets.training.report import write_report
from yt8m_assets.training.validate import tracked_names

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


def describe_start(recipe: Recipe, job: TrainingJob, newest: Mapping[str, Any] | None, tracked: TrackedRun) -> str:
    """What a person who opens the log of a training in progress wants to know."""
    config = job.config
    done = f", goes on after step {newest['loop']['step']}" if newest else ""
    where = f"MLflow run {tracked.url or tracked.run_id}" if tracked.run_id else "not tracked"
    return f"{config.num_steps} steps of {config.batch_size} examples{done}; recipe {recipe.name}; {where}"


def publish_report(
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
    step = int(summary["best_step"] if summary["weights"] == "best" else summary["steps"])
    name = f"step-{step}" if summary["weights"] in ("best", "last") else str(summary["weights"])
    tracked.log_checkpoint(name, step, tracked_names(summary["scores"]), published=True)
    metadata |= {"mlflow_run_id": tracked.run_id, "mlflow_url": tracked.url}
    if job.finetunes and summary["scores"]:
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
