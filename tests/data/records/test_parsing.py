"""Every encoding that protobuf accepts is read as protobuf reads it, whichever path it takes."""

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.factory import SIZES, encode, encode_video_example, make_video, same_video
from yt8m_assets.data.records.parsing import MAX_FRAMES, MAX_LABELS, RecordParser
from yt8m_assets.data.records.wire import bytes_feature, example_messages, field, float_feature, map_entry, varint
from yt8m_assets.errors import SchemaMismatchError

VIDEO = make_video("abcd", 6, [3, 300], [(0, 1, 1.0), (5, 2, 0.0)])


def parse(record: bytes):
    return RecordParser("shard", SIZES).parse(memoryview(record))


def located(record: bytes) -> bool:
    return RecordParser("shard", SIZES).locator.locate(memoryview(record)) is not None


def message(record: bytes):
    return example_messages().SequenceExample.FromString(record)


def long_varint(value: int, length: int) -> bytes:
    """A varint padded with empty groups: legal, not canonical."""
    encoded = bytearray(varint(value))
    while len(encoded) < length:
        encoded[-1] |= 0x80
        encoded.append(0)
    return bytes(encoded)


def flist(name: str, frames: np.ndarray, frame=lambda row: bytes_feature(row.tobytes())) -> bytes:
    return map_entry(name, b"".join(field(1, frame(row)) for row in frames))


def parts(video=VIDEO):
    """The pieces of a record: context entries and both lists' entries."""
    record = message(encode(video))
    context = [map_entry(key, value.SerializeToString()) for key, value in record.context.feature.items()]
    return context, flist("rgb", video.frames[:, :8]), flist("audio", video.frames[:, 8:])


def assemble(context, *lists) -> bytes:
    return field(1, b"".join(context)) + field(2, b"".join(lists))


def frames_of(frames: np.ndarray) -> bytes:
    return b"".join(field(1, bytes_feature(row.tobytes())) for row in frames)


def unpacked_int64(values) -> bytes:
    return field(3, b"".join(b"\x08" + varint(int(value)) for value in values))


CONTEXT, RGB, AUDIO = parts()
UNKNOWN = b"\x7a\x03xyz" + b"\x80\x01\x05"
ODD = {
    "audio first": assemble(CONTEXT, AUDIO, RGB),
    "context after the lists": field(2, RGB + AUDIO) + field(1, b"".join(CONTEXT)),
    "context in two pieces": field(1, CONTEXT[0]) + field(1, b"".join(CONTEXT[1:])) + field(2, RGB + AUDIO),
    "lists in two pieces": field(1, b"".join(CONTEXT)) + field(2, RGB) + field(2, AUDIO),
    "context reversed": assemble(CONTEXT[::-1], RGB, AUDIO),
    "unknown field at the end": assemble(CONTEXT, RGB, AUDIO) + UNKNOWN,
    "unknown field at the start": UNKNOWN + assemble(CONTEXT, RGB, AUDIO),
    "unknown field in the context": assemble([*CONTEXT, UNKNOWN], RGB, AUDIO),
    "unknown field in the lists": assemble(CONTEXT, RGB, AUDIO, UNKNOWN),
    "a list twice, the last one counts": assemble(CONTEXT, flist("rgb", VIDEO.frames[:2, :8]), RGB, AUDIO),
    "another list as well": assemble(CONTEXT, RGB, AUDIO, flist("flow", VIDEO.frames[:, :3])),
    "another feature as well": assemble([*CONTEXT, map_entry("title", bytes_feature(b"x"))], RGB, AUDIO),
    "long varints": b"\x0a" + long_varint(len(b"".join(CONTEXT)), 5) + b"".join(CONTEXT) + b"\x12"
    + long_varint(len(RGB + AUDIO), 9) + RGB + AUDIO,
    "long varint in one frame": assemble(
        CONTEXT, map_entry("rgb", b"".join(
            b"\x0a" + long_varint(10 + 2, 3 if number == 4 else 1) + b"\x0a" + varint(10) + b"\x0a\x08" + row.tobytes()
            for number, row in enumerate(VIDEO.frames[:, :8]))), AUDIO),
    "unknown field in a frame": assemble(
        CONTEXT, flist("rgb", VIDEO.frames[:, :8], lambda row: bytes_feature(row.tobytes()) + UNKNOWN), AUDIO),
    "value before key": assemble(
        CONTEXT, field(1, field(2, RGB[RGB.index(b"rgb") + 5:]) + field(1, b"rgb")), AUDIO),
    "frames of both lists in two pieces": assemble(CONTEXT, *(
        field(1, field(1, name) + field(2, frames_of(frames[:2])) + field(2, frames_of(frames[2:])))
        for name, frames in ((b"rgb", VIDEO.frames[:, :8]), (b"audio", VIDEO.frames[:, 8:])))),
    "unpacked labels": assemble(
        [entry for entry in CONTEXT if b"\x06labels" not in entry] + [map_entry("labels", unpacked_int64([3, 300]))],
        RGB, AUDIO),
    "labels in two pieces": assemble(
        [entry for entry in CONTEXT if b"\x06labels" not in entry]
        + [map_entry("labels", field(3, field(1, varint(3)) + field(1, varint(300))))], RGB, AUDIO),
}  # fmt: skip


def test_the_pieces_make_the_canonical_record():
    assert same_video(parse(assemble(CONTEXT, RGB, AUDIO)), VIDEO)
    assert located(encode(VIDEO))


@pytest.mark.parametrize("name", ODD)
def test_odd_encodings_are_read_as_protobuf_reads_them(name):
    record = ODD[name]
    example = message(record)
    lists = example.feature_lists.feature_list
    frames = [b"".join(f.bytes_list.value[0] for f in lists[key].feature) for key in ("rgb", "audio")]
    expected = np.concatenate(
        [np.frombuffer(frames[0], np.uint8).reshape(-1, 8), np.frombuffer(frames[1], np.uint8).reshape(-1, 4)], 1
    )
    assert np.array_equal(parse(record).frames, expected)
    assert same_video(parse(record), VIDEO)


@pytest.mark.parametrize("name", ["audio first", "context reversed", "unpacked labels"])
def test_harmless_variations_stay_on_the_fast_path(name):
    assert located(ODD[name])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_fast_path_never_disagrees_with_protobuf(data):
    """Flip bytes of a record: whatever the locator accepts, protobuf reads to the same frames."""
    record = bytearray(encode(VIDEO))
    for _ in range(data.draw(st.integers(1, 3))):
        record[data.draw(st.integers(0, len(record) - 1))] = data.draw(st.integers(0, 255))
    parser = RecordParser("shard", SIZES)
    layout = parser.locator.locate(memoryview(bytes(record)))
    if layout is None or layout.rgb_start < 0:
        return
    try:
        lists = message(bytes(record)).feature_lists.feature_list
    except DecodeError:
        return  # the context is damaged, which the parser reports when it parses it
    for key, size, columns in (("rgb", 8, slice(0, 8)), ("audio", 4, slice(8, 12))):
        expected = np.frombuffer(b"".join(f.bytes_list.value[0] for f in lists[key].feature), np.uint8).reshape(
            -1, size
        )
        assert np.array_equal(parser.locator.frames(memoryview(bytes(record)), layout)[:, columns], expected)


def test_any_stretch_of_a_located_records_frames_is_copied_alone():
    parser, view = RecordParser("shard", SIZES), memoryview(encode(VIDEO))
    layout = parser.locator.locate(view)
    assert layout is not None
    for first in range(len(VIDEO.frames) + 1):
        assert np.array_equal(parser.locator.frames(view, layout, first), VIDEO.frames[first:])
        for count in range(len(VIDEO.frames) - first + 1):
            stretch = parser.locator.frames(view, layout, first, count)
            assert np.array_equal(stretch, VIDEO.frames[first : first + count])


def test_a_video_without_frames_and_without_labels():
    video = parse(encode(make_video("abcd", 0)))
    assert video.frames is not None
    assert video.frames.shape == (0, 12)
    assert len(video.labels) == 0


def test_a_video_level_record_and_the_old_id():
    mean = np.arange(12, dtype=np.float32)
    video = parse(encode_video_example("abcd", mean, [7], feature_sizes=SIZES))
    assert (video.frames, video.labels.tolist()) == (None, [7])
    assert np.array_equal(video.mean_features, mean)
    context = [map_entry("video_id", bytes_feature(b"wxyz")), map_entry("mean_rgb", float_feature(mean[:8])),
               map_entry("mean_audio", float_feature(mean[8:]))]  # fmt: skip
    for empty in ([], [map_entry("id", b"")], [map_entry("id", bytes_feature(b""))], [map_entry("id", field(1, b""))]):
        assert parse(field(1, b"".join([*empty, *context]))).video_id == "wxyz"
    both = [map_entry("id", bytes_feature(b"abcd")), *context]
    assert parse(field(1, b"".join(both))).video_id == "abcd", "the new name goes before the old one"


def without(name: bytes):
    return [entry for entry in CONTEXT if name not in entry]


BAD = {
    "no id": (assemble(without(b"\x02id"), RGB, AUDIO), "id: expected one byte string, got none"),
    "an id that is a path": (
        assemble([*without(b"\x02id"), map_entry("id", bytes_feature(b"../etc"))], RGB, AUDIO),
        r"id: expected 4 to 11 .*, got '\.\./etc'; write videos of your own under such ids",
    ),
    "an id with a newline": (
        assemble([*without(b"\x02id"), map_entry("id", bytes_feature(b"abcd\n"))], RGB, AUDIO),
        "id: expected 4 to 11",
    ),
    "labels of floats": (
        assemble([*without(b"\x06labels"), map_entry("labels", float_feature(np.ones(2)))], RGB, AUDIO),
        "labels: expected int64_list, got float_list",
    ),
    "a score that is no rating": (
        assemble(
            [*without(b"segment_scores"), map_entry("segment_scores", float_feature(np.array([1, np.nan])))], RGB, AUDIO
        ),
        "segment_scores: expected 0 or 1, got nan",
    ),
    "fewer scores than starts": (
        assemble([*without(b"segment_scores"), map_entry("segment_scores", float_feature(np.ones(1)))], RGB, AUDIO),
        "segment_scores: expected 2 values as in segment_start_times, got 1",
    ),
    "no classes": (assemble(without(b"segment_labels"), RGB, AUDIO), "segment_labels: expected 2 values .* got none"),
    "no audio": (assemble(CONTEXT, RGB), r"audio: .*, got none; feature_sizes = \(1024, 0\) reads"),
    "no features at all": (field(1, b"".join(CONTEXT)), "neither the feature lists rgb and audio nor mean_rgb"),
    "frames of integers": (
        assemble(CONTEXT, flist("rgb", VIDEO.frames[:, :8], lambda row: unpacked_int64(row)), AUDIO),
        "rgb: expected one byte string in frame 0, got int64_list",
    ),
    "not a message": (b"\xff" * 40, "not a tf.train.SequenceExample"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_named(name):
    record, reason = BAD[name]
    with pytest.raises(SchemaMismatchError, match=reason) as caught:
        RecordParser("some/shard", SIZES).parse(memoryview(record), offset=77, record=3)
    assert (caught.value.uri, caught.value.offset, caught.value.record) == ("some/shard", 77, 3)


def test_examining_gives_the_same_without_the_frames():
    parser = RecordParser("shard", SIZES)
    for record, canonical in ((encode(VIDEO), True), (ODD["unknown field in a frame"], False)):
        layout, video = parser.examine(memoryview(record), 0, 0)
        assert (video.video_id, video.num_frames, video.labels.tolist()) == ("abcd", 6, [3, 300])
        assert (layout is not None) == canonical


def test_the_cap_on_frames_holds_on_both_paths():
    frames = np.zeros((MAX_FRAMES + 1, 12), np.uint8)
    many = parts(make_video("abcd", 0))[0]
    canonical = assemble(many, flist("rgb", frames[:, :8]), flist("audio", frames[:, 8:]))
    for record in (canonical, canonical + UNKNOWN):
        with pytest.raises(SchemaMismatchError, match="more than the limit of 5,000"):
            parse(record)


def test_the_cap_on_labels_holds_on_both_paths():
    def record(count: int) -> bytes:
        return assemble([*without(b"\x06labels"), map_entry("labels", unpacked_int64(np.arange(count)))], RGB, AUDIO)

    for odd in (b"", UNKNOWN):
        assert len(parse(record(MAX_LABELS) + odd).labels) == MAX_LABELS
        with pytest.raises(SchemaMismatchError, match="labels: holds 100,001 values, more than the limit of 100,000"):
            parse(record(MAX_LABELS + 1) + odd)
