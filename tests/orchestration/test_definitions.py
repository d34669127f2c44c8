"""The definitions as Dagster sees them: groups, partitions, jobs, options; and the tools that people use on them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from orchestration.assets import build_assets
from orchestration.definitions import build_definitions
from orchestration.resources import build_resources
from orchestration.settings import Settings
from orchestration.state import prepare_state
from tests.tiny import tiny_model, tiny_recipe
from yt8m_assets.assets.study import STUDY
from yt8m_assets.assets.variants import VARIANT
from yt8m_assets.partitions import OPTIONAL, base_asset, every_asset, keys_of, nodes_of, partition_key
from yt8m_assets.recipes import load_recipe
from yt8m_assets.recipes.schema import SHIFTS, Recipe
from yt8m_assets.stages.nodes import ASSETS, Node, parents

ROOT = Path(__file__).parents[2]
GROUPS = {
    "data": {"pretraining_shards", "segment_shards", "test_shards", "holdout_ratings"},
    "models": {"pretrained_model", "finetuned_model"},
    "predictions": {"oof_predictions", "test_predictions", "oof_ranking", "test_ranking"},
    "variants": {VARIANT, STUDY},
    "optional": {"oof_optional_predictions", "test_optional_predictions"},
    "ensemble": {"ensemble_weights", "submission", "leaderboard"},
}


def definitions(tmp_path: Path, recipe: Recipe, environment: dict[str, str] | None = None) -> dg.Definitions:
    settings = Settings.from_environment(prepare_state(tmp_path), environment or {})
    return build_definitions(recipe, build_resources(settings))


def nodes_of_asset(recipe: Recipe, asset: str) -> list[Node]:
    """The nodes of one of Dagster's assets."""
    return nodes_of(asset, keys_of(recipe, asset) or [None])


def test_groups_and_what_the_page_of_an_asset_shows(tmp_path: Path) -> None:
    graph = definitions(tmp_path, tiny_recipe()).resolve_asset_graph()
    found: dict[str, set[str]] = {}
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        found.setdefault(str(node.group_name), set()).add(key.to_user_string())
        assert node.description
        assert len(node.description) > 40
        assert node.owners == ["team:video-understanding"]
        assert node.kinds
        if node.group_name != "variants":  # which no recipe makes stale
            assert str(node.code_version).startswith(f"{ASSETS[base_asset(key.to_user_string())].code_version}-")
    assert found == GROUPS


@pytest.mark.parametrize("options", [{}, {"second_stage": True, "folds": 2, "refit": True}])
def test_dagsters_lineage_is_ours(tmp_path: Path, options: dict[str, Any]) -> None:
    recipe = tiny_recipe(**options)
    assert {"fold_ranking", "refitted_model"}.issubset(every_asset(recipe)) is bool(options)
    graph = definitions(tmp_path, recipe).resolve_asset_graph()
    for asset in every_asset(recipe):
        ours = {parent.asset for node in nodes_of_asset(recipe, asset) for parent in parents(recipe, node)}
        assert {key.to_user_string() for key in graph.get(dg.AssetKey(asset)).parent_keys} == ours, asset


def test_partitions_and_policies(tmp_path: Path) -> None:
    recipe = load_recipe("challenge")
    graph = definitions(tmp_path, recipe).resolve_asset_graph()
    most = {"_model": None, "_predictions": 10, "_ranking": None}
    for asset in every_asset(recipe):
        node = graph.get(dg.AssetKey(asset))
        keys = node.partitions_def.get_partition_keys() if node.partitions_def else [None]
        assert nodes_of(asset, keys) == nodes_of_asset(recipe, asset)
        if node.partitions_def:
            (limit,) = (limit for name, limit in most.items() if asset.endswith(name))
            assert node.backfill_policy is not None
            assert node.backfill_policy.max_partitions_per_run == limit
        pools = {"gpu"} if asset.endswith(("_model", "_predictions")) else set()
        assert {pool for pool in [graph.assets_def_for_key(node.key).op.pool] if pool} == pools
    for alone in build_assets(recipe, "per_partition"):
        policy = alone.backfill_policy
        assert alone.partitions_def is None or (policy and policy.max_partitions_per_run) == 1


def test_dagsters_lineage_is_ours_partition_by_partition(tmp_path: Path) -> None:
    """Not a cell more: of this recipe `one|-1` is in no ranking, and may come and go."""
    recipe = tiny_recipe()
    graph = definitions(tmp_path, recipe).resolve_asset_graph()
    for asset in every_asset(recipe):
        for node in nodes_of_asset(recipe, asset):
            ours = parents(recipe, node)
            for parent in {parent.asset for parent in ours}:
                if (partitions := graph.get(dg.AssetKey(parent)).partitions_def) is None:
                    continue
                found = graph.get_parent_partition_keys_for_child(
                    partition_key(node), dg.AssetKey(parent), dg.AssetKey(asset)
                )
                theirs = set(partitions.get_partition_keys()) & set(found.partitions_subset.get_partition_keys())
                assert theirs == {partition_key(each) for each in ours if each.asset == parent}, (node, parent)


def test_a_recipe_that_fuses_every_shift_has_no_optional_assets(tmp_path: Path) -> None:
    recipe = tiny_recipe(models=(tiny_model("one", SHIFTS), tiny_model("two", SHIFTS)))
    graph = definitions(tmp_path, recipe).resolve_asset_graph()
    assert {key.to_user_string() for key in graph.get_all_asset_keys()} == {*every_asset(recipe), VARIANT, STUDY}
    assert not any(key.asset_key.to_user_string() in OPTIONAL.values() for key in graph.asset_check_keys)


def test_the_page_of_an_asset_leads_to_its_source(tmp_path: Path) -> None:
    graph = definitions(tmp_path, tiny_recipe()).resolve_asset_graph()
    for asset in every_asset(tiny_recipe()):
        (reference,) = graph.get(dg.AssetKey(asset)).metadata["dagster/code_references"].code_references
        path = Path(reference.file_path)
        assert path.parent == ROOT / "yt8m_assets" / "assets"
        assert path.read_text().splitlines()[reference.line_number - 1].strip().startswith("@dg.asset(")


def test_every_job_has_a_limit(tmp_path: Path) -> None:
    """RELIABILITY F33: a worker that dies unseen does not leave a run for ever."""
    resolved = definitions(tmp_path, tiny_recipe())
    names = {"prepare_data", "train_one_model", "predict_cells", "predict_optional_cells", "rank_models", "ensemble"}
    names |= {"ablate", "doctor", "bring_up_to_date", "train_variant", "study_model"}
    assert {job.name for job in resolved.resolve_all_job_defs() if not job.name.startswith("__")} == names
    for name in names:
        job = resolved.resolve_job_def(name)
        assert int(job.tags["dagster/max_runtime"]) > 0
    train = resolved.resolve_job_def("train_one_model")
    assert train.partitions_def is not None
    assert list(train.partitions_def.get_partition_keys()) == ["one", "two"]


def test_secrets_stay_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RELIABILITY F46: a password in the tracking address is in no definition, run, event or file that we write."""
    canary = "canary-3b1f"
    address = f"http://user:{canary}@127.0.0.1:9"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    state = prepare_state(tmp_path)
    resolved = definitions(tmp_path, tiny_recipe(), {"MLFLOW_TRACKING_URI": address})
    assert canary not in repr(resolved.resources)
    with dg.DagsterInstance.from_config(str(state.dagster_home)) as instance:
        job = resolved.resolve_implicit_global_asset_job_def()
        result = job.execute_in_process(
            instance=instance, asset_selection=[dg.AssetKey("ensemble_weights")], raise_on_error=False
        )
        assert not result.success
        text = "".join(str(entry) for entry in instance.all_logs(result.run_id))
    assert "MissingArtifactError" in text
    assert canary not in text
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or canary.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("command", [["check", "defs"], ["list", "defs", "--json"]])
def test_dg_accepts_the_project(tmp_path: Path, command: list[str]) -> None:
    home = tmp_path / "home"
    home.mkdir()
    own = {"YT8M_STATE": str(tmp_path / "state"), "DAGSTER_HOME": str(home), "DG_CLI_TEST_MODE": "1"}
    environment = {**os.environ, **own}
    dg_command = [str(Path(sys.executable).with_name("dg")), *command]
    answer = subprocess.run(dg_command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    if command[0] == "list":
        assert all(asset in answer.stdout for asset in every_asset(load_recipe("demo")))
    assert not (tmp_path / "state").exists()


def test_the_same_process_holds_two_graphs(tmp_path: Path) -> None:
    first = definitions(tmp_path / "a", tiny_recipe()).resolve_asset_graph()
    second = definitions(tmp_path / "b", load_recipe("challenge")).resolve_asset_graph()
    sizes = [len(g.get(dg.AssetKey("pretrained_model")).partitions_def.get_partition_keys()) for g in (first, second)]
    assert sizes == [2, 9]
    assert Node("submission").key == "submission"


def test_loading_the_definitions_writes_nothing(tmp_path: Path) -> None:
    code = """
import os
from orchestration.definitions import defs
assert defs().resolve_asset_graph().get_all_asset_keys()
assert "DAGSTER_HOME" not in os.environ
"""
    own = {**os.environ, "YT8M_STATE": str(tmp_path / "state"), "PYTHONPATH": str(ROOT)}
    own.pop("DAGSTER_HOME", None)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=own, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"export DAGSTER_HOME={tmp_path}/state/dagster" in done.stderr
    assert not list(tmp_path.iterdir())
