import os

import pytest

from tests.data.factory import GOLDEN, frame_record, write_records
from yt8m_assets.data.records.framing import RecordWriter, ShardFile, appearance, masked_crc, walk_headers
from yt8m_assets.data.records.reader import iterate_records
from yt8m_assets.errors import CorruptShardError, MissingDataError


def records_of(uri):
    return (view for _, _, view, _ in iterate_records(uri))


def test_the_checksum_is_the_published_one():
    # crc32c("123456789") is 0xe3069283 in RFC 3720's polynomial; the mask is TFRecord's
    assert masked_crc(b"123456789") == ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_records_written_by_tensorflow_are_read():
    assert [len(view) for view in records_of(str(GOLDEN / "frame_test.tfrecord"))] == [
        362750,
        143960,
        5895,
        2385,
        70248,
    ]


def test_what_is_written_is_read_again(tmp_path):
    records = [b"", b"a", os.urandom(70_000)]
    uri = write_records(tmp_path / "a.tfrecord", records)
    assert [bytes(view) for view in records_of(uri)] == records
    assert (tmp_path / "a.tfrecord").read_bytes() == b"".join(frame_record(record) for record in records)


def test_writing_is_all_or_nothing(tmp_path):
    path = tmp_path / "a.tfrecord"
    path.write_bytes(b"before")
    with pytest.raises(TypeError), RecordWriter(path) as writer:
        [writer.write(record) for record in (b"half", None)]  # type: ignore[arg-type]
    assert path.read_bytes() == b"before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.tfrecord"]


def test_a_walk_over_the_headers_verifies_them_alone(tmp_path):
    path = tmp_path / "a.tfrecord"
    write_records(path, [b"some data"])
    damaged = bytearray(path.read_bytes())
    damaged[13] ^= 1
    path.write_bytes(damaged)
    assert list(walk_headers(ShardFile(str(path)))) == [(0, 0, 9)]
    with pytest.raises(CorruptShardError, match="record 0 at byte 0"):
        list(records_of(str(path)))


def test_errors_name_the_record_and_its_byte(tmp_path):
    path = tmp_path / "a.tfrecord"
    write_records(path, [b"0" * 10, b"1" * 10])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptShardError, match="record 1 at byte 26: truncated") as caught:
        list(records_of(str(path)))
    assert (caught.value.record, caught.value.offset, caught.value.uri) == (1, 26, str(path))


def test_a_missing_shard_and_a_folder_are_named(tmp_path):
    with pytest.raises(MissingDataError, match="no such shard"):
        list(records_of(str(tmp_path / "none.tfrecord")))
    with pytest.raises(MissingDataError, match="is a folder"):
        list(records_of(str(tmp_path)))


@pytest.mark.parametrize(
    ("head", "word"),
    [(b"\x1f\x8b\x08", "gzip"), (b"\n <!DOCTYPE html>", "HTML"), (b'{"error": {', "JSON"), (b"\x10\0", "")],
)
def test_what_a_wrong_file_looks_like(head, word):
    assert word in appearance(head)
    assert bool(appearance(head)) == bool(word)


def test_pages_already_read_are_given_back(tmp_path):
    path = tmp_path / "large.tfrecord"
    write_records(path, [bytes(2**20)] * 96)
    before = _resident_bytes()
    for number, view in enumerate(records_of(str(path))):
        assert len(view) == 2**20
        if number == 90:
            assert _resident_bytes() - before < 48 * 2**20


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
