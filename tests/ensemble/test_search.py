"""The weight search: never worse than where it starts, seeded, resumable, honest about unseen videos."""

import json

import numpy as np
import pytest

from tests.ensemble.problem import problem
from yt8m_assets.ensemble import ORIGINAL_W0, ORIGINAL_WEIGHTS, SearchConfig, fuse, search_weights
from yt8m_assets.ensemble.nested import NestedResult
from yt8m_assets.ensemble.objective import FusionObjective
from yt8m_assets.ensemble.proposal import candidate
from yt8m_assets.ensemble.search import shrinking
from yt8m_assets.ensemble.trial import read_trials
from yt8m_assets.errors import CheckpointMismatchError, ConfigError, DataError
from yt8m_assets.evaluation import Ratings, ranking_map

QUICK = SearchConfig(num_trials=400, num_initial_points=4, num_starts=2, num_folds=3, seed=3)
NOISES = {"bert_l2h12": 0.4, "bert_l3h12": 0.6, "bert_mean_l2h12": 3.0}


@pytest.fixture(scope="module")
def made():
    return problem(NOISES, share_rated=0.3)


@pytest.fixture(scope="module")
def found(made):
    return search_weights(*made, config=QUICK)


def test_the_best_trial_is_at_least_every_preset_and_the_best_ranking_alone(found):
    presets = [trial.target for trial in found.trials if trial.phase == "preset"]
    assert len(presets) == 4
    assert found.best.target == max(trial.target for trial in found.trials)
    assert found.best.target >= max(presets)
    assert found.best.target >= found.best_single[1]
    assert found.equal_weights_map == found.trials[0].target


def test_where_the_folds_cannot_tell_the_trusted_ranking_is_taken():
    """What its rival adds is less than noise on these few videos; with equal weights to go back to, both are kept."""
    rankings, ratings = problem({"a": 0.4, "b": 0.9}, num_videos=12, share_rated=0.2, seed=2)
    found = search_weights(rankings, ratings, config=QUICK, presets={}, trusted="a")
    assert found.amount == 1
    assert found.weights == {"a": 1.0, "b": 0.0}
    assert found.map == found.single_maps["a"]
    assert found.nested.towards == found.towards == "a alone"
    plain = search_weights(rankings, ratings, config=QUICK, presets={})
    assert plain.weights["b"] > 0.4
    assert plain.nested.equal_map != found.nested.equal_map
    assert found.to_json()["shrinking"]["towards"] == found.to_json()["nested"]["towards"] == "a alone"
    assert found.reason.endswith("not more than noise")


def test_a_trusted_ranking_that_is_noise_is_left_where_the_folds_tell():
    rankings, ratings = problem({"good": 0.3, "noise": 4.0}, num_videos=60, share_rated=0.3)
    found = search_weights(rankings, ratings, config=QUICK, presets={}, trusted="noise")
    assert found.amount < 0.5
    assert found.weights["good"] > 0.5
    assert found.nested.gain > 2 * found.nested.gain_standard_error


def test_without_a_trusted_ranking_nothing_is_said_of_one(found):
    plain = found.to_json()
    assert "towards" not in plain["shrinking"]
    assert "towards" not in plain["nested"]


def plain_local_search(objective: FusionObjective, budget: int = 3000) -> float:
    """From equal weights: one number at a time times and by a factor, off, or on again; what is better is kept."""
    point = np.array([ORIGINAL_W0, *[1 / len(objective.keys)] * len(objective.keys)])

    def value(point: np.ndarray) -> float:
        return objective(point[0], dict(zip(objective.keys, point[1:] / point[1:].sum(), strict=True)))

    best, left = value(point), budget
    for factor in (2.0, 1.4, 1.15):
        better = True
        while better and left > 0:
            better = False
            for place in range(point.size):
                on_again = [0.5 * point[1:].max(), 0.1 * point[1:].max(), 0.02 * point[1:].max()]
                changes = [point[place] * factor, point[place] / factor, *([0.0] if place else [])]
                for changed in changes if point[place] else on_again:
                    tried = point.copy()
                    tried[place] = changed
                    if not 0.1 <= tried[0] <= 1000 or tried[1:].sum() <= 0:
                        continue
                    left -= 1
                    if value(tried) > best:
                        point, best, better = tried, value(tried), True
                        break
    return best


@pytest.mark.parametrize("seed", range(12))
def test_it_never_ends_below_a_plain_local_search(seed):
    """A third of the problems: one strong ranking among weak ones, where the best preset is that ranking alone."""
    generator = np.random.default_rng(seed)
    strong, any_noise = [0.5, *[2.5] * 8], generator.uniform(0.4, 4.0, 6).tolist()
    alike = generator.uniform(0.6, 1.2, 9).tolist()
    noises = {f"m{number}": noise for number, noise in enumerate((strong, any_noise, alike)[seed % 3])}
    rankings, ratings = problem(noises, share_rated=0.3, seed=seed)
    found = search_weights(rankings, ratings, config=SearchConfig(num_trials=700, num_starts=2, num_folds=0))
    assert found.best.target >= plain_local_search(FusionObjective(rankings, ratings)) - 1e-12
    if seed % 3 == 0:
        assert sum(weight > 0 for weight in found.best.weights.values()) > 1


def test_the_first_trials_are_equal_weights_and_the_original_s(found):
    assert found.trials[0].params == {"w0": ORIGINAL_W0, **dict.fromkeys(NOISES, 1 / 3)}
    total = sum(ORIGINAL_WEIGHTS[key] for key in NOISES)
    assert found.trials[1].weights == pytest.approx({key: ORIGINAL_WEIGHTS[key] / total for key in NOISES})
    assert [t.phase for t in found.trials[:9]] == ["preset"] * 4 + ["random"] * 4 + ["refinement"]
    phases = [t.phase for t in found.trials[8:]]
    assert phases.count("model") == QUICK.num_starts
    assert set(phases) == {"model", "refinement"}
    assert len(found.trials) == QUICK.num_trials


def test_its_map_is_that_of_the_fusion_it_names(made, found):
    rankings, ratings = made
    fused = fuse(list(rankings.values()), [found.weights[key] for key in rankings], found.w0)
    assert ranking_map(fused, ratings).map == pytest.approx(found.map, abs=1e-12)
    assert sum(found.weights.values()) == pytest.approx(1)
    best = fuse(list(rankings.values()), [found.best.weights[key] for key in rankings], found.best.w0)
    assert ranking_map(best, ratings).map == pytest.approx(found.best.target, abs=1e-12)
    for key, ranking in rankings.items():
        assert found.single_maps[key] == ranking_map(ranking, ratings).map
    assert found.best_single == ("bert_l2h12", found.single_maps["bert_l2h12"])


def test_the_weights_are_the_best_trial_s_shrunk_as_the_folds_say(found):
    assert found.amount == found.nested.amount
    assert found.reason == found.nested.reason
    equal = found.trials[0].weights
    for key, weight in found.weights.items():
        assert weight == pytest.approx((1 - found.amount) * found.best.weights[key] + found.amount * equal[key])


def test_shrinking_stops_where_the_best_ranking_alone_would_be_better():
    rankings, ratings = problem({"a": 0.2, "b": 3.0, "c": 3.0}, share_rated=0.3)
    nested = NestedResult(
        amount=1.0,
        gain=-0.1,
        gain_standard_error=0.1,
        searched_map=0.5,
        equal_map=0.6,
        gains=(-0.1, -0.1, -0.1, -0.1, 0.0),
        standard_errors=(0.1, 0.1, 0.1, 0.1, 0.0),
        fold_gains=(-0.1, -0.1),
    )
    objective = FusionObjective(rankings, ratings)
    singles = [ranking_map(ranking, ratings).map for ranking in rankings.values()]
    searched, equal = candidate(6.0, [1, 0.1, 0.1], "refinement"), candidate(6.0, [1, 1, 1], "preset")
    amount, reason = shrinking(objective, searched, equal, nested, max(singles))
    assert amount < 1
    assert "the best model alone is better on the hold-out" in reason
    assert shrinking(objective, searched, equal, nested, 0.0) == (1.0, nested.reason)
    assert shrinking(objective, searched, equal, None, 0.0)[0] == 1  # nothing says that the search does any good
    assert shrinking(objective, searched, equal, None, max(singles))[0] == amount


def test_folds_begin_from_points_that_no_rating_chose(made, monkeypatch):
    """Which ranking is the best alone is found on the other folds, never on those that are scored."""
    rankings, ratings = made
    given: list[list[tuple[float, ...]]] = []

    def watched(objective, first, *rest):
        given.append([(point.w0, *point.weights) for point in first])

    monkeypatch.setattr("yt8m_assets.ensemble.search.cross_validate", watched)
    turned = Ratings.from_dict({pair: 1 - score for pair, score in ratings.to_dict().items()})
    short = SearchConfig(num_trials=1, num_initial_points=2)
    best = [search_weights(rankings, part, config=short).best_single[0] for part in (ratings, turned)]
    assert best == ["bert_l2h12", "bert_mean_l2h12"]
    assert given[0] == given[1]
    assert {(ORIGINAL_W0, 1, 0, 0), (ORIGINAL_W0, 0, 1, 0), (ORIGINAL_W0, 0, 0, 1)} <= set(given[0])


def test_noise_gets_little_weight(found):
    assert found.weights["bert_mean_l2h12"] < 0.2


def test_the_seed_decides_everything(made, found):
    again = search_weights(*made, config=QUICK)
    assert [(t.params, t.target) for t in again.trials] == [(t.params, t.target) for t in found.trials]
    assert again.nested == found.nested


@pytest.mark.parametrize("kept", [1, 6, 10, 60, 250, 399])
def test_a_stopped_search_goes_on_as_it_would_have(made, found, tmp_path, kept):
    rankings, ratings = made
    path = tmp_path / "trials.jsonl"

    class Killed(Exception):
        pass

    def stop(trial):
        if trial.number == kept - 1:
            raise Killed

    with pytest.raises(Killed):
        search_weights(rankings, ratings, config=QUICK, log_path=path, on_trial=stop)
    assert len(read_trials(path)) == kept
    new = []
    resumed = search_weights(rankings, ratings, config=QUICK, log_path=path, on_trial=lambda t: new.append(t.number))
    assert [(t.params, t.target) for t in resumed.trials] == [(t.params, t.target) for t in found.trials]
    assert new == list(range(kept, len(found.trials)))
    assert len(read_trials(path)) == len(found.trials)
    assert (resumed.map, resumed.weights) == (found.map, found.weights)


def test_a_log_of_other_data_is_refused(made, tmp_path):
    rankings, ratings = made
    path = tmp_path / "trials.jsonl"
    short = SearchConfig(num_trials=5, num_initial_points=1, num_folds=0)
    search_weights(rankings, ratings, config=short, log_path=path)
    with pytest.raises(CheckpointMismatchError, match="trial 0 of the search log"):
        search_weights(rankings, ratings.select(np.arange(len(ratings)) % 2 == 0), config=short, log_path=path)
    fewer = {key: rankings[key] for key in list(rankings)[:2]}
    with pytest.raises(CheckpointMismatchError, match="move it away"):
        search_weights(fewer, ratings, config=short, log_path=path)


def test_the_summary_is_plain_json(found):
    summary = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert (summary["w0"], summary["weights"], summary["map"]) == (found.w0, found.weights, found.map)
    assert summary["single_maps"] == found.single_maps
    assert summary["equal_map"] == found.equal_weights_map
    assert summary["best_single"] == {"key": "bert_l2h12", "map": found.best_single[1]}
    assert summary["num_trials"] == len(found.trials)
    assert summary["searched"] == {"w0": found.best.w0, "weights": found.best.weights, "map": found.best.target}
    assert summary["shrinking"] == {"amount": found.amount, "reason": found.reason}
    assert summary["nested"]["amount"] == found.amount
    assert len(summary["nested"]["fold_gains"]) == 3 * 3


def test_presets_can_be_given_and_must_fit(made):
    rankings, ratings = made
    short = SearchConfig(num_trials=1, num_initial_points=1, num_folds=0)
    best = search_weights(
        rankings,
        ratings,
        config=short,
        presets={"mine": (7.0, {"bert_l2h12": 2, "bert_l3h12": 2, "bert_mean_l2h12": 0})},
    )
    assert best.trials[1].params == {"w0": 7.0, "bert_l2h12": 0.5, "bert_l3h12": 0.5, "bert_mean_l2h12": 0.0}
    assert best.nested is None
    with pytest.raises(ConfigError, match="'mine' has no weight for bert_mean_l2h12"):
        search_weights(rankings, ratings, config=short, presets={"mine": (7.0, {"bert_l2h12": 2, "bert_l3h12": 2})})


def test_one_ranking_alone_is_searched_without_harm():
    rankings, ratings = problem({"only": 0.5}, share_rated=0.3)
    short = SearchConfig(num_trials=10, num_initial_points=1, num_starts=1, num_folds=2)
    found = search_weights(rankings, ratings, config=short)
    assert found.weights == {"only": 1.0}
    assert found.amount == found.nested.amount == 1  # not the other way for a rounding
    assert found.map == pytest.approx(found.best_single[1])


def test_the_cut_is_respected(made):
    rankings, ratings = made
    short = SearchConfig(num_trials=40, num_initial_points=2, num_starts=1, num_folds=0)
    cut = search_weights(rankings, ratings, config=short, k=40)
    best = fuse(list(rankings.values()), [cut.weights[key] for key in rankings], cut.w0, 40)
    assert ranking_map(best, ratings, 40).map == pytest.approx(cut.map, abs=1e-12)
    assert cut.map < search_weights(rankings, ratings, config=short).map


def test_nothing_to_search_for_is_named(made):
    with pytest.raises(DataError, match="no class with a positive"):
        search_weights(made[0], Ratings.from_dict({("v000:0", 0): 0}), config=QUICK)
