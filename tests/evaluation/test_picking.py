"""How much picking a checkpoint flatters its score: by hand, and where the truth is known."""

import numpy as np
import pytest

from yt8m_assets.evaluation.picking import picking_optimism, whole_scores


def candidate(whole: float, *halves: tuple[float, float]) -> dict[str, float]:
    names = {f"half_{n}{side}": value for n, pair in enumerate(halves) for side, value in zip("ab", pair, strict=True)}
    return {"map": whole, **names}


def test_each_half_picks_and_the_other_answers():
    rows = [candidate(0.5, (0.6, 0.3), (0.5, 0.5)), candidate(0.5, (0.5, 0.6), (0.7, 0.6))]
    found = picking_optimism(rows)
    # Division 0: half a picks row 0 (0.6 against 0.5), half b row 1 (0.6 against 0.3); division 1: both pick row 1.
    assert found.optimism == pytest.approx(((0.1 + 0.3) / 2 + 0) / 2)
    assert (found.num_candidates, found.num_divisions) == (2, 2)


def test_one_candidate_was_not_picked_and_none_leaves_nothing_to_say():
    assert picking_optimism([candidate(0.5, (0.4, 0.6))]).optimism == 0
    assert picking_optimism([{"map": 0.5}, {"map": 0.6}]).optimism is None
    assert picking_optimism([]).num_candidates == 0
    # A division that left a half without a positive somewhere is no division.
    assert picking_optimism([candidate(0.5, (0.4, 0.6)), {"map": 0.4}]).num_divisions == 0


def test_it_grows_with_the_noise_and_the_number_of_candidates_and_is_of_the_true_size():
    """Equally good candidates whose halves are noisy: the best of N normal numbers is too high by a known amount."""
    generator = np.random.default_rng(0)

    def mean_optimism(num_candidates: int, noise: float) -> float:
        found = []
        for _ in range(200):
            halves = 0.8 + noise * generator.normal(size=(num_candidates, 4, 2))
            rows = [candidate(0.8, *map(tuple, divisions)) for divisions in halves.tolist()]
            found.append(picking_optimism(rows).optimism)
        return float(np.mean(found))

    assert mean_optimism(20, 0.01) == pytest.approx(0.0187, rel=0.05)  # E[max of 20 standard normals] = 1.87
    assert mean_optimism(2, 0.01) == pytest.approx(0.0056, rel=0.1)  # of 2: 0.56
    assert mean_optimism(20, 0.002) == pytest.approx(0.0187 / 5, rel=0.05)


def test_it_is_the_true_size_where_candidates_differ_and_a_half_may_be_easier():
    """True quality is known here: what the picked one shows on the half that picked it, less what it is worth there."""
    generator = np.random.default_rng(1)
    quality = np.array([0.80, 0.81, 0.815, 0.81, 0.79])
    estimates, truths = [], []
    for _ in range(2000):
        easier = 0.05 * generator.normal(size=2)  # a half is easier for all candidates alike
        halves = quality[:, None] + easier + 0.01 * generator.normal(size=(5, 2))
        picked = halves.argmax(axis=0)
        truths.append(np.mean(halves[picked, [0, 1]] - quality[picked] - easier))
        estimates.append(picking_optimism([candidate(0.8, tuple(row)) for row in halves.tolist()]).optimism)
    assert np.mean(truths) > 0.005
    assert np.mean(estimates) == pytest.approx(np.mean(truths), rel=0.05)


def test_scores_on_halves_are_kept_out_of_sight():
    assert whole_scores(candidate(0.5, (0.4, 0.6))) == {"map": 0.5}
