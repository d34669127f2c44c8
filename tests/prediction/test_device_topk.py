"""Lists that stay on the device, on CPU tensors: the rankings are those of the host's lists, bit for bit."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.prediction.test_entering import CPU, random_videos
from tests.prediction.test_scoring import CLASSES, SHIFTS, Toy
from yt8m_assets.device.transfer import Arriving
from yt8m_assets.errors import NonFiniteError
from yt8m_assets.prediction import device_topk
from yt8m_assets.prediction.blocks import ScoringOptions, SegmentIndex
from yt8m_assets.prediction.device_topk import DeviceTopK, Kept
from yt8m_assets.prediction.scoring import CellScores, ModelCells, score_videos
from yt8m_assets.progress import NullProgress
from yt8m_assets.ranking.files import Ranking
from yt8m_assets.ranking.topk import StreamingTopK

ROOM = device_topk._ROOM


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers are cut after a few blocks, and not all classes at once."""
    monkeypatch.setattr(device_topk, "_ROOM", 16)
    monkeypatch.setattr(device_topk, "_CLASSES", 3)


def assert_same(one: Ranking, two: Ranking) -> None:
    for name in ("class_ids", "offsets", "segment", "score"):
        assert np.array_equal(getattr(one, name), getattr(two, name)), name


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_rankings_are_those_of_the_hosts_lists(seed: int, late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal scores, both zeros, any order of rows, any k; also where counts come to the host late."""
    if late:
        draws_of_arrival = np.random.default_rng(seed)
        monkeypatch.setattr(Arriving, "is_here", property(lambda _: bool(draws_of_arrival.random() < 0.3)))
    draws = np.random.default_rng(seed)
    for number in range(6):
        segments = SegmentIndex.of(random_videos(int(draws.integers(1, 30)))).segments  # type: ignore[arg-type]
        count, class_ids = len(segments), draws.permutation(100)[: draws.integers(1, 9)]
        k = count if number == 0 else int(draws.integers(1, count + 1))
        host, device = StreamingTopK(class_ids, k, segments), DeviceTopK(class_ids, k, segments, CPU)
        order = draws.permutation(count)
        for rows in np.split(order, np.sort(draws.integers(0, count + 1, 8))):
            scores = draws.standard_normal((len(rows), len(class_ids)), np.float32)
            scores = (scores * 4).round() / 4 if number % 2 else scores
            scores[draws.random(scores.shape) < 0.05] = -0.0
            host.update(scores, rows)
            device.update(torch.from_numpy(scores), rows)
        assert_same(host.finish(), device.finish())


def test_a_buffer_is_cut_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each cut lets in fewer: 100 of 4000 enter 470 times, and a buffer has room for 50 beyond them."""
    cuts: list[int] = []
    cut = DeviceTopK._cut
    monkeypatch.setattr(DeviceTopK, "_cut", lambda self: cuts.append(1) or cut(self))  # type: ignore[func-returns-value]
    segments = SegmentIndex.of(random_videos(140)).segments  # type: ignore[arg-type]
    best = DeviceTopK(np.arange(4), 100, segments, CPU)
    draws = np.random.default_rng(0)
    for rows in np.array_split(draws.permutation(4000), 400):
        best.update(torch.from_numpy(draws.random((len(rows), 4), np.float32)), rows)
    assert 6 <= len(cuts) <= 14


def test_counts_that_come_a_block_late_are_no_reason_to_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host is a block ahead of the device, and a block has a batch of segments and a video's more."""

    class Late(Arriving):
        newest: Arriving | None = None

        def __init__(self, values: torch.Tensor) -> None:
            super().__init__(values)
            Late.newest = self

        @property
        def is_here(self) -> bool:
            return self is not Late.newest

    cuts: list[int] = []
    cut = DeviceTopK._cut
    monkeypatch.setattr(device_topk, "Arriving", Late)
    monkeypatch.setattr(device_topk, "_ROOM", ROOM)
    monkeypatch.setattr(DeviceTopK, "_cut", lambda self: cuts.append(1) or cut(self))  # type: ignore[func-returns-value]
    size = 8192 + 59
    segments: Any = range(40 * size)
    best = DeviceTopK(np.arange(2), 1000, segments, CPU)
    draws = np.random.default_rng(0)
    for rows in np.split(np.arange(40 * size), 40):
        best.update(torch.from_numpy(draws.random((size, 2), np.float32)), rows)
    assert 1 <= len(cuts) <= 4


def run(videos: Any, model: Any, kept: bool, **options: Any) -> list[CellScores]:
    index = SegmentIndex.of(videos)
    cells = [
        CellScores(
            shift=shift,
            best=DeviceTopK(CLASSES[::-1], 50, index.segments, CPU)
            if kept
            else StreamingTopK(CLASSES[::-1], 50, index.segments),
        )
        for shift in SHIFTS
    ]
    chosen = ScoringOptions(batch_size=64, **options)
    members = [ModelCells(key="toy", model=model, cells=cells)]
    score_videos(videos, index, members, chosen, device=CPU, progress=NullProgress())
    return cells


@pytest.mark.parametrize("options", [{}, {"trim_start": 2, "trim_end": 1}])
def test_a_pass_ranks_the_same_on_the_device(options: dict[str, int]) -> None:
    videos = random_videos(60)
    for host, device in zip(run(videos, Toy(), False, **options), run(videos, Toy(), True, **options), strict=True):
        assert (host.lowest, host.highest) == (device.lowest, device.highest)
        assert_same(host.finish(), device.finish())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_named_and_the_other_cells_go_on(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Toy()
    forward, calls = model.forward, iter(range(10**6))

    def broken(frames: torch.Tensor, num_frames: torch.Tensor) -> Any:
        output = forward(frames, num_frames)
        if next(calls) == 9:
            output.probabilities[3, 5] = value
        return output

    monkeypatch.setattr(model, "forward", broken)
    cells = run(random_videos(60), model, True)
    (failed,) = (cell for cell in cells if cell.error is not None)
    with pytest.raises(NonFiniteError, match=rf"class {CLASSES[::-1][5]} for segment v.* is {value}"):
        failed.finish()
    assert isinstance(failed.best, DeviceTopK)
    assert not failed.best._keys.untyped_storage().nbytes(), "what has failed leaves its room to the others"
    assert all(len(cell.finish().score) for cell in cells if cell is not failed)


def test_of_two_faults_the_first_is_named() -> None:
    """The second block is on its way when the first is found out."""
    segments = SegmentIndex.of(random_videos(4)).segments  # type: ignore[arg-type]
    best = DeviceTopK(np.arange(2), 3, segments, CPU)
    cell, edge = CellScores(shift=0, best=best), np.zeros(1, bool)
    blocks: list[Any] = [SimpleNamespace(rows=np.array([row]), edge=edge) for row in (7, 2)]
    sent = [Kept(torch.full((1, 2), torch.nan), best, edge, block.rows) for block in blocks]
    for arrived, block in zip(sent, blocks, strict=True):
        cell.take(arrived, block, ScoringOptions())
    with pytest.raises(NonFiniteError, match=f"segment {segments.name(7)} "):
        cell.finish()


@pytest.mark.parametrize(("free", "fits"), [(1999, False), (2001, True)])
def test_lists_stay_on_a_gpu_that_has_room_for_them(free: float, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    need = 2 * device_topk.bytes_of(4, 10, 1000)
    unused = [need]  # what this process has had of the device before and keeps for its next tensors
    monkeypatch.setattr(torch.cuda, "empty_cache", unused.clear)
    there = free / 2000 * need / device_topk._SHARE
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (there - sum(unused), 10**12))
    assert device_topk.has_room(torch.device("cuda"), 2, 4, 10, 1000) is fits
    assert not device_topk.has_room(CPU, 2, 4, 10, 1000)
    best = DeviceTopK(np.arange(4), 10, SegmentIndex.of(random_videos(40)).segments, CPU)  # type: ignore[arg-type]
    assert best._keys.nbytes == device_topk.bytes_of(4, 10, 1000)
