"""Rank fusion: the original's output, dicts against arrays, ties, different tables; score averaging."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.ensemble.problem import problem
from yt8m_assets.ensemble import TTA_W0, average_scores, fuse, fuse_rankings
from yt8m_assets.errors import ConfigError, DataError
from yt8m_assets.ranking.files import Ranking, RankingReader, RankingWriter, read_ranking, write_ranking
from yt8m_assets.ranking.fusion import FusedRanking, fuse_into, fused_classes, unified_segments, union_of_classes

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "metrics" / "metrics_ensemble.json").read_text())
LISTS = [{int(class_id): ids for class_id, ids in lists.items()} for lists in GOLDEN["subs"]]


@pytest.mark.parametrize("name", ["tta", "final", "capped"])
def test_both_forms_give_the_original_s_lists(name):
    case = GOLDEN[name]
    expected = {int(class_id): ids for class_id, ids in case["out"].items()}
    k = case["npt"]
    assert fuse_rankings(LISTS, case["weights"], case["w0"], k) == expected
    assert fuse([Ranking.from_dict(lists) for lists in LISTS], case["weights"], case["w0"], k).to_dict() == expected


def random_lists(generator: np.random.Generator, num_lists: int) -> list[dict[int, list[str]]]:
    names = [f"v{number:02d}:{start}" for number in range(20) for start in (0, 5, 10)]
    classes = [3, 1, 7]
    return [
        {
            c: generator.permutation(names)[: generator.integers(0, 61)].tolist()
            for c in classes
            if generator.random() < 0.9
        }
        for _ in range(num_lists)
    ]


@pytest.mark.parametrize("k", [5, 40, 100_000])
@pytest.mark.parametrize("seed", range(8))
def test_arrays_equal_dicts_ties_and_missing_classes_included(seed, k):
    generator = np.random.default_rng(seed)
    lists = random_lists(generator, 4)
    # Equal weights make exact ties: places (a, b) and (b, a) are worth the same.
    weights = [1.0] * 4 if seed % 2 else generator.random(4).tolist()
    fused = fuse([Ranking.from_dict(part) for part in lists], weights, TTA_W0, k).to_dict()
    assert fused == {c: fuse_rankings(lists, weights, TTA_W0, k)[c] for c in fused}
    assert set(fused) == {c for part in lists for c in part}


def test_ties_keep_the_order_in_which_they_were_first_met():
    lists = [{1: ["bbbb:0", "aaaa:0"]}, {1: ["aaaa:0", "bbbb:0", "cccc:0"]}, {1: ["dddd:0"]}]
    expected = {1: ["bbbb:0", "aaaa:0", "dddd:0", "cccc:0"]}
    assert fuse_rankings(lists, [1, 1, 1], 2.0) == expected
    assert fuse([Ranking.from_dict(part) for part in lists], [1, 1, 1], 2.0).to_dict() == expected


def test_a_weight_of_zero_keeps_the_segments_and_silences_the_order():
    lists = [{1: ["aaaa:0", "bbbb:0"]}, {1: ["cccc:0", "bbbb:0", "aaaa:0"]}]
    assert fuse_rankings(lists, [1, 0], 2.0) == {1: ["aaaa:0", "bbbb:0", "cccc:0"]}


def test_scores_are_the_weighted_places():
    fused = fuse([Ranking.from_dict({1: ["aaaa:0", "bbbb:0"]}), Ranking.from_dict({1: ["bbbb:0"]})], [1, 2], 4.0)
    assert fused.to_dict() == {1: ["bbbb:0", "aaaa:0"]}
    assert fused.score.tolist() == pytest.approx([4 / 5 + 2, 1])


def test_rankings_over_one_table_share_it_and_others_are_united():
    rankings, _ = problem({"a": 0.1, "b": 0.5}, num_videos=4)
    same, rows = unified_segments(list(rankings.values()))
    assert rows == [None, None]
    assert same is rankings["a"].segments
    other = Ranking.from_dict({0: ["zzzz:0", "v000:5"]})
    united, (first, second) = unified_segments([rankings["a"], other])
    assert united.ids()[second].tolist() == ["v000:5", "zzzz:0"]
    assert united.ids()[first].tolist() == rankings["a"].segments.ids().tolist()


def test_fusing_into_files_class_by_class_is_fusing_in_memory(tmp_path):
    rankings, _ = problem({"a": 0.1, "b": 0.5, "c": 0.9}, list_size=150)
    for key, ranking in rankings.items():
        (tmp_path / key).mkdir()
        write_ranking(ranking, tmp_path / key)
    readers = [RankingReader(tmp_path / key) for key in rankings]
    with RankingWriter(tmp_path, union_of_classes(readers), unified_segments(readers)[0]) as writer:
        fuse_into(writer, readers, [1, 2, 3], 5.0, 120)
    expected = fuse(list(rankings.values()), [1, 2, 3], 5.0, 120)
    found = read_ranking(tmp_path)
    assert found.to_dict() == expected.to_dict()
    assert found.score.tobytes() == expected.score.tobytes()


def test_a_fused_ranking_is_a_ranking_and_can_be_reweighted():
    rankings, _ = problem({"a": 0.1, "b": 0.9})
    sources = list(rankings.values())
    lazy = FusedRanking(sources, [1, 1], 3.0, 50)
    again = lazy.with_weights([1, 5], 9.0)
    for fused, weights, w0 in ((lazy, [1, 1], 3.0), (again, [1, 5], 9.0), (lazy, [1, 1], 3.0)):
        expected = fuse(sources, weights, w0, 50)
        for class_id in fused.class_ids.tolist():
            assert np.array_equal(fused.entries(class_id)[0], expected.entries(class_id)[0])
    ((class_id, segment, _),) = fused_classes(sources, [1, 5], 9.0, 50, [2])
    assert class_id == 2
    assert np.array_equal(segment, again.entries(2)[0])


def test_averaging_sorts_by_the_weighted_mean_of_the_scores():
    first = Ranking.from_entries([(1, np.array([0, 1, 2]), np.array([0.9, 0.5, 0.1]))], _segments())
    second = Ranking.from_entries([(1, np.array([2, 1, 0]), np.array([0.8, 0.6, 0.2]))], _segments())
    averaged = average_scores([first, second], [1, 3])
    assert averaged.segment.tolist() == [2, 1, 0]
    assert averaged.score.tolist() == pytest.approx([0.625, 0.575, 0.375])


def test_a_segment_cut_from_a_list_takes_its_lowest_score():
    first = Ranking.from_entries([(1, np.array([0, 1]), np.array([0.9, 0.4]))], _segments())
    second = Ranking.from_entries([(1, np.array([2, 1]), np.array([0.8, 0.6]))], _segments())
    averaged = average_scores([first, second], [1, 1])
    assert averaged.segment.tolist() == [0, 2, 1]
    assert averaged.score.tolist() == pytest.approx([(0.9 + 0.6) / 2, (0.4 + 0.8) / 2, 0.5])


def test_averaging_needs_every_class_in_every_ranking():
    first = Ranking.from_entries([(1, np.array([0]), np.array([0.9]))], _segments())
    second = Ranking.from_entries([(2, np.array([0]), np.array([0.9]))], _segments())
    with pytest.raises(DataError, match="nothing for class 1"):
        average_scores([first, second], [1, 1])


def _segments():
    return Ranking.from_dict({1: ["aaaa:0", "aaaa:5", "aaaa:10"]}).segments


@pytest.mark.parametrize(
    ("weights", "w0", "k", "complaint"),
    [
        ([1], 2.0, 10, "1 weights for 2 rankings"),
        ([1, -1], 2.0, 10, "not be negative"),
        ([0, 0], 2.0, 10, "not all zero"),
        ([1, float("nan")], 2.0, 10, "weights"),
        ([1, 1], 0.0, 10, "w0 = 0.0"),
        ([1, 1], float("inf"), 10, "w0 = inf"),
        ([1, 1], 2.0, 0, "k = 0"),
    ],
)
def test_numbers_that_cannot_be_used_are_refused(weights, w0, k, complaint):
    lists = [{1: ["aaaa:0"]}, {1: ["bbbb:0"]}]
    with pytest.raises(ConfigError, match=complaint):
        fuse([Ranking.from_dict(part) for part in lists], weights, w0, k)
