import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from yt8m_assets.errors import ConfigError, MissingArtifactError, ParentMismatchError
from yt8m_assets.recipes import load_recipe
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.explain import explain
from yt8m_assets.stages.lineage import Lineage, current_manifest, resolve_inputs
from yt8m_assets.stages.nodes import ASSETS, Node, config_slice, nodes, parents
from yt8m_assets.storage import ArtifactStore, Manifest

ORDER = list(ASSETS)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path), tmp_path / "cache")


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe("demo").with_models(("bert_l2h12", "mix_nextvlad_iter60"))


def put(recipe: Recipe, store: ArtifactStore, node: Node, text: str = "") -> Manifest:
    with store.publish(node.key, **resolve_inputs(recipe, store, node).publish_arguments()) as publication:
        for name in ("file", *ASSETS[node.asset].holds):
            (publication.path / name).parent.mkdir(exist_ok=True)
            (publication.path / name).write_text(node.key + text)
    assert publication.manifest is not None
    return publication.manifest


def put_all(recipe: Recipe, store: ArtifactStore) -> None:
    for asset in ORDER:
        for node in nodes(recipe, asset):
            put(recipe, store, node)


def stale(recipe: Recipe, store: ArtifactStore) -> set[str]:
    every = (node for asset in ORDER for node in nodes(recipe, asset))
    return {node.key for node in every if current_manifest(recipe, store, node) is None}


def roots(recipe: Recipe, store: ArtifactStore) -> set[str]:
    """What is stale by itself, not for something that it is made from."""
    below = stale(recipe, store)
    every = (node for asset in ORDER for node in nodes(recipe, asset) if node.key in below)
    return {node.key for node in every if not below & {parent.key for parent in parents(recipe, node)}}


def test_keys_read_well() -> None:
    assert Node("segment_shards").key == "segment_shards"
    assert Node("oof_predictions", "bert_l2h12", -1).key == "oof_predictions/bert_l2h12/shift-1"
    assert Node("oof_predictions", "bert_l2h12", 0).key == "oof_predictions/bert_l2h12/shift+0"


def test_the_challenge_needs_the_29_cells_of_the_originals_table() -> None:
    challenge = load_recipe("challenge")
    assert len(nodes(challenge, "oof_predictions")) == len(nodes(challenge, "test_predictions")) == 29
    assert len(nodes(challenge, "finetuned_model")) == 9


def test_beyond_pre_trains_the_challenges_nine_as_the_challenge_does_and_fine_tunes_them_otherwise() -> None:
    challenge, beyond = load_recipe("challenge"), load_recipe("beyond")
    for asset, alike in (("pretrained_model", True), ("finetuned_model", False)):
        for node in nodes(challenge, asset):
            assert (config_slice(beyond, node) == config_slice(challenge, node)) is alike, node
    assert len(nodes(beyond, "oof_predictions")) == 29 + 3


def test_every_parent_comes_earlier_in_the_order(recipe: Recipe) -> None:
    for asset in ORDER:
        for node in nodes(recipe, asset):
            for parent in parents(recipe, node):
                assert ORDER.index(parent.asset) < ORDER.index(asset)
                assert parent in nodes(recipe, parent.asset)


def test_a_ranking_needs_just_its_own_shifts(recipe: Recipe) -> None:
    found = parents(recipe, Node("test_ranking", "mix_nextvlad_iter60"))
    assert [(node.asset, node.shift) for node in found] == [("test_predictions", shift) for shift in (0, 1, 2)]


def test_missing_parents_are_all_named(recipe: Recipe, store: ArtifactStore) -> None:
    with pytest.raises(MissingArtifactError) as caught:
        resolve_inputs(recipe, store, Node("submission"))
    for name in ("ensemble_weights", "test_ranking/bert_l2h12", "test_ranking/mix_nextvlad_iter60", "test_shards"):
        assert name in str(caught.value)


def test_nothing_is_stale_after_everything_was_made(recipe: Recipe, store: ArtifactStore) -> None:
    assert "submission" in stale(recipe, store)
    put_all(recipe, store)
    assert stale(recipe, store) == set()


def test_a_changed_recipe_makes_stale_just_what_depends_on_it(recipe: Recipe, store: ArtifactStore) -> None:
    put_all(recipe, store)
    first, second = recipe.models
    longer = replace(second, finetuning=replace(second.finetuning, num_steps=second.finetuning.num_steps + 1))
    changed = replace(recipe, models=(first, longer))
    assert roots(changed, store) == {"finetuned_model/mix_nextvlad_iter60"}
    assert {"submission", "test_ranking/mix_nextvlad_iter60"} <= stale(changed, store)
    assert not {"finetuned_model/bert_l2h12", "oof_ranking/bert_l2h12"} & stale(changed, store)
    with pytest.raises(ParentMismatchError, match=r"\(finetuned_model/mix.*: training\.num_steps: 48 -> 49\)"):
        resolve_inputs(changed, store, Node("oof_predictions", "mix_nextvlad_iter60", 0))
    put(changed, store, Node("finetuned_model", "mix_nextvlad_iter60"), "other weights")
    cells = {f"{split}_predictions/mix_nextvlad_iter60/shift{s:+d}" for split in ("oof", "test") for s in (0, 1, 2)}
    assert roots(changed, store) == cells
    assert stale(recipe, store) == set(), "the recipe before finds all of its own"
    searched = replace(recipe, prediction=replace(recipe.prediction, tta_w0=5.0))
    assert roots(searched, store) >= {"oof_ranking/bert_l2h12", "test_ranking/mix_nextvlad_iter60"}
    assert "oof_predictions/bert_l2h12/shift+0" not in stale(searched, store)


@pytest.mark.parametrize(("field", "value"), [("candidate_classes", 20), ("video_weight", 0.2)])
def test_what_is_switched_on_is_part_of_a_cell_and_what_is_switched_off_is_not(
    recipe: Recipe, store: ArtifactStore, field: str, value: float
) -> None:
    """A recipe without them names the cells that were made before they existed."""
    put_all(recipe, store)
    cell = Node("oof_predictions", "bert_l2h12", 0)
    assert field not in config_slice(recipe, cell)
    changed = replace(recipe, prediction=replace(recipe.prediction, **{field: value}))
    assert cell.key in stale(changed, store)
    assert "finetuned_model/bert_l2h12" not in stale(changed, store)


def test_how_a_training_is_executed_makes_nothing_stale(recipe: Recipe, store: ArtifactStore) -> None:
    put_all(recipe, store)
    first, second = recipe.models
    split = replace(first, finetuning=replace(first.finetuning, num_processes=2, accumulation=2))
    elsewhere = replace(second, finetuning=replace(second.finetuning, log_every=7, compile=True))
    assert stale(replace(recipe, models=(split, elsewhere)), store) == set()


@pytest.mark.parametrize("split", [{"accumulation": 4}, {"num_processes": 2}])
def test_how_a_batch_is_split_makes_stale_a_model_with_batch_norm(
    recipe: Recipe, store: ArtifactStore, split: dict[str, int]
) -> None:
    """Its statistics are those of each part: the losses differ from those of the whole batch."""
    put_all(recipe, store)
    models = tuple(replace(model, finetuning=replace(model.finetuning, **split)) for model in recipe.models)
    assert roots(replace(recipe, models=models), store) == {"finetuned_model/mix_nextvlad_iter60"}
    shared = replace(recipe.models[1], finetuning=replace(recipe.models[1].finetuning, num_processes=2))
    shared = replace(shared, finetuning=replace(shared.finetuning, sync_batchnorm=True))
    alone = replace(shared, finetuning=replace(shared.finetuning, num_processes=1))
    slices = [
        config_slice(replace(recipe, models=(recipe.models[0], model)), Node("finetuned_model", model.key))
        for model in (shared, alone)
    ]
    assert slices[0] == slices[1]


def test_a_parent_made_again_with_equal_bytes_changes_nothing(recipe: Recipe, store: ArtifactStore) -> None:
    put_all(recipe, store)
    put(recipe, store, Node("finetuned_model", "bert_l2h12"))
    assert stale(recipe, store) == set()


def test_a_raised_code_version_makes_its_asset_stale(
    recipe: Recipe, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_all(recipe, store)
    raised = replace(ASSETS["ensemble_weights"], code_version="99")
    monkeypatch.setitem(ASSETS, "ensemble_weights", raised)
    assert roots(recipe, store) == {"ensemble_weights"}


def test_unknown_models_are_named_with_the_known_ones(recipe: Recipe) -> None:
    with pytest.raises(ConfigError, match=r"unknown model 'nosuch'.*bert_l2h12"):
        recipe.with_models(("nosuch",))


def test_going_back_to_a_recipe_costs_nothing_and_two_recipes_share_a_store(
    recipe: Recipe, store: ArtifactStore
) -> None:
    put_all(recipe, store)
    other = replace(recipe, seed=1, prediction=replace(recipe.prediction, edges="wrap"))
    for asset in ORDER:
        for node in nodes(other, asset):
            if current_manifest(other, store, node) is None:
                put(other, store, node, "of the other recipe")
    assert stale(other, store) == stale(recipe, store) == set()
    cell = Node("oof_predictions", "bert_l2h12", 0)
    ours, theirs = (resolve_inputs(each, store, cell) for each in (recipe, other))
    assert ours.parent("finetuned_model", "bert_l2h12").generation == 1
    assert theirs.parent("finetuned_model", "bert_l2h12").generation == 2
    assert ours.published is not None
    assert ours.published.parents["finetuned_model/bert_l2h12"] == ours.parents["finetuned_model/bert_l2h12"]


def test_copying_the_store_changes_nothing(recipe: Recipe, store: ArtifactStore, tmp_path: Path) -> None:
    put_all(recipe, store)
    shutil.copytree(tmp_path, tmp_path / "another place", ignore=shutil.ignore_patterns("another place"))
    assert stale(recipe, ArtifactStore(str(tmp_path / "another place"), tmp_path / "other cache")) == set()


def test_why_a_node_is_stale_is_said_in_words(recipe: Recipe, store: ArtifactStore, monkeypatch) -> None:
    node = Node("finetuned_model", "bert_l2h12")

    def why(changed: Recipe, node: Node = node) -> list[str]:
        return explain(Lineage(changed, store), node)

    assert why(recipe) == [
        "not materialised",
        "pretrained_model/bert_l2h12 is missing",
        "segment_shards is missing",
        "holdout_ratings is missing",
    ]
    put_all(recipe, store)
    assert why(recipe) == []
    first, second = recipe.models
    faster = replace(first, finetuning=replace(first.finetuning, learning_rate=0.25, warmup_steps=9))
    changed = replace(recipe, models=(faster, second))
    assert why(changed) == ["training.learning_rate: 0.0005 -> 0.25", "training.warmup_steps: 5 -> 9"]
    assert why(changed, Node("oof_predictions", "bert_l2h12", 0)) == ["finetuned_model/bert_l2h12 is stale"]
    put(changed, store, node, "other weights")
    (text,) = why(changed, Node("oof_predictions", "bert_l2h12", 0))
    assert re.fullmatch(r"finetuned_model/bert_l2h12 has other content: [0-9a-f]{12} -> [0-9a-f]{12}", text)
    monkeypatch.setitem(ASSETS, "submission", replace(ASSETS["submission"], code_version="99"))
    assert why(recipe, Node("submission")) == ["code version: 1 -> 99"]


def test_lineage_alone_says_which_artifact_a_node_has() -> None:
    """A look-up by fingerprint anywhere else would be a second answer to whether something is up to date."""
    root = Path(__file__).parents[2]
    paths = (path for package in ("yt8m_assets", "orchestration") for path in (root / package).rglob("*.py"))
    asking = {path.relative_to(root).as_posix() for path in paths if re.search(r"store\.find\(", path.read_text())}
    assert asking == {"yt8m_assets/stages/lineage.py"}
