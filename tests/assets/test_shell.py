"""What every asset shell does with errors, results and manifests."""

import base64
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from tests.assets.support import PNG, publish
from yt8m_assets.assets.display import MAX_LISTED_FILES, MAX_PLOT_SIZE, manifest_metadata, metadata_value
from yt8m_assets.assets.shell import DRIVER_TAG, RETRY, materialization, run_tags, runs_in_driver, stage_errors
from yt8m_assets.errors import ConfigError, PartitionBusyError
from yt8m_assets.storage import ArtifactStore, StageResult
from yt8m_assets.training.interruption import TrainingPreempted

QUIET: dict[str, Any] = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def failing_asset(error: Exception, attempts: list[int], times: int = 99) -> dg.AssetsDefinition:
    """An asset whose stage raises `error` the first `times` times, under the retry policy without its pauses."""

    @dg.asset(retry_policy=dg.RetryPolicy(max_retries=RETRY.max_retries, delay=0))
    def asset(context: dg.AssetExecutionContext) -> None:
        attempts.append(context.retry_number)
        with stage_errors(context):
            if len(attempts) <= times:
                raise error

    return asset


def run(asset: dg.AssetsDefinition, **options: Any) -> dg.ExecuteInProcessResult:
    return dg.materialize([asset], run_config=QUIET, raise_on_error=False, **options)


@pytest.mark.parametrize("error", [ConfigError("recipe is wrong"), RuntimeError("a bug"), ValueError("a value")])
def test_what_will_not_pass_is_tried_once(error: Exception) -> None:
    """RELIABILITY F34."""
    attempts: list[int] = []
    result = run(failing_asset(error, attempts))
    assert not result.success
    assert attempts == [0]
    (failure,) = (event for event in result.all_events if event.is_step_failure)
    described = failure.step_failure_data.user_failure_data
    assert described is not None
    assert described.description == f"{type(error).__name__}: {error}"


def test_what_may_pass_is_tried_again() -> None:
    attempts: list[int] = []
    assert run(failing_asset(PartitionBusyError("busy"), attempts, times=2)).success
    assert attempts == [0, 1, 2]


def test_what_never_passes_ends_with_the_policy() -> None:
    attempts: list[int] = []
    assert not run(failing_asset(PartitionBusyError("busy"), attempts)).success
    assert len(attempts) == 1 + RETRY.max_retries


def test_who_was_asked_to_stop_does_not_go_on_in_the_command_line() -> None:
    attempts: list[int] = []
    assert not run(failing_asset(TrainingPreempted(3), attempts), tags={DRIVER_TAG: "host 1 2"}).success
    assert attempts == [0]
    assert run(failing_asset(TrainingPreempted(3), attempts, times=2)).success


def interrupted_asset(attempts: list[int], status: str | None) -> dg.AssetsDefinition:
    """An asset whose first attempt gets the signal that ends a run, after the run's status changed."""

    @dg.asset(retry_policy=dg.RetryPolicy(max_retries=1, delay=0))
    def asset(context: dg.AssetExecutionContext) -> None:
        attempts.append(context.retry_number)
        with stage_errors(context):
            if status == "CANCELING":
                context.instance.report_run_canceling(context.run)
            if len(attempts) == 1:
                raise dg.DagsterExecutionInterruptedError

    return asset


def test_a_canceled_run_is_not_tried_again_and_ends_as_canceled() -> None:
    attempts: list[int] = []
    with dg.DagsterInstance.ephemeral() as instance:
        result = run(interrupted_asset(attempts, "CANCELING"), instance=instance)
        assert attempts == [0]
        ended = instance.get_run_by_id(result.run_id)
        assert ended is not None
        assert ended.status == dg.DagsterRunStatus.CANCELED


def test_a_machine_taken_away_is_no_wish_to_stop() -> None:
    attempts: list[int] = []
    assert run(interrupted_asset(attempts, None)).success
    assert attempts == [0, 1]


def test_ctrl_c_ends_the_command_line() -> None:
    attempts: list[int] = []
    assert not run(interrupted_asset(attempts, None), tags={DRIVER_TAG: "host 1 2"}).success
    assert attempts == [0]


def test_a_reexecution_from_a_page_is_not_the_command_lines() -> None:
    """Dagster copies the tags of the run that is executed again."""
    tags = {DRIVER_TAG: "host 1 2"}
    assert runs_in_driver(dg.DagsterRun("job", run_id="a", tags=tags))
    assert not runs_in_driver(dg.DagsterRun("job", run_id="b", tags=tags, parent_run_id="a", root_run_id="a"))
    assert not runs_in_driver(dg.DagsterRun("job", run_id="c"))


@pytest.mark.parametrize(("value", "shown"), [(0.123456789, 0.123457), (1e-9 / 3, 3.33333e-10), (12345678, 12345678)])
def test_numbers_are_short_also_in_lists_and_tables(value: float, shown: float) -> None:
    assert metadata_value(value) == shown
    assert metadata_value({"a": [value, "x"]}) == dg.MetadataValue.json({"a": [shown, "x"]})


def test_metadata_says_what_a_person_wants_first(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    numbers = {"map": 0.5, "steps": 3, "mlflow_url": "http://127.0.0.1:5000/#/x", "candidates": {"a": 1}, "best": None}
    numbers |= {"gain_of_tta": -0.1234567, "start_map": 0.4, "weights": "ema", "seconds": 1234567.8, "imported": True}
    manifest = publish(store, "thing", {"a.txt": b"a", "report/curve.png": PNG, "report/page.html": b"<p>"}, numbers)
    shown = manifest_metadata(store, StageResult(manifest))
    quality = ["map_at_100000", "start_map", "gain_of_tta", "seconds", "steps"]
    assert list(shown)[:10] == [*quality, "mlflow_url", "weights", "best", "candidates", "imported"]
    assert list(shown)[10] == "plot: curve"
    assert [shown[name] for name in quality] == [0.5, 0.4, -0.123457, 1234570.0, 3]
    assert shown["mlflow_url"] == dg.MetadataValue.url("http://127.0.0.1:5000/#/x")
    assert shown["candidates"] == dg.MetadataValue.json({"a": 1})
    assert shown["imported"] is True
    picture = shown["plot: curve"].value
    assert base64.b64decode(picture.split("base64,")[1].rstrip(")")) == PNG
    assert Path(shown["page.html"].value).read_bytes() == b"<p>"
    assert Path(shown["uri"].value).is_dir()
    assert shown["digest"] == manifest.digest
    assert shown["size_bytes"] == manifest.size
    assert shown["reused"] is False
    again = manifest_metadata(store, StageResult(manifest, reused=True))
    assert next(iter(again.items())) == ("reused", True)
    assert again | {"reused": False} == shown
    assert f"`{manifest.files['a.txt']['sha256'][:16]}`" in shown["files"].value


def test_large_plots_and_long_lists_do_not_fill_the_page(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    files = {f"{number:03d}": b"x" for number in range(MAX_LISTED_FILES + 7)}
    manifest = publish(store, "thing", {**files, "report/large.png": PNG + bytes(MAX_PLOT_SIZE)}, {})
    shown = manifest_metadata(store, StageResult(manifest))
    assert "plot: large" not in shown
    assert "and 8 more" in shown["files"].value


def test_each_partition_of_a_run_gets_its_own_metadata(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    keys = ["one", "two"]
    published = {key: publish(store, f"thing/{key}", {"a": key.encode()}, {"map": n}) for n, key in enumerate(keys)}

    @dg.asset(partitions_def=dg.StaticPartitionsDefinition(keys))
    def thing(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        assert run_tags(context, "one")["dagster_partition"] == "one"
        assert run_tags(context)["dagster_asset"] == "thing"
        return materialization(context, store, {key: StageResult(published[key]) for key in context.partition_keys})

    tags = {"dagster/asset_partition_range_start": "one", "dagster/asset_partition_range_end": "two"}
    versions = []
    for _ in range(2):
        result = run(thing, tags=tags)
        events = {event.partition: event.materialization for event in result.get_asset_materialization_events()}
        assert {key: event.metadata["map_at_100000"].value for key, event in events.items()} == {"one": 0, "two": 1}
        assert {key: event.metadata["digest"].value for key, event in events.items()} == {
            key: manifest.digest for key, manifest in published.items()
        }
        versions.append({str((event.tags or {})["dagster/data_version"]) for event in events.values()})
    assert versions[0] == versions[1]
    single = run(thing, partition_key="two").asset_materializations_for_node("thing")[0]
    assert (single.tags or {})["dagster/data_version"] == published["two"].digest
