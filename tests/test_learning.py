"""Learning is real: the demo's models against the random ranking and the oracle, on videos none of them has seen."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from orchestration.driver import materialize
from orchestration.settings import Settings
from orchestration.state import State, prepare_state
from yt8m_assets.progress import PlainProgress
from yt8m_assets.recipes import load_recipe
from yt8m_assets.reports.leaderboard import read_leaderboard
from yt8m_assets.storage import ArtifactStore
from yt8m_assets.submission import validate_submission

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
logger = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> State:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DAGSTER_HOME", "YT8M_STATE", "YT8M_STORAGE", "MLFLOW_TRACKING_URI", "YT8M_EXECUTOR"):
            patch.delenv(name, raising=False)
        state = prepare_state(tmp_path_factory.mktemp("state"))
        materialize(load_recipe("demo"), state, PlainProgress())
    return state


def open_store(state: State) -> ArtifactStore:
    settings = Settings.from_environment(state, {})
    return ArtifactStore(settings.storage_uri, settings.cache_path)


def test_every_model_and_the_ensemble_reach_their_norm_on_unseen_videos(
    state: State, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = read_leaderboard(load_recipe("demo"), open_store(state))
    unseen = figures["simulated"]["test"]
    with capsys.disabled():
        logger.info("random %.4f, oracle %.4f", unseen["random"], unseen["oracle"])
        for name, norm in unseen["norms"].items():
            logger.info("%-24s MAP %.4f  norm %.3f", name, unseen["maps"][name], norm)
    norms = dict(unseen["norms"])
    assert norms.pop("ensemble") >= 0.70
    assert set(norms) == set(load_recipe("demo").model_keys)
    assert min(norms.values()) >= 0.55, norms


def test_the_ensemble_beats_its_best_member_out_of_fold(state: State) -> None:
    maps = dict(read_leaderboard(load_recipe("demo"), open_store(state))["simulated"]["holdout"]["maps"])
    assert maps.pop("ensemble") > max(maps.values())


def test_the_submission_is_valid(state: State) -> None:
    store = open_store(state)
    shards = store.fetch(store.require("segment_shards"))
    classes = [int(line) for line in (shards / "segment_label_ids.csv").read_text().split()[1:]]
    submission = store.fetch(store.require("submission")) / "submission.csv"
    assert validate_submission(submission, classes) == []


def test_pretraining_helps_fine_tuning(state: State, tmp_path: Path) -> None:
    key = "bert_mean_l2h12"
    with_pretraining = open_store(state).require(f"finetuned_model/{key}").metadata["map"]
    recipe = load_recipe("demo").with_models((key,))
    (model,) = recipe.models
    alone = replace(model, pretraining=replace(model.pretraining, num_steps=0, warmup_steps=0))
    other = prepare_state(tmp_path / "state")
    materialize(replace(recipe, models=(alone,)), other, PlainProgress(), until="finetuned_model")
    without = open_store(other).require(f"finetuned_model/{key}").metadata["map"]
    logger.info(
        "%s: hold-out MAP %.4f pre-trained and fine-tuned, %.4f fine-tuned alone", key, with_pretraining, without
    )
    assert with_pretraining > without + 0.01
