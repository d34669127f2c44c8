"""The custom job that carries one Dagster run on Vertex AI: its settings, their precedence, and the request.

Settings come from the launcher's configuration, then from the `vertex-ai/config` tags of the run's steps, then from
the same tag on the run. Among steps that name machines the one with the most accelerators wins, whole: a machine type
and its accelerators belong together.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dagster import Array, Field, IntSource, Map, Noneable, Shape, StringSource
from dagster._config import validate_config

from orchestration.launchers.machines import MAX_BOOT_DISK_GB, MIN_BOOT_DISK_GB, SPOT_OR_FLEX_ONLY

if TYPE_CHECKING:
    from google.cloud.aiplatform_v1.types import CustomJob

CONFIG_TAG = "vertex-ai/config"
"""Tag of a step or a run; its JSON value holds the fields of `JOB_FIELDS`."""
RUN_LABEL = "dagster-run-id"
ATTEMPT_LABEL = "dagster-attempt"

_MACHINE_FIELDS = ("machine_type", "accelerator_type", "accelerator_count")
_STRATEGIES = ("STANDARD", "SPOT", "FLEX_START")


def _field(kind: Any, description: str) -> Field:
    return Field(Noneable(kind), is_required=False, description=description)


JOB_FIELDS: Mapping[str, Field] = {
    "image": _field(StringSource, "Container image; by default the one the code location was loaded from."),
    "machine_type": _field(StringSource, "Machine type, such as g2-standard-8. Default: e2-standard-4."),
    "accelerator_type": _field(StringSource, "AcceleratorType of the API, such as NVIDIA_L4."),
    "accelerator_count": _field(IntSource, "Accelerators of the machine. Default: 1 when a type is given."),
    "boot_disk_type": _field(StringSource, "pd-ssd, pd-standard or hyperdisk-balanced. Default: the API's."),
    "boot_disk_size_gb": _field(IntSource, f"Boot disk in GB, {MIN_BOOT_DISK_GB} to {MAX_BOOT_DISK_GB}. Default: 100."),
    "timeout_seconds": _field(IntSource, "Vertex AI ends the job after this long. Default: the API's seven days."),
    "scheduling_strategy": _field(StringSource, f"One of {', '.join(_STRATEGIES)}. Default: STANDARD."),
    "max_wait_seconds": _field(IntSource, "How long a FLEX_START job may wait for machines."),
    "env_vars": _field(Array(StringSource), "KEY=VALUE, or KEY to take the value from the launching process."),
    "labels": _field(Map(str, StringSource), "Labels of the job, for the bill."),
}
_SCHEMA = Shape(dict(JOB_FIELDS))


def parse_tag(tags: Mapping[str, str] | None) -> dict[str, Any]:
    """The settings in a step's or a run's tags; empty without the tag.

    Raises ValueError that names the tag when its value is not JSON or holds a field that does not exist.
    """
    text = (tags or {}).get(CONFIG_TAG)
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"tag {CONFIG_TAG}: not JSON: {error}") from error
    result = validate_config(_SCHEMA, value)
    if not result.success:
        reasons = "; ".join(error.message for error in result.errors or [])
        raise ValueError(f"tag {CONFIG_TAG}: {reasons}")
    return {name: item for name, item in value.items() if item is not None}


def _size(settings: Mapping[str, Any]) -> tuple[int, int]:
    cpus = re.search(r"(\d+)g?$", settings.get("machine_type", ""))
    count = settings.get("accelerator_count") or (1 if settings.get("accelerator_type") else 0)
    return int(count), int(cpus.group(1)) if cpus else 0


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    if any(over.get(name) for name in _MACHINE_FIELDS[:2]):
        # A new machine takes its own accelerators, not those of the one it replaces.
        merged = {name: value for name, value in merged.items() if name not in _MACHINE_FIELDS[1:]}
    merged["env_vars"] = [*(base.get("env_vars") or []), *(over.get("env_vars") or [])]
    merged["labels"] = {**(base.get("labels") or {}), **(over.get("labels") or {})}
    return merged | {k: v for k, v in over.items() if v is not None and k not in ("env_vars", "labels")}


def resolve_settings(
    config: Mapping[str, Any], step_tags: Iterable[Mapping[str, str] | None], run_tags: Mapping[str, str]
) -> dict[str, Any]:
    """The settings of one run: configuration, then its largest step's tag, then its own tag."""
    settings = _merge({}, {name: config.get(name) for name in JOB_FIELDS})
    largest = max((parse_tag(tags) for tags in step_tags), key=_size, default={})
    return _merge(_merge(settings, largest), parse_tag(run_tags))


def environment(entries: Sequence[str]) -> dict[str, str]:
    """Names and values of `env_vars`; a later entry wins. Raises ValueError for a name that is not set here."""
    values: dict[str, str] = {}
    for entry in entries:
        name, separator, value = entry.partition("=")
        if not separator:
            if name not in os.environ:
                raise ValueError(f"env_vars: {name} is not set in the process that launches the run")
            value = os.environ[name]
        values[name] = value
    return values


def label_value(text: str) -> str:
    """The text as Google Cloud allows it in a label: lower case, digits, dash and underscore, at most 63."""
    return re.sub(r"[^a-z0-9_-]", "-", text.lower())[:63]


def build_custom_job(
    config: Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    args: Sequence[str],
    image: str,
    run_id: str,
    job_name: str,
    attempt: int,
    display_name: str | None = None,
    restarts: bool = False,
) -> "CustomJob":
    """The CustomJob of one attempt of a run: one worker pool of one machine that runs `args` in `image`.

    Vertex AI's own retries are off unless the command itself goes on where it was (`restarts`): it would start the same
    command again, which Dagster refuses for a run that has begun. Dagster's run monitoring starts a new attempt
    instead, and that resumes.
    """
    from google.cloud.aiplatform_v1 import types
    from google.protobuf.duration_pb2 import Duration

    strategy = settings.get("scheduling_strategy") or "STANDARD"
    if strategy not in _STRATEGIES:
        raise ValueError(f"scheduling_strategy = {strategy!r}: choose one of {', '.join(_STRATEGIES)}")
    machine: dict[str, Any] = {"machine_type": settings.get("machine_type") or "e2-standard-4"}
    if strategy == "STANDARD" and machine["machine_type"] in SPOT_OR_FLEX_ONLY:
        raise ValueError(f"machine_type = {machine['machine_type']}: set scheduling_strategy to SPOT or FLEX_START")
    if settings.get("accelerator_type"):
        kind = settings["accelerator_type"]
        if kind not in types.AcceleratorType.__members__:
            raise ValueError(f"accelerator_type = {kind!r}: not an AcceleratorType of the Vertex AI API")
        machine |= {"accelerator_type": kind, "accelerator_count": settings.get("accelerator_count") or 1}
    scheduling: dict[str, Any] = {
        "disable_retries": not restarts,
        "restart_job_on_worker_restart": restarts,
        "strategy": strategy,
    }
    for name, key in (("timeout_seconds", "timeout"), ("max_wait_seconds", "max_wait_duration")):
        if settings.get(name):
            scheduling[key] = Duration(seconds=settings[name])
    disk = {"boot_disk_size_gb": settings.get("boot_disk_size_gb") or MIN_BOOT_DISK_GB}
    if not MIN_BOOT_DISK_GB <= disk["boot_disk_size_gb"] <= MAX_BOOT_DISK_GB:
        raise ValueError(f"boot_disk_size_gb = {disk['boot_disk_size_gb']}: {MIN_BOOT_DISK_GB} to {MAX_BOOT_DISK_GB}")
    if settings.get("boot_disk_type"):
        disk["boot_disk_type"] = settings["boot_disk_type"]
    env = [{"name": name, "value": value} for name, value in environment(settings.get("env_vars") or []).items()]
    pool = {
        "machine_spec": machine,
        "replica_count": 1,
        "disk_spec": disk,
        "container_spec": {"image_uri": image, "args": list(args), "env": env},
    }
    spec: dict[str, Any] = {"worker_pool_specs": [pool], "scheduling": scheduling}
    for name in ("service_account", "network"):
        if config.get(name):
            spec[name] = config[name]
    if config.get("network_attachment"):
        spec["psc_interface_config"] = {"network_attachment": config["network_attachment"]}
    labels = {label_value(k): label_value(v) for k, v in (settings.get("labels") or {}).items()}
    labels |= {RUN_LABEL: label_value(run_id), ATTEMPT_LABEL: str(attempt), "dagster-job": label_value(job_name)}
    suffix = f"-{attempt}" if attempt else ""
    name = f"{display_name or f'dagster-run-{run_id}'}{suffix}"
    job: dict[str, Any] = {"display_name": name, "job_spec": spec, "labels": labels}
    if config.get("kms_key_name"):
        job["encryption_spec"] = {"kms_key_name": config["kms_key_name"]}
    return types.CustomJob(job)
