"""`yt8m doctor` and the job `doctor`: can this machine do what a run needs? One line each, with the cure."""

import os
import secrets
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from yt8m_assets.device.hardware import REQUIRE_GPU, Hardware, find_hardware
from yt8m_assets.errors import ConfigError, Yt8mError, without_credentials
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.storage import ArtifactStore
from yt8m_assets.storage.backend import Backend
from yt8m_assets.tracking import MlflowTracking, Tracking


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    """What was tried."""
    good: bool
    """Whether it works."""
    text: str
    """What was found."""
    cure: str = ""
    """What to do about it."""

    def __str__(self) -> str:
        cure = f"\n       {self.cure}" if self.cure and not self.good else ""
        return f"{'ok  ' if self.good else 'FAIL'}  {self.name}: {self.text}{cure}"


def examine(
    recipe: Recipe, store: ArtifactStore, tracking: Tracking, instance: dg.DagsterInstance, require_gpu: bool
) -> list[Finding]:
    """Try everything a run needs; nothing is left behind. Never raises for what it finds."""
    hardware = find_hardware()
    return [
        judge_gpu(hardware, require_gpu),
        judge_precision(hardware, recipe),
        _tried("storage", lambda: _try_store(store), "see YT8M_STORAGE and the account's role on the bucket"),
        _tried("dagster database", lambda: _try_instance(instance), "see storage: in dagster.yaml, DAGSTER_PG_*"),
        _tried("mlflow", lambda: _try_tracking(tracking), "see MLFLOW_TRACKING_URI; is the server up, and reachable?"),
    ]


def judge_gpu(hardware: Hardware, required: bool) -> Finding:
    """A GPU that is required, or whose driver is there, must be usable."""
    wanted = required or hardware.driver is not None
    return Finding("gpu", hardware.has_gpu or not wanted, hardware.summary, hardware.why_no_gpu())


def judge_precision(hardware: Hardware, recipe: Recipe) -> Finding:
    """A recipe in bfloat16 needs a device that computes in it."""
    settings = [config for model in recipe.models for config in (model.pretraining, model.finetuning)]
    used = {config.precision for config in settings} | {recipe.prediction.precision}
    text = f"recipe {recipe.name} uses {' and '.join(sorted(used))}; the device has " + (
        "bfloat16" if hardware.bfloat16 else "no bfloat16"
    )
    cure = 'set precision = "float32" in the recipe, or use a GPU of the Ampere generation or newer (L4, A100, H100)'
    return Finding("precision", "bfloat16" not in used or hardware.bfloat16, text, cure)


def _tried(name: str, attempt: Callable[[], str], cure: str) -> Finding:
    try:
        return Finding(name, True, attempt())
    except Exception as error:  # noqa: BLE001 whatever is wrong is the finding
        text = str(error).strip().splitlines() or [type(error).__name__]
        own = f"{type(error).__name__}: " if not isinstance(error, Yt8mError) else ""
        return Finding(name, False, without_credentials(f"{own}{text[0]}"), cure)


def _try_store(store: ArtifactStore) -> str:
    backend = store.backend
    folder = f"doctor-{secrets.token_hex(4)}"
    try:
        _write_once(backend, f"{folder}/probe", secrets.token_bytes(1024))
    except BaseException:
        with suppress(Exception):  # the first fault is the one to show
            backend.delete(folder)
        raise
    backend.delete(folder)
    return f"{backend.root_uri}: written, read, not overwritten, deleted"


def _write_once(backend: Backend, name: str, content: bytes) -> None:
    backend.create_exclusive(name, content)
    if backend.read_bytes(name) != content:
        raise ConfigError(f"{backend.root_uri}: what was written was not what was read")
    with suppress(FileExistsError):
        backend.create_exclusive(name, b"second")
        raise ConfigError(f"{backend.root_uri}: an object could be overwritten, so two runs could both publish")


def _try_instance(instance: dg.DagsterInstance) -> str:
    mark = secrets.token_hex(4)
    instance.run_storage.set_cursor_values({"yt8m/doctor": mark})
    if instance.run_storage.get_cursor_values({"yt8m/doctor"}).get("yt8m/doctor") != mark:
        raise ConfigError("what was written was not what was read")
    kind = type(instance.run_storage).__name__
    return f"written and read ({kind}, {instance.get_runs_count()} runs)"


def _try_tracking(tracking: Tracking) -> str:
    if not isinstance(tracking, MlflowTracking):
        return "runs are not tracked"
    client = tracking.client()
    run = client.create_run(tracking.open_experiment(), run_name="doctor", tags={"kind": "doctor"})
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "doctor.txt"
            path.write_text("doctor")
            client.log_artifact(run.info.run_id, str(path))
        client.set_terminated(run.info.run_id)
    finally:
        client.delete_run(run.info.run_id)
    return f"{tracking}: a run and a file were written and deleted"


def doctor_job(recipe: Recipe, step_tags: Any) -> dg.JobDefinition:
    """The job `doctor`: the same examination on the machine, in the container, and under the account of a GPU step."""

    @dg.op(out=dg.Out(dg.Nothing), tags=step_tags, description="Try GPU, precision, storage, database and MLflow.")
    def examine_machine(
        context: dg.OpExecutionContext, store: dg.ResourceParam[ArtifactStore], tracking: dg.ResourceParam[Tracking]
    ) -> None:
        findings = examine(recipe, store, tracking, context.instance, gpu_is_required())
        for finding in findings:
            (context.log.info if finding.good else context.log.error)(str(finding))
        context.add_output_metadata({item.name.replace(" ", "_"): str(item) for item in findings})
        if not all(finding.good for finding in findings):
            raise dg.Failure("\n".join(str(item) for item in findings if not item.good), allow_retries=False)

    @dg.job(
        name="doctor",
        description="The first run of a new deployment: can a step's machine do what a run needs?",
        tags={"dagster/max_runtime": "3600"},
    )
    def doctor() -> None:
        examine_machine()

    return doctor


def gpu_is_required() -> bool:
    """Whether the environment asks for a GPU."""
    return os.environ.get(REQUIRE_GPU, "") not in ("", "0")
