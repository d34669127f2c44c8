"""Materialises the whole partitioned graph in lineage order, in one process, as ordinary Dagster runs.

What is up to date - published, of the fingerprint that recipe, code and parents give now, and recorded by Dagster with
that content - is left alone without starting a run; so a killed pass continues, and a second one ends in seconds.
"""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import uuid4

import dagster as dg

from orchestration.assets import build_assets
from orchestration.causes import interrupted, original_error, records_named
from orchestration.idle import RANGE_END, RANGE_START
from orchestration.instance import LISTED, Records, belong_to_the_location, driver_instance
from orchestration.jobs import build_asset_jobs, job_of
from orchestration.plan import Step, groups, is_data, required_nodes, steps, trains, with_dependents
from orchestration.pools import process_mark, tidy, wait_aloud
from orchestration.resources import FixedProgress
from orchestration.settings import Settings
from orchestration.state import State
from yt8m_assets.assets.checks import build_checks
from yt8m_assets.assets.failures import DRIVER_TAG
from yt8m_assets.assets.models import AFRESH_TAG, FALLBACK_TAG
from yt8m_assets.assets.shell import FORCE_TAG
from yt8m_assets.errors import CheckpointMismatchError
from yt8m_assets.progress import Progress
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.lineage import Lineage
from yt8m_assets.stages.nodes import Node, with_ancestors
from yt8m_assets.storage import ArtifactStore
from yt8m_assets.tracking import Tracking

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
"""Dagster's events go to its own log; the terminal belongs to the progress."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a pass did."""

    num_nodes: int
    """Nodes that were required."""
    num_current: int
    """Nodes that were up to date and left alone."""
    num_made: int
    """Nodes whose artifact is new."""
    runs: tuple[str, ...]
    """Ids of the Dagster runs it made."""

    @property
    def num_found(self) -> int:
        """Nodes that a run found made before: by an earlier recipe for one, or by a pass that was killed."""
        return self.num_nodes - self.num_current - self.num_made


class Driver:
    """One recipe over one state: plans, and runs what is needed."""

    def __init__(
        self,
        recipe: Recipe,
        store: ArtifactStore,
        tracking: Tracking,
        instance: dg.DagsterInstance,
        progress: Progress,
        backfill: str = "single_run",
    ) -> None:
        self.recipe, self.store, self.instance, self.progress = recipe, store, instance, progress
        resources = {"store": store, "tracking": tracking, "progress": FixedProgress(progress)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assets, checks, jobs = build_assets(recipe), build_checks(recipe), build_asset_jobs(recipe)
            self.definitions = dg.Definitions(assets=assets, asset_checks=checks, jobs=jobs, resources=resources)
        self.backfill = backfill
        self.lineage = Lineage(recipe, store)
        self.records = Records(instance, recipe)
        self.tags: dict[str, str] = {}
        self.afresh_if_needed = False
        self._open = ExitStack()
        self.forced: set[Node] = set()

    def __enter__(self) -> "Driver":
        self._open.enter_context(records_named(Path(self.instance.root_directory)))
        self._open.callback(self.instance.dispose)
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def materialize(
        self,
        *,
        models: Sequence[str] = (),
        until: str | None = None,
        allow_fallback: bool = False,
        start_afresh: bool = False,
        afresh_if_needed: bool = False,
        force: bool = False,
    ) -> Outcome:
        """Bring the required nodes up to date. Raises the first error of a stage, or a failed check's failure.

        `allow_fallback` lets training resume from an older checkpoint where the newest is damaged; `start_afresh` lets
        it throw away checkpoints of another configuration, `afresh_if_needed` in a second run where the first refused;
        `force` makes the last asset wanted (all, without `until`) again even where it is up to date.
        """
        self.afresh_if_needed = afresh_if_needed
        self.tags = {FALLBACK_TAG: "true"} if allow_fallback else {}
        self.tags |= {AFRESH_TAG: "true"} if start_afresh else {}
        required = required_nodes(self.recipe, models, until)
        self.forced = {node for node in required if until in (None, node.asset)} if force else set()
        return self._materialize(required)

    def make(self, wanted: Sequence[Node]) -> Outcome:
        """Bring some nodes, and what they are made from, up to date."""
        return self._materialize(with_ancestors(self.recipe, wanted))

    def predict(self, split_assets: Sequence[str], models: Sequence[str], shifts: Sequence[int]) -> Outcome:
        """Bring cells up to date, whatever shifts the recipe requires, and the data they are made from.

        Training is not started by the way: raises MissingArtifactError or ParentMismatchError naming the model that is
        not up to date, and why.
        """
        for key in models:
            self.recipe.model(key)
        cells = [Node(asset, key, shift) for asset in split_assets for key in models for shift in shifts]
        above = with_ancestors(self.recipe, cells)
        self._materialize([node for node in above if is_data(node)])
        self.lineage.forget()
        for cell in cells:
            self.lineage.inputs(cell)
        return self._materialize(cells)

    def request(self, asset: str, model: str, form: Mapping[str, Any], tags: Mapping[str, str]) -> str:
        """Run an asset that is made of a model on request, by a filled form; returns the run's id.

        Raises the stage's own error.
        """
        step = Step(assets=(asset,), first=model, last=model)
        self.progress.log(f"-- {step.title}")
        return self._run(step, tags, {"ops": {asset: {"config": dict(form)}}})

    def _materialize(self, required: Sequence[Node]) -> Outcome:
        suspects = self.records.unproven(self._blocking_checks())
        runs: list[str] = []
        num_current = num_made = 0
        for group in groups(self.recipe, required, self.backfill):
            self.lineage.forget()
            for record in self.records.renewed(self.lineage, group):
                self.instance.report_runless_asset_event(record)
            outdated = {node for node in group if node in suspects or node in self.forced or not self.up_to_date(node)}
            outdated = with_dependents(self.recipe, group, outdated)
            num_current += len(group) - len(outdated)
            before = {node: self._newest(node) for node in outdated}
            force = bool(self.forced.intersection(group))
            idle = set() if force else set(group) - outdated
            for step in steps(self.recipe, [node for node in group if node in outdated], idle):
                self.progress.log(f"-- {step.title}")
                runs.append(self.run(step, force=force))
            num_made += sum(self._newest(node) != number for node, number in before.items())
        return Outcome(num_nodes=len(required), num_current=num_current, num_made=num_made, runs=tuple(runs))

    def _newest(self, node: Node) -> int:
        return max(self.store.numbers(node.key), default=0)

    def up_to_date(self, node: Node) -> bool:
        """Whether the node is published, current, and recorded by Dagster with that content."""
        return self.records.up_to_date(self.lineage, node)

    def _blocking_checks(self) -> list[dg.AssetCheckKey]:
        graph = self.definitions.resolve_asset_graph()
        return [key for key in graph.asset_check_keys if graph.get(key).blocking]

    def run(self, step: Step, force: bool = False) -> str:
        """Run a step; returns the run's id. Raises the stage's own error, KeyboardInterrupt where a signal ended it."""
        asked = {FORCE_TAG: "true"} if force else {}
        asked |= self.tags if trains(step) else {}  # of trainings only
        try:
            return self._run(step, asked)
        except CheckpointMismatchError as error:
            if not self.afresh_if_needed or AFRESH_TAG in asked:
                raise
            self.progress.log(f"   afresh: {error}")
            return self._run(step, {**asked, AFRESH_TAG: "true"})

    def _run(self, step: Step, asked: Mapping[str, str], config: Mapping[str, Any] = MappingProxyType({})) -> str:
        tags = {DRIVER_TAG: process_mark(), **LISTED, **asked}
        run_id = str(uuid4())
        if step.first is not None and step.last != step.first:
            tags |= {RANGE_START: step.first, RANGE_END: str(step.last)}
        belong_to_the_location(self.instance, run_id)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.definitions.resolve_job_def(job_of(step.assets)).execute_in_process(
                    run_id=run_id,
                    run_config={**QUIET, **config},
                    instance=self.instance,
                    asset_selection=[dg.AssetKey(asset) for asset in step.assets],
                    partition_key=step.first if step.first == step.last else None,
                    tags=tags,
                )
        except dg.DagsterExecutionInterruptedError as interrupt:  # between two stages
            raise KeyboardInterrupt from interrupt
        except Exception as error:
            if interrupted(error):
                raise KeyboardInterrupt from error
            raise original_error(error, step.title) from error
        return run_id


def open_driver(recipe: Recipe, state: State, settings: Settings, progress: Progress) -> Driver:
    """A driver over the prepared state; runs that dead processes left behind are ended first."""
    with records_named(state.dagster_home):
        instance = driver_instance(state)
        tidy(instance)
    wait_aloud(instance, progress.log)
    return Driver(recipe, settings.open_store(), settings.open_tracking(), instance, progress, settings.backfill)


def materialize(
    recipe: Recipe, state: State, progress: Progress, *, models: Sequence[str] = (), until: str | None = None
) -> Outcome:
    """Bring the graph of a recipe up to date over a state, as the environment says where; see `Driver.materialize`."""
    with open_driver(recipe, state, Settings.from_environment(state), progress) as driver:
        return driver.materialize(models=models, until=until)
