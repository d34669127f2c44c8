"""`yt8m submit`: one command of this project as one job on a rented machine; nothing of Dagster's stays up for it."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace

import yaml

from orchestration.cli import build_parser
from orchestration.cli_commands import rectangle
from orchestration.cli_mlflow import command_sync_mlflow
from orchestration.hints import (
    IMAGE_GB,
    MACHINES,
    ResourceHints,
    gpu_environment,
    hints_for,
    hints_together,
    vertex_config,
)
from orchestration.launchers.scripts import Job, skypilot_task, slurm_script
from orchestration.launchers.vertex_client import VertexJobs
from orchestration.launchers.vertex_job import build_custom_job, label_value
from orchestration.launchers.vertex_watch import ENDED, JobLogs, follow
from orchestration.parcel import send_recipe
from orchestration.plan import is_data, required_nodes
from orchestration.session import Session, open_session, say
from yt8m_assets.data.records.framing import is_remote
from yt8m_assets.errors import ConfigError, TransientError, Yt8mError
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.lineage import Lineage
from yt8m_assets.stages.nodes import Node, with_ancestors
from yt8m_assets.storage import sha256_text

RUNNABLE = ("materialize", "predict", "doctor")
STATE = "/var/lib/yt8m"
"""The image's folder for what a run writes."""
PASSED_ON = ("YT8M_ANONYMOUS_BUCKETS", "YT8M_KEEP_GENERATIONS", "YT8M_CACHE_GB", "YT8M_BACKFILL")
"""Variables that mean the same there as here."""
WATCH_SECONDS = 10.0
PRICES = "https://cloud.google.com/vertex-ai/pricing"


def command_submit(arguments: argparse.Namespace) -> int:
    """Submit and watch a job, cancel it, or print it; exit code 1 where it did not succeed."""
    inner = parse_job(arguments.job)
    session = open_session(arguments)
    todo, hints = needs(session, inner, arguments)
    if todo is not None and not todo and not arguments.cancel:
        say(f"recipe {session.recipe.name}: everything that this would make is up to date; no machine is needed")
        return 0
    job = describe(session, arguments, hints)
    if arguments.print in ("skypilot", "slurm"):
        try:
            task = skypilot_task(job, STATE, _region(arguments)) if arguments.print == "skypilot" else None
        except ValueError as error:
            raise ConfigError(f"{error}: --image, or YT8M_IMAGE") from error
        sys.stdout.write(yaml.safe_dump(task, sort_keys=False) if task else slurm_script(job))
        return 0
    return on_vertex(session, arguments, job, hints, todo)


def parse_job(words: Sequence[str]) -> argparse.Namespace:
    """The command that is to run elsewhere, checked as it would be there. Raises ConfigError."""
    if not words or words[0] not in RUNNABLE:
        raise ConfigError(f"submit: say what is to run: one of {', '.join(RUNNABLE)}, with its own options after it")
    inner = build_parser().parse_args(list(words))
    if inner.recipe or inner.state:
        raise ConfigError("submit: --recipe and --state go before the command that is to run")
    return inner


def needs(
    session: Session, inner: argparse.Namespace, arguments: argparse.Namespace
) -> tuple[list[Node] | None, ResourceHints]:
    """What the command would make (None: that is not its purpose), and the machine that holds every step of it."""
    recipe, own = session.recipe, session.settings.deployment
    hints = hints_for(recipe, replace(own, gpu_type=arguments.gpu or own.gpu_type, spot=arguments.spot or own.spot))
    if inner.command == "doctor":
        todo, assets = None, ["pretrained_model"]
    else:
        lineage, force = Lineage(recipe, session.store), getattr(inner, "force", False)
        nodes = wanted(recipe, inner)
        todo = [node for node in nodes if force or lineage.state(node) != "current"]
        assets = [node.asset for node in todo or nodes]
    found = hints_together(hints[asset] for asset in assets)
    if arguments.gpu and not found.num_gpus:  # asked for, though a simulated data set needs none
        found = replace(MACHINES["gpu"], gpu_type=arguments.gpu, spot=arguments.spot or own.spot)
    return todo, found


def wanted(recipe: Recipe, inner: argparse.Namespace) -> list[Node]:
    """The nodes that a command brings up to date. Raises ConfigError naming what is unknown."""
    if inner.command == "materialize":
        return required_nodes(recipe, inner.models, inner.until)
    assets, models, shifts = rectangle(recipe, inner)
    cells = [Node(asset, key, shift) for asset in assets for key in models for shift in shifts]
    return [node for node in with_ancestors(recipe, cells) if node in cells or is_data(node)]


def describe(session: Session, arguments: argparse.Namespace, hints: ResourceHints) -> Job:
    """The job in nobody's terms. Its recipe is put into the store. Raises ConfigError for what is missing."""
    if arguments.print != "slurm" and not is_remote(session.settings.storage_uri):
        raise ConfigError(
            f"YT8M_STORAGE = {session.settings.storage_uri}: a job elsewhere cannot reach it; set it to gs://bucket/folder"
        )
    if not 0 < arguments.hours <= 168:
        raise ConfigError(f"--hours {arguments.hours:g}: more than 0, and at most 168")
    recipe_uri = send_recipe(session.recipe, session.store)
    environment = {"YT8M_STORAGE": session.settings.storage_uri, "PYTHONUNBUFFERED": "1"}
    environment |= {name: os.environ[name] for name in PASSED_ON if os.environ.get(name)}
    return Job(
        name=label_value(f"yt8m-{session.recipe.name}-{arguments.job[0]}").replace("_", "-"),
        command=["yt8m", *arguments.job, "--recipe", recipe_uri],
        hours=arguments.hours,
        num_cpus=hints.num_cpus,
        memory_gib=hints.memory_gib,
        disk_gib=hints.disk_gib + IMAGE_GB,
        num_gpus=hints.num_gpus,
        gpu_type=arguments.gpu if arguments.print == "slurm" else hints.gpu_type,  # clusters name GPUs as they like
        shared_memory_gib=hints.shared_memory_gib,
        spot=hints.spot,
        image=arguments.image or os.environ.get("YT8M_IMAGE"),
        environment=environment | gpu_environment(hints, session.settings.deployment),
    )


def _region(arguments: argparse.Namespace) -> str | None:
    return arguments.region or os.environ.get("YT8M_GCP_LOCATION")


def _named(value: str | None, option: str, variable: str) -> str:
    found = value or os.environ.get(variable)
    if not found:
        raise ConfigError(f"submit: {option}, or {variable}: not given")
    return found


def on_vertex(
    session: Session, arguments: argparse.Namespace, job: Job, hints: ResourceHints, todo: list[Node] | None
) -> int:
    """Print, cancel, or make and watch the custom job of a command: one that is alive is watched, not made again."""
    project = _named(arguments.project, "--project", "YT8M_GCP_PROJECT")
    region = _named(arguments.region, "--region", "YT8M_GCP_LOCATION")
    image = _named(job.image, "--image", "YT8M_IMAGE")
    settings = vertex_config(hints, session.settings.deployment)
    settings["env_vars"] = [f"{name}={value}" for name, value in job.environment.items()]
    settings["timeout_seconds"] = round(job.hours * 3600)
    emulator = os.environ.get("YT8M_VERTEX_EMULATOR_HOST")
    jobs = VertexJobs(project, region, emulator)
    # The same command over the same data is the same work, whoever asks for it, and from where.
    run = sha256_text(json.dumps([*job.command, session.settings.storage_uri]))[:32]
    earlier = jobs.find_all(run) if arguments.print is None else []
    alive = next((each for each in earlier if each.state.name not in ENDED), None)
    if arguments.cancel:
        if alive is None:
            raise ConfigError("submit: no job of this command is waiting or running")
        jobs.cancel(alive.name)
        say(f"asked to stop: {jobs.console_url(alive.name)}")
        return 0
    if alive is None:
        account = arguments.service_account or os.environ.get("YT8M_GCP_SERVICE_ACCOUNT")
        request = build_custom_job(
            {"service_account": account},
            settings,
            args=[*job.command, "--state", STATE],
            image=image,
            run_id=run,
            job_name=job.name,
            attempt=len(earlier),
            display_name=job.name,
            restarts=True,
        )
        if arguments.print:
            sys.stdout.write(type(request).to_json(request, always_print_fields_with_no_presence=False) + "\n")
            return 0
        spec = request.job_spec.worker_pool_specs[0].machine_spec
        gpus = f" with {spec.accelerator_count} x {spec.accelerator_type.name}" if spec.accelerator_count else ""
        machine = f"{'a Spot ' if hints.spot else ''}{spec.machine_type}{gpus} in {region}"
        announce(session, arguments, todo, machine)
        alive = jobs.create(request)
        say(f"submitted: {jobs.console_url(alive.name)}")
    else:
        say(f"this runs already, and is watched: {jobs.console_url(alive.name)}")
    return watch(jobs, JobLogs(project, alive.name, emulator), alive.name, arguments)


def announce(session: Session, arguments: argparse.Namespace, todo: list[Node] | None, machine: str) -> None:
    """What it will do and cost at most, and the question whether it shall. Raises KeyboardInterrupt for a no."""
    if todo is not None:
        shown = ", ".join(node.key for node in todo[:4]) + (", ..." if len(todo) > 4 else "")
        say(f"recipe {session.recipe.name}: {len(todo)} to be made ({shown})")
    say(f"machine: {machine}, for {arguments.hours:g} hours at most (--hours)")
    say(f"artifacts: {session.settings.storage_uri}")
    if arguments.price is None:
        say(f"price: not known here; {PRICES} says it for an hour, and --price makes it a sum")
    else:
        most = arguments.hours * arguments.price
        say(f"price: {most:.2f} at most, at {arguments.price:.2f} an hour (--price); bucket and traffic are extra")
    if arguments.yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError("submit: nobody is there to be asked; --yes submits it")
    if not asked("submit it?"):
        raise ConfigError("submit: nothing was submitted")


def asked(question: str) -> bool:
    """Whether the person at the terminal says yes."""
    sys.stdout.write(f"{question} [y/N] ")
    sys.stdout.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def watch(jobs: VertexJobs, logs: JobLogs, name: str, arguments: argparse.Namespace) -> int:
    """Follow a job to its end, and complete MLflow then. Ctrl-C at a terminal asks whether to cancel it."""
    seconds = float(os.environ.get("YT8M_WATCH_SECONDS") or WATCH_SECONDS)
    try:
        job = follow(jobs, logs, name, say, seconds)
    except KeyboardInterrupt:
        if not (sys.stdin.isatty() and asked("\ncancel the job? (else it goes on without being watched)")):
            say("the job goes on; the same command watches it again, with --cancel it ends it")
            raise
        jobs.cancel(name)
        job = follow(jobs, logs, name, say, seconds)
    if job.state.name != "JOB_STATE_SUCCEEDED":
        reason = f": {job.error.message}" if job.error.message else ""
        cure = "the same command goes on from what is in the bucket"
        raise TransientError(f"the job ended as {job.state.name}{reason}; {cure}. Its log: {jobs.logs_url(name)}")
    if arguments.job[0] != "doctor":
        arguments.restore = False
        try:
            command_sync_mlflow(arguments)
        except Yt8mError as error:
            say(f"MLflow was not completed: {error}; `yt8m sync-mlflow` does it")
    return 0
