import json

import numpy as np
import pytest
from crc32c import crc32c

from tests.data.factory import GOLDEN, SIZES, encode, encode_video_example, make_video, write_records, write_shard
from yt8m_assets.data.dataset.index import (
    NOT_LOCATED,
    RECORD,
    ShardIndex,
    build_index,
    framing_checksum,
)
from yt8m_assets.data.dataset.reading import Reading
from yt8m_assets.errors import DataError, SchemaMismatchError


def shard(tmp_path, count=4):
    return write_shard(
        tmp_path / "a.tfrecord", [make_video(f"vid{n}", n + 1, [n], [(0, n, 1.0)]) for n in range(count)]
    )


def test_it_counts_and_locates(tmp_path):
    index = build_index(shard(tmp_path), Reading(feature_sizes=SIZES))
    assert (index.num_records, index.num_labels, index.num_ratings) == (4, 4, 4)
    assert index.ids.tolist() == [b"vid0", b"vid1", b"vid2", b"vid3"]
    assert index.records["num_frames"].tolist() == [1, 2, 3, 4]
    assert RECORD.itemsize == 40
    assert index.records["number"].tolist() == [0, 1, 2, 3]
    assert (index.records["rgb_start"] != NOT_LOCATED).all()


def test_it_survives_its_file(tmp_path):
    index = build_index(shard(tmp_path), Reading(feature_sizes=SIZES))
    again = ShardIndex.from_bytes(index.to_bytes())
    assert np.array_equal(again.records, index.records)
    assert np.array_equal(again.ids, index.ids)
    assert (again.checksum, again.size, again.feature_sizes) == (index.checksum, index.size, SIZES)


def test_every_flipped_bit_of_an_index_file_is_noticed(tmp_path):
    content = bytearray(build_index(shard(tmp_path, 2), Reading(feature_sizes=SIZES)).to_bytes())
    for bit in range(len(content) * 8):
        content[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError):
            ShardIndex.from_bytes(bytes(content))
        content[bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize(
    "changes",
    [
        {"size": None},
        {"num_videos": -1},
        {"num_videos": "2"},
        {"quarantined": 3},
        {"colour": 1},
        {"feature_sizes": None},
    ],
)
def test_a_header_that_fits_its_checksum_and_nothing_else_is_refused(tmp_path, changes):
    content = build_index(shard(tmp_path, 2), Reading(feature_sizes=SIZES)).to_bytes()
    start = 12 + int.from_bytes(content[8:12], "little")
    for header in ({**json.loads(content[12:start]), **changes}, {}, []):
        text = json.dumps(header).encode()
        forged = content[:8] + len(text).to_bytes(4, "little") + text + content[start:-4]
        with pytest.raises(DataError, match="not an index"):
            ShardIndex.from_bytes(forged + crc32c(forged).to_bytes(4, "little"))


def test_the_checksum_changes_with_the_content(tmp_path):
    uri = shard(tmp_path)
    before = framing_checksum(uri)
    assert before == build_index(uri, Reading(feature_sizes=SIZES)).checksum
    changed = make_video("vid9", 4, [3], [(0, 3, 1.0)])
    write_shard(
        tmp_path / "a.tfrecord", [*[make_video(f"vid{n}", n + 1, [n], [(0, n, 1.0)]) for n in range(3)], changed]
    )
    assert framing_checksum(uri) != before


def test_the_originals_shards(tmp_path):
    index = build_index(str(GOLDEN / "frame_segment_labels.tfrecord"))
    assert index.records["num_frames"].tolist() == [120, 300, 22, 304]
    assert (index.num_labels, index.num_ratings) == (7, 12)


@pytest.mark.parametrize("on_corrupt", ["raise", "quarantine"])
def test_a_video_level_record_among_others_is_refused_by_name(tmp_path, on_corrupt):
    video = encode_video_example("vvvv", np.zeros(12, np.float32), [3], feature_sizes=SIZES)
    uri = write_records(tmp_path / "a.tfrecord", [encode(make_video("aaaa", 2)), video])
    with pytest.raises(SchemaMismatchError, match=r"a\.tfrecord: record 1 at byte .* a video-level record"):
        build_index(uri, Reading(feature_sizes=SIZES, on_corrupt=on_corrupt))
