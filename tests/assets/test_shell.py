"""What every asset shell does with results and manifests."""

import base64
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest

from tests.assets.support import PNG, publish, run
from tests.tiny import tiny_recipe
from yt8m_assets.assets.display import MAX_LISTED_FILES, MAX_PLOT_SIZE, manifest_metadata, metadata_value
from yt8m_assets.assets.failures import OUTDATED_TAG
from yt8m_assets.assets.results import materialization, materializations, recipe_mark
from yt8m_assets.assets.shell import (
    FORCE_TAG,
    OWNERS,
    RECIPE_TAG,
    RETRY,
    asset_options,
    attempt,
    code_version,
    run_tags,
)
from yt8m_assets.stages.nodes import ASSETS
from yt8m_assets.storage import ArtifactStore, StageResult


@pytest.mark.parametrize(("value", "shown"), [(0.123456789, 0.123457), (1e-9 / 3, 3.33333e-10), (12345678, 12345678)])
def test_numbers_are_short_also_in_lists_and_tables(value: float, shown: float) -> None:
    assert metadata_value(value) == shown
    assert metadata_value({"a": [value, "x"]}) == dg.MetadataValue.json({"a": [shown, "x"]})


def test_texts_are_shown_as_what_they_are() -> None:
    table = "| a | b |\n| - | - |\n| 1 | 2 |"
    assert metadata_value(table) == dg.MetadataValue.md(table)
    for text in ("a | b", "| no table", "two\n| lines"):
        assert metadata_value(text) == text
    assert metadata_value("https://host/path") == dg.MetadataValue.url("https://host/path")
    assert metadata_value(None) == dg.MetadataValue.null()


def test_metadata_says_what_a_person_wants_first(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    numbers = {"map": 0.5, "steps": 3, "mlflow_url": "http://127.0.0.1:5000/#/x", "candidates": {"a": 1}, "best": None}
    numbers |= {
        "count": 7,
        "gain_of_tta": -0.1234567,
        "start_map": 0.4,
        "weights": "ema",
        "seconds": 1234567.8,
        "imported": True,
    }
    manifest = publish(store, "thing", {"a.txt": b"a", "report/curve.png": PNG, "report/page.html": b"<p>"}, numbers)
    shown = manifest_metadata(store, StageResult(manifest))
    quality = ["map_at_100000", "start_map", "gain_of_tta", "count", "seconds", "steps"]
    assert list(shown)[:11] == [*quality, "mlflow_url", "weights", "best", "candidates", "imported"]
    assert list(shown)[11] == "plot: curve"
    assert [shown[name] for name in quality] == [0.5, 0.4, -0.123457, 7, 1234570.0, 3]
    assert shown["mlflow_url"] == dg.MetadataValue.url("http://127.0.0.1:5000/#/x")
    assert shown["candidates"] == dg.MetadataValue.json({"a": 1})
    assert shown["imported"] is True
    picture = shown["plot: curve"].value
    assert base64.b64decode(picture.split("base64,")[1].rstrip(")")) == PNG
    assert shown["page.html"] == dg.MetadataValue.url(manifest.page("report/page.html"))
    assert f"| [a.txt](/yt8m/files/thing/{manifest.folder}/a.txt) | 1 |" in shown["files"].value
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


def test_each_partition_of_a_run_gets_its_own_metadata_and_data_version(tmp_path: Path) -> None:
    """One record a partition, as if each had had a run of its own, and the same version whatever the run held."""
    store = ArtifactStore(str(tmp_path))
    keys = ["one", "two", "three"]
    published = {key: publish(store, f"thing/{key}", {"a": key.encode()}, {"map": n}) for n, key in enumerate(keys)}
    recipe = tiny_recipe()

    @dg.asset
    def source() -> dg.MaterializeResult:
        return dg.MaterializeResult(data_version=dg.DataVersion("s"))

    @dg.asset(partitions_def=dg.StaticPartitionsDefinition(keys), code_version="7", deps=[source])
    def thing(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult | dg.AssetMaterialization]:
        assert run_tags(context, "one")["dagster_partition"] == "one"
        assert run_tags(context)["dagster_asset"] == "thing"
        results = {key: StageResult(published[key]) for key in context.partition_keys}
        yield from materializations(context, recipe, store, results)

    with dg.DagsterInstance.ephemeral() as instance:
        assert run(source, instance=instance).success
        tags = {"dagster/asset_partition_range_start": "one", "dagster/asset_partition_range_end": "two"}
        wide = run(thing, tags=tags, instance=instance)
        single = run(thing, partition_key="two", instance=instance)
        events = [event.materialization for event in wide.get_asset_materialization_events()]
        assert [event.partition for event in events] == ["one", "two"]
        assert [event.metadata["map_at_100000"].value for event in events] == [0, 1]
        assert [str(event.metadata["recipe"].value) for event in events] == [recipe_mark(recipe)] * 2
        versions = [(event.tags or {})["dagster/data_version"] for event in events]
        assert versions == [published[key].digest for key in ("one", "two")]
        (alone,) = single.asset_materializations_for_node("thing")
        assert alone.tags == events[1].tags
        assert {"dagster/code_version": "7", "dagster/input_data_version/source": "s"}.items() <= (
            alone.tags or {}
        ).items()


@pytest.mark.parametrize("reused", [False, True])
def test_what_was_there_already_is_said_in_the_log(tmp_path: Path, reused: bool) -> None:
    store = ArtifactStore(str(tmp_path))
    manifest = publish(store, "thing", {"a.txt": b"a"}, {})

    @dg.asset
    def thing(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        return materialization(context, tiny_recipe(), store, StageResult(manifest, reused=reused))

    with dg.DagsterInstance.ephemeral() as instance:
        result = run(thing, instance=instance)
        assert result.success
        said = [entry.user_message for entry in instance.all_logs(result.run_id)]
    assert ("thing: up to date, nothing done" in said) == reused


def test_tables_show_their_columns_and_how_many_rows_they_have(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    tables = {"submission.csv": b"Class,Segments\n1,a:0 b:5\n2,\n", "ranking.parquet": b"no table"}
    manifests = {name: publish(store, name.partition(".")[0], {name: content}, {}) for name, content in tables.items()}
    shown = manifest_metadata(store, StageResult(manifests["submission.csv"]))
    assert shown["dagster/row_count"] == 2
    assert [column.name for column in shown["dagster/column_schema"].columns] == ["Class", "Segments"]
    shown = manifest_metadata(store, StageResult(manifests["ranking.parquet"]))
    assert not [name for name in shown if name.startswith("dagster/") and name != "dagster/uri"]


def test_a_damaged_plot_is_said_and_fails_nothing(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    manifest = publish(store, "thing", {"a.txt": b"a", "report/curve.png": PNG}, {"map": 0.5})
    (path,) = tmp_path.rglob("curve.png")
    path.write_bytes(PNG[:-1])
    shown = manifest_metadata(ArtifactStore(str(tmp_path)), StageResult(manifest))
    assert "report/curve.png" in shown["plots"]
    assert shown["map_at_100000"] == 0.5


@pytest.mark.parametrize("tags", [{}, {FORCE_TAG: "true"}, {OUTDATED_TAG: "true"}])
def test_a_run_makes_again_and_takes_outdated_parents_where_its_tags_say_so(
    tmp_path: Path, tags: dict[str, str]
) -> None:
    store, recipe = ArtifactStore(str(tmp_path)), tiny_recipe()
    publish(store, "holdout_ratings", {"a.txt": b"a"}, {})
    seen = {}

    @dg.asset
    def holdout_ratings(context: dg.AssetExecutionContext) -> None:
        own = attempt(context, recipe, store)
        seen.update(found=own.find("holdout_ratings", "f") is not None, takes_outdated=own.takes_outdated)

    with dg.DagsterInstance.ephemeral() as instance:
        result = run(holdout_ratings, instance=instance, tags=tags)
        assert result.success
        kept = instance.get_run_by_id(result.run_id)
        assert kept is not None
        assert kept.tags[RECIPE_TAG] == recipe_mark(recipe)
    assert seen == {"found": FORCE_TAG not in tags, "takes_outdated": OUTDATED_TAG in tags}


def test_dagster_compares_what_of_the_recipe_concerns_an_asset() -> None:
    recipe = tiny_recipe()
    fused = replace(recipe, prediction=replace(recipe.prediction, tta_w0=1.5))
    first, second = recipe.models
    assert first.finetuning is not None
    faster = replace(recipe, models=(replace(first, finetuning=replace(first.finetuning, learning_rate=1.0)), second))
    changed = {
        name: {asset for asset in ASSETS if code_version(other, asset) != code_version(recipe, asset)}
        for name, other in {"fused": fused, "faster": faster, "renamed": replace(recipe, name="other")}.items()
    }
    assert changed == {
        "fused": {"oof_ranking", "test_ranking"},
        "faster": {"finetuned_model"},
        "renamed": {"leaderboard"},
    }
    assert recipe_mark(fused) != recipe_mark(recipe)


def test_what_an_artifact_is_made_from_is_linked(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    made_from = {"oof_predictions/one/shift+0": "a" * 64, "segment_shards": "b" * 64}
    with store.publish("thing", fingerprint="f", parents=made_from) as publication:
        (publication.path / "a.txt").write_text("a")
    assert publication.manifest is not None
    result = StageResult(publication.manifest)

    @dg.asset
    def thing(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        return materialization(context, tiny_recipe(), store, result)

    (made,) = run(thing).asset_materializations_for_node("thing")
    shown = str(made.metadata["made_from"].value)
    assert "[oof_predictions/one/shift+0](/assets/oof_predictions?view=partitions&partition=one%7C0)" in shown
    assert f"[segment_shards](/assets/segment_shards) | `{'b' * 16}`" in shown


def test_every_asset_follows_the_same_rule() -> None:
    recipe = tiny_recipe()
    found = asset_options(recipe, lambda name: {"for": name}, "submission", description="a file", deps=["other"])
    assert found == {
        "name": "submission",
        "group_name": "ensemble",
        "kinds": {"csv", "mlflow"},
        "partitions_def": None,
        "pool": None,
        "op_tags": {"for": "submission"},
        "description": "a file",
        "owners": OWNERS,
        "code_version": code_version(recipe, "submission"),
        "retry_policy": RETRY,
        "tags": {"stage": "ensemble"},
        "deps": ["other"],
    }
