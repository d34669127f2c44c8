"""The protobuf wire format, as far as tf.train.Example and SequenceExample need it."""

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np


def varint(value: int) -> bytes:
    """Base-128 encoding of an unsigned (or two's complement 64-bit) integer."""
    value &= 0xFFFFFFFFFFFFFFFF
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def read_varint(view: memoryview, position: int) -> tuple[int, int]:
    """(value, position after it). Raises ValueError when longer than 10 bytes, IndexError past the end."""
    value = view[position]
    position += 1
    if value < 0x80:
        return value, position
    value &= 0x7F
    for shift in range(7, 70, 7):
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a varint is longer than 10 bytes")


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field (wire type 2)."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def int64_feature(values: np.ndarray) -> bytes:
    """tf.train.Feature with a packed int64_list."""
    packed = b"".join(varint(int(value)) for value in values)
    return field(3, field(1, packed) if packed else b"")


def float_feature(values: np.ndarray) -> bytes:
    """tf.train.Feature with a packed float_list."""
    packed = np.ascontiguousarray(values, dtype="<f4").tobytes()
    return field(2, field(1, packed) if packed else b"")


def bytes_feature(value: bytes) -> bytes:
    """tf.train.Feature with one value in its bytes_list."""
    return field(1, field(1, value))


def map_entry(key: str, value: bytes) -> bytes:
    """An entry of Features.feature or FeatureLists.feature_list (both are field 1)."""
    return field(1, field(1, key.encode()) + field(2, value))


@cache
def frame_header(feature_size: int) -> bytes:
    """The bytes in front of each frame of a FeatureList: Feature, BytesList and value headers, in canonical form."""
    value = b"\x0a" + varint(feature_size)
    bytes_list = b"\x0a" + varint(len(value) + feature_size) + value
    return b"\x0a" + varint(len(bytes_list) + feature_size) + bytes_list


@cache
def example_messages() -> ModuleType:
    """The protobuf classes of the tfrecord package, loaded without the rest of it (which would import torch)."""
    loaded = sys.modules.get("tfrecord.example_pb2")
    if loaded is not None:
        return loaded
    package = importlib.util.find_spec("tfrecord")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the package 'tfrecord' is not installed; run `make setup`")
    path = Path(package.origin).with_name("example_pb2.py")
    spec = importlib.util.spec_from_file_location("yt8m_assets_example_pb2", path)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"{path} cannot be loaded; reinstall the package 'tfrecord'")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
