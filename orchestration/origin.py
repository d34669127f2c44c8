"""Runs of the command line as runs of the page: listed with the code location, and executable again."""

import sys

import dagster as dg
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.storage.tags import REPOSITORY_LABEL_TAG
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

LOCATION = "yt8m"
"""The code location's name, as in workspace.yaml and pyproject.toml."""
MODULE = "orchestration.definitions"
REPOSITORY = "__repository__"
"""What Dagster calls the definitions of a module."""
LISTED = {REPOSITORY_LABEL_TAG: f"{REPOSITORY}@{LOCATION}"}
"""Tag by which the pages list a run with the code location."""


def belong_to_the_location(instance: dg.DagsterInstance, run_id: str) -> None:
    """Write down where the run's job comes from, so that pages can open and execute it again."""
    run = instance.get_run_by_id(run_id)
    if run is not None:
        target = LoadableTargetOrigin(executable_path=sys.executable, module_name=MODULE)
        location = ManagedGrpcPythonEnvCodeLocationOrigin(target, location_name=LOCATION)
        origin = RemoteJobOrigin(RemoteRepositoryOrigin(location, REPOSITORY), run.job_name)
        instance.run_storage.replace_job_origin(run, origin)
