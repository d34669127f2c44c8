"""One pass over the videos for many models and shifts, against the original's rankings and against itself."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from models.base import FrameModel
from tests.data.packing import pack_shards
from yt8m_assets.data.dataset.loading import read_ahead
from yt8m_assets.data.dataset.memory import _shared, load_videos
from yt8m_assets.data.dataset.reading import Reading
from yt8m_assets.device.transfer import Arriving
from yt8m_assets.errors import CorruptShardError, NonFiniteError, OutOfMemoryError
from yt8m_assets.prediction import scoring
from yt8m_assets.prediction.blocks import ScoringOptions, SegmentIndex, read_blocks
from yt8m_assets.prediction.scoring import CellScores, ModelCells, score_videos
from yt8m_assets.progress import NullProgress
from yt8m_assets.ranking.demotion import DemotedRanking, best_classes, candidate_mask, edge_mask, video_means
from yt8m_assets.ranking.topk import StreamingTopK

RECORDS = Path(__file__).parents[1] / "golden" / "records"
CLASSES = np.array([int(line) for line in (RECORDS / "toy_segment_label_ids.csv").read_text().split()[1:]])
SHIFTS = (-2, -1, 0, 1, 2)


class Toy(FrameModel):
    """The toy model of the records: sigmoid of the summed, normalised frames over their number, times W."""

    def __init__(self) -> None:
        super().__init__(len(CLASSES), (1024, 128), None)
        self.weights = torch.from_numpy(np.load(RECORDS / "toy_W.npz")["W"][:, CLASSES].astype(np.float32))
        self.batch_sizes: list[int] = []

    def forward(self, frames: torch.Tensor, num_frames: torch.Tensor) -> SimpleNamespace:
        self.batch_sizes.append(len(frames))
        pooled = frames.sum(1) / num_frames[:, None].float()
        return SimpleNamespace(probabilities=torch.sigmoid(pooled @ self.weights))


class Failing(FrameModel):
    """Raises what it was given."""

    def __init__(self, error: Exception) -> None:
        super().__init__(len(CLASSES), (1024, 128), None)
        self.error = error

    def forward(self, frames: torch.Tensor, num_frames: torch.Tensor) -> SimpleNamespace:
        raise self.error


@pytest.fixture(scope="module")
def videos():
    return load_videos([str(RECORDS / "frame_test.tfrecord")], memory_budget=2**30)


def run(videos, models: dict[str, torch.nn.Module], shifts=SHIFTS, **options) -> dict[tuple[str, int], CellScores]:
    index = SegmentIndex.of(videos)
    members = [
        ModelCells(
            key=key,
            model=model,
            cells=[CellScores(shift=shift, best=StreamingTopK(CLASSES, 10**5, index.segments)) for shift in shifts],
        )
        for key, model in models.items()
    ]
    settings = ScoringOptions(**({"edges": "wrap", "batch_size": 16} | options))
    score_videos(videos, index, members, settings, device=torch.device("cpu"), progress=NullProgress())
    return {(member.key, cell.shift): cell for member in members for cell in member.cells}


@pytest.mark.parametrize("budget", [0, 2**30])
def test_a_video_damaged_after_indexing_stops_a_pass_or_is_left_out(tmp_path, budget):
    """F16 over the path that predicts."""
    path = tmp_path / "frame_test.tfrecord"
    content = bytearray((RECORDS / "frame_test.tfrecord").read_bytes())
    path.write_bytes(content)
    strict = Reading()
    shards = pack_shards(tmp_path / "index", [str(path)], strict)

    def segments_scored(videos):
        index = SegmentIndex.of(videos)
        blocks = read_blocks(videos, index, [0], ScoringOptions(edges="wrap", batch_size=16))
        return index.segments.ids()[np.concatenate([block.rows for block in blocks])]

    whole = segments_scored(load_videos(shards, strict, memory_budget=budget))
    _shared.clear()
    content[len(content) // 2] ^= 1  # in the first and largest record
    path.write_bytes(content)
    with pytest.raises(CorruptShardError, match="record 0 at byte 0: the checksum"):
        segments_scored(load_videos(shards, strict, memory_budget=budget))
    left = segments_scored(load_videos(shards, replace(strict, on_corrupt="quarantine"), memory_budget=budget))
    assert sorted(left) == sorted(name for name in whole if not name.startswith(whole[0].split(":")[0]))
    assert 0 < len(left) < len(whole)
    _shared.clear()


def test_one_pass_ranks_what_the_original_ranks_at_every_shift(videos):
    """Equal up to the original's `%g`: it rounds scores to 6 digits before it ranks (SPEC section 10)."""
    cells = run(videos, {"toy": Toy()})
    for shift in SHIFTS:
        ranking = cells["toy", shift].finish()
        names = ranking.segments.ids()
        lines = (RECORDS / f"out_inference_shift{shift}.csv").read_text().splitlines()
        theirs = {int(c): ids.split(" ") for c, ids in (re.fullmatch(r"(\d+),(.*)", line).groups() for line in lines)}
        assert sorted(theirs) == ranking.class_ids.tolist()
        for class_id, ids in theirs.items():
            segment, score = ranking.entries(class_id)
            score_of = dict(zip(names[segment].tolist(), score.tolist(), strict=True))
            assert set(score_of) == set(ids)
            assert [f"{score_of[name]:.5g}" for name in ids] == [f"{value:.5g}" for value in score.tolist()]


@pytest.mark.parametrize("batch_size", [7, 40, 10**4])
def test_a_cell_is_scored_in_the_same_batches_whatever_is_made_beside_it(videos, batch_size):
    """Or its scores could differ in their last bit, and the bytes of what is published."""
    alone, beside = Toy(), Toy()
    run(videos, {"toy": alone}, (1,), batch_size=batch_size)
    run(videos, {"toy": beside}, batch_size=batch_size)
    assert sorted(beside.batch_sizes) == sorted(alone.batch_sizes * len(SHIFTS))
    assert max(alone.batch_sizes) <= 1.5 * batch_size


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # of torch's own compiler
def test_compiled_models_give_the_same_ranking(videos, caplog):
    caplog.set_level("WARNING")
    plain, compiled = (run(videos, {"toy": Toy()}, (0, 1), compile=flag) for flag in (False, True))
    assert "uncompiled" not in caplog.text
    for cell in plain:
        a, b = plain[cell].finish(), compiled[cell].finish()
        assert a.segment.tolist() == b.segment.tolist()
        np.testing.assert_allclose(a.score, b.score, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 7, 10_000])
def test_the_size_of_a_pass_changes_nothing(videos, batch_size: int):
    toy = Toy()
    small = run(videos, {"toy": toy}, (0, 1), batch_size=batch_size)
    assert max(toy.batch_sizes) <= batch_size
    large = run(videos, {"toy": Toy()}, (0, 1))
    for cell in small:
        (a, b) = small[cell].finish(), large[cell].finish()
        np.testing.assert_allclose(a.score, b.score, atol=1e-6)


def test_every_segment_of_every_video_has_its_row(videos):
    index = SegmentIndex.of(videos)
    assert len(index.segments) == sum(-(-int(count) // 5) for count in videos.num_frames)
    names = index.segments.ids()[index.rows]
    for number, video_id in enumerate(videos.video_ids):
        own = names[index.first[number] : index.first[number + 1]].tolist()
        assert own == [f"{video_id}:{start}" for start in range(0, int(videos.num_frames[number]), 5)]


def test_a_failing_model_leaves_the_others_alone(videos):
    error = torch.OutOfMemoryError("CUDA out of memory")
    cells = run(videos, {"bad": Failing(error), "broken": Failing(ValueError("shape")), "toy": Toy()}, (0, 1))
    with pytest.raises(OutOfMemoryError, match=r"bad: .*lower prediction\.batch_size"):
        cells["bad", 0].finish()
    with pytest.raises(ValueError, match="shape"):
        cells["broken", 1].finish()
    expected = run(videos, {"toy": Toy()}, (0, 1))
    np.testing.assert_array_equal(cells["toy", 1].finish().segment, expected["toy", 1].finish().segment)


def test_f27_a_nan_score_ends_its_cell_by_name(videos):
    toy = Toy()
    toy.weights[:, 2] = float("nan")
    cells = run(videos, {"toy": toy}, (0,))
    with pytest.raises(NonFiniteError, match=f"class {CLASSES[2]} for segment"):
        cells["toy", 0].finish()


def test_reading_ahead_gives_the_same_blocks_and_hands_errors_over(videos):
    index, options = SegmentIndex.of(videos), ScoringOptions(batch_size=16)
    ahead = list(read_ahead(read_blocks(videos, index, (0,), options), 2))
    inline = list(read_blocks(videos, index, (0,), options))
    assert len(ahead) == len(inline) > 1
    for a, b in zip(ahead, inline, strict=True):
        assert torch.equal(a.frames, b.frames)
        assert torch.equal(a.index, b.index)

    def broken():
        yield inline[0]
        raise ValueError("damaged shard")

    with pytest.raises(ValueError, match="damaged shard"):
        list(read_ahead(broken(), 2))


def test_ranking_overlaps_with_what_the_device_computes(videos, monkeypatch):
    """On a device that does in turn what it is given: a second of computing and a second of ranking a block."""
    clock = SimpleNamespace(host=0.0, device=0.0, blocks=0)

    class Timed(Toy):
        def forward(self, frames, num_frames):
            clock.device, clock.blocks = max(clock.device, clock.host) + 1, clock.blocks + 1
            return super().forward(frames, num_frames)

    class Timetable(Arriving):
        def __init__(self, values):
            super().__init__(values)
            self.ready = clock.device  # a copy waits for all that the device was given before it

        def get(self):
            clock.host = max(clock.host, self.ready)
            return super().get()

    update = CellScores.update

    def ranked(self, *arguments):
        clock.host += 1
        return update(self, *arguments)

    monkeypatch.setattr(scoring, "Arriving", Timetable)
    monkeypatch.setattr(CellScores, "update", ranked)
    run(videos, {"toy": Timed()}, shifts=(0,), batch_size=8)
    assert clock.blocks > 3
    assert clock.host == clock.blocks + 1


@pytest.mark.parametrize("batch_size", [16, 10_000])
def test_edges_and_other_classes_are_ranked_last_whatever_the_batch(videos, batch_size: int):
    """One pass with the switches on is the pass without them, demoted afterwards (demotion.py)."""
    switches = {"trim_start": 1, "trim_end": 2, "candidate_classes": 3}
    plain = run(videos, {"toy": Toy()}, (0, 1))
    for cell, scores in run(videos, {"toy": Toy()}, (0, 1), batch_size=batch_size, **switches).items():
        ranking, whole = scores.finish(), plain[cell].finish()
        candidate = candidate_mask(best_classes(video_means(whole), 3), len(CLASSES))
        demoted = DemotedRanking(whole, edge_mask(whole.segments, 1, 2), candidate)
        for class_id in ranking.class_ids.tolist():
            segment, score = ranking.entries(class_id)
            assert segment.size == len(whole.segments)
            np.testing.assert_allclose(score, demoted.entries(class_id)[1], atol=1e-6)
        assert ranking.score.min() < -2
        assert scores.lowest >= 0
