"""What tests of the driver look at in Dagster's records, and how they interrupt a pass."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import dagster as dg

from orchestration.driver import Driver
from orchestration.instance import driver_instance
from tests.orchestration.conftest import Graph
from yt8m_assets.progress import NullProgress, Task


def stale_causes(graph: Graph, asset: str, partition: str | None) -> list[str]:
    """Why Dagster takes a partition to be stale."""
    with graph.open() as driver:
        return stale_causes_of(driver, asset, partition)


def stale_causes_of(driver: Driver, asset: str, partition: str | None) -> list[str]:
    """The same, by a driver's definitions."""
    from dagster._core.definitions.data_version import CachingStaleStatusResolver
    from dagster._core.loader import LoadingContextForTest

    assets, loading = driver.definitions.resolve_asset_graph(), LoadingContextForTest(driver.instance)
    resolver = CachingStaleStatusResolver(driver.instance, assets, loading)
    return [cause.reason for cause in resolver.get_stale_causes(dg.AssetKey(asset), partition)]


def runs_of(graph: Graph) -> list[dg.DagsterRun]:
    """The recorded runs, newest first."""
    with driver_instance(graph.state) as instance:
        return list(instance.get_runs())


class InterruptingProgress(NullProgress):
    """Does something in the middle of the tasks of a name: at the first advance to `count` or beyond."""

    def __init__(self, title: str, count: int, action: Callable[[], object]) -> None:
        self.title, self.count, self.action = title, count, action

    @contextmanager
    def task(self, title: str, total: int | None = None, unit: str = "it") -> Iterator[Task]:
        with super().task(title, total, unit) as task:
            yield _Interrupting(task, self.count, self.action) if self.title in title else task


class _Interrupting:
    def __init__(self, task: Task, count: int, action: Callable[[], object]) -> None:
        self.task, self.left, self.action = task, count, action

    def resume(self, count: int) -> None:
        self.task.resume(count)

    def advance(self, count: int = 1) -> None:
        before, self.left = self.left, self.left - count
        if before > 0 >= self.left:
            self.action()
        self.task.advance(count)

    def update(self, **fields: object) -> None:
        self.task.update(**fields)


def pull_the_plug() -> None:
    raise RuntimeError("pulled the plug")


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)
