import numpy as np
import pytest

from tests.data.factory import GOLDEN, normalise
from yt8m_assets.data.dataset.windows import dequantise, segment_frame_index, segment_windows
from yt8m_assets.errors import ConfigError

GOLD = np.load(GOLDEN / "out_get_segments.npz")


@pytest.mark.parametrize("shift", [-2, -1, 0, 1, 2])
def test_wrap_is_the_originals_roll(shift):
    rows = 0
    for number, length in enumerate(GOLD["num_frames"]):
        index, starts, num_frames = segment_frame_index(int(length), shift, "wrap")
        matrix = GOLD["matrix"][number]
        windows = np.where(index[..., None] >= 0, matrix[index], 0)
        span = slice(rows, rows + len(starts))
        assert np.array_equal(windows, GOLD[f"shift{shift}/video_batch"][span])
        assert np.array_equal(num_frames, GOLD[f"shift{shift}/num_frames_batch"][span])
        video_id = GOLD["ids"][number].decode()
        assert [f"{video_id}:{start}" for start in starts] == [
            i.decode() for i in GOLD[f"shift{shift}/segment_ids"][span]
        ]
        rows += len(starts)
    assert rows == len(GOLD[f"shift{shift}/num_frames_batch"])


def row(length, shift, edges, number):
    return segment_frame_index(length, shift, edges)[0][number].tolist()


def test_the_examples_of_the_specification():
    assert row(123, 2, "wrap", 0) == [-1, -1, 0, 1, 2]
    assert row(123, -1, "wrap", 24) == [121, 122, -1, -1, -1]
    assert row(300, -2, "wrap", 59) == [297, 298, 299, 0, 1]
    assert row(300, 1, "wrap", 0) == [299, 0, 1, 2, 3]


def test_clamp_shows_the_nearest_real_frame():
    assert row(123, 2, "clamp", 0) == [0, 0, 0, 1, 2]
    assert row(300, -2, "clamp", 59) == [297, 298, 299, 299, 299]
    assert row(300, 1, "clamp", 0) == [0, 0, 1, 2, 3]
    assert row(123, -1, "clamp", 24) == [121, 122, 122, -1, -1]
    assert row(123, 2, "clamp", 24) == [118, 119, 120, 121, 122]


@pytest.mark.parametrize("length", [0, 1, 4, 5, 6, 123, 299, 300, 310])
def test_without_a_shift_both_edges_are_the_original(length):
    for left, right in zip(
        segment_frame_index(length, 0, "clamp"), segment_frame_index(length, 0, "wrap"), strict=True
    ):
        assert np.array_equal(left, right)


@pytest.mark.parametrize("shift", [-2, -1, 1, 2])
@pytest.mark.parametrize("length", [1, 7, 123, 300])
def test_clamp_differs_from_wrap_only_where_wrap_has_no_nearby_frame(shift, length):
    clamp, starts, _ = segment_frame_index(length, shift, "clamp")
    wrap, _, _ = segment_frame_index(length, shift, "wrap")
    source = starts[:, None] + np.arange(5) - shift
    real = (source >= 0) & (source < min(length, 300))
    assert np.array_equal(clamp[real], wrap[real])
    inside = starts[:, None] + np.arange(5) < min(length, 300)
    assert (clamp[inside] >= 0).all()


def test_windows_are_dequantised_and_zero_outside():
    frames = np.random.default_rng(0).integers(0, 256, (7, 12), dtype=np.uint8)
    windows, starts, num_frames = segment_windows(frames, 0)
    assert (windows.shape, windows.dtype) == ((2, 5, 12), np.float32)
    assert starts.tolist() == [0, 5]
    assert num_frames.tolist() == [5, 2]
    assert np.array_equal(windows[1, :2], dequantise(frames[5:]))
    assert not windows[1, 2:].any()


def test_a_video_without_frames_has_no_segments():
    windows, starts, _ = segment_windows(np.empty((0, 12), np.uint8), 1)
    assert windows.shape == (0, 5, 12)
    assert len(starts) == 0


def test_dequantising_ends_and_normalising():
    ends = dequantise(np.array([0, 255], np.uint8))
    assert ends == pytest.approx([-1.9921875, 2.0078125])
    rows = np.concatenate([dequantise(np.arange(24, dtype=np.uint8).reshape(2, 12)), np.zeros((1, 12), np.float32)])
    assert np.linalg.norm(normalise(rows), axis=1) == pytest.approx([1, 1, 0])


def test_an_unknown_edge_rule_is_refused():
    with pytest.raises(ConfigError, match="edges"):
        segment_frame_index(10, 0, "mirror")  # type: ignore[arg-type]
