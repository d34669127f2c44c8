"""Whatever lies in a file or a server answers: a result, or an error of the project's own, in bounded memory and time.

Sound inputs are damaged at random, and where they carry a checksum it is made to fit again, so that what lies behind it
is reached too. `make test-fuzz` asks for many more examples than a usual run does.
"""

import json
import logging
import os
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crc32c import crc32c
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

from tests.data.factory import SIZES, encode, encode_video_example, frame_record, make_video, write_shard
from yt8m_assets.data import read_shard
from yt8m_assets.data.dataset.index import ShardIndex, build_index
from yt8m_assets.data.dataset.packed import INDEX_FILE, PackedIndex, write_index
from yt8m_assets.data.dataset.reading import Reading
from yt8m_assets.data.dataset.scan import describe_shard
from yt8m_assets.data.dataset.shards import ShardManifest
from yt8m_assets.data.records.vocabulary import load_segment_classes, load_vocabulary
from yt8m_assets.errors import Yt8mError
from yt8m_assets.evaluation import Ratings
from yt8m_assets.recipes import load_recipe
from yt8m_assets.storage import Manifest
from yt8m_assets.storage.manifest import canonical_json, sha256_text
from yt8m_assets.submission import validate_submission
from yt8m_assets.tracking import MlflowTracking

logger = logging.getLogger(__name__)

EXAMPLES = int(os.environ.get("YT8M_FUZZ_EXAMPLES", "0"))
"""Examples of each target; 0: few, and always the same ones, so that a find of the day ends nobody's suite."""
MEGABYTES, SECONDS = 64, 10.0
"""What one small input may cost: far more than a sound one does, far less than what a bomb would."""

fuzzed = settings(
    max_examples=EXAMPLES or 60,
    derandomize=not EXAMPLES,
    deadline=None,
    phases=[Phase.explicit, Phase.generate, Phase.target, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
outcomes: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def told() -> Iterator[None]:
    """Log what came of the examples."""
    outcomes.clear()
    yield
    logger.info("%d examples: %s", outcomes.total(), dict(outcomes.most_common()))


def survives(action: Callable[[], Any]) -> Any:
    """The result, or None after an error of the project's own; any other error passes, as does too much of anything."""
    started = time.monotonic()
    tracemalloc.start()
    result, outcome = None, "read"
    try:
        result = action()
    except Yt8mError as error:
        outcome = type(error).__name__
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MEGABYTES << 20
    assert time.monotonic() - started < SECONDS
    outcomes[outcome] += 1
    event(outcome)
    return result


@st.composite
def damaged(draw: st.DrawFn, sound: bytes) -> bytes:
    """Bytes of which a few are changed, or stretches of them replaced, removed, doubled or cut off."""
    content = sound
    for _ in range(draw(st.integers(1, 4))):
        first = draw(st.integers(0, len(content)))
        if first < len(content) and draw(st.booleans()):  # of the same length
            content = content[:first] + bytes([content[first] ^ draw(st.integers(1, 255))]) + content[first + 1 :]
            continue
        end = min(len(content), first + draw(st.integers(0, 16)))
        middle = draw(st.one_of(st.binary(max_size=12), st.just(content[first:end] * 2), st.just(b"\xff" * 9)))
        content = content[:first] + middle + (b"" if draw(st.integers(0, 15)) == 7 else content[end:])
    return content


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([-1, 2**31, 2**63, 2**64, 10**400, -(10**400)]),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["../../x", "a\x00b", "\ud800", "x" * 5000, "1e999", "__class__"]),
)
ANYTHING = st.one_of(
    st.recursive(
        SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    st.integers(1, 400).map(lambda depth: json.loads("[" * depth + "]" * depth)),
)


@st.composite
def changed(draw: st.DrawFn, sound: Any, times: int = 2) -> Any:
    """A JSON value in which something is replaced, left out, or added."""
    value = json.loads(json.dumps(sound))
    for _ in range(draw(st.integers(1, times))):
        value = draw(_changed_once(value))
    return value


@st.composite
def _changed_once(draw: st.DrawFn, value: Any) -> Any:
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 9)) == 0:
        return draw(ANYTHING)
    if isinstance(value, list):
        place = draw(st.integers(0, len(value) - 1))
        kind = draw(st.sampled_from(["inside", "inside", "remove", "double"]))
        inside = [draw(_changed_once(value[place]))] if kind == "inside" else [value[place]] * 2 * (kind == "double")
        return [*value[:place], *inside, *value[place + 1 :]]
    name = draw(st.sampled_from(sorted(value)))
    kind = draw(st.sampled_from(["inside", "inside", "inside", "remove", "add"]))
    if kind == "add":
        return {**value, draw(st.text(max_size=6)): draw(ANYTHING)}
    rest = {key: item for key, item in value.items() if key != name}
    return rest if kind == "remove" else {**rest, name: draw(_changed_once(value[name]))}


VIDEO = make_video("abcd", 6, [3, 300], [(0, 1, 1.0), (5, 2, 0.0)])
RECORD = encode(VIDEO)
MEANS = encode_video_example("abcd", np.ones(sum(SIZES), np.float32), [1, 2], feature_sizes=SIZES)
SHARD = frame_record(RECORD) + frame_record(encode(make_video("efgh", 3, [1])))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzed")


def same(one: Any, other: Any) -> bool:
    return one.video_id == other.video_id and np.array_equal(one.frames, other.frames)


@fuzzed
@given(content=st.one_of(damaged(SHARD), st.binary(max_size=200)), on_corrupt=st.sampled_from(["raise", "quarantine"]))
def test_tfrecord_framing(folder: Path, content: bytes, on_corrupt: Any) -> None:
    """Both checksums stand: what is read is what was written."""
    path = folder / "framing.tfrecord"
    path.write_bytes(content)
    videos = survives(lambda: list(read_shard(str(path), feature_sizes=SIZES, on_corrupt=on_corrupt)))
    sound = (VIDEO, make_video("efgh", 3, [1]))
    assert all(any(same(video, known) for known in sound) for video in videos or ())


@fuzzed
@given(record=st.one_of(damaged(RECORD), damaged(MEANS), st.binary(max_size=200)))
def test_examples(folder: Path, record: bytes) -> None:
    """In sound framing, read as a video and for the index."""
    path = folder / "example.tfrecord"
    path.write_bytes(frame_record(record))
    survives(lambda: list(read_shard(str(path), feature_sizes=SIZES)))
    survives(lambda: build_index(str(path), Reading(feature_sizes=SIZES)))


@pytest.fixture(scope="module")
def index(folder: Path) -> ShardIndex:
    write_shard(folder / "indexed.tfrecord", [VIDEO, make_video("efgh", 3, [1])])
    return build_index(str(folder / "indexed.tfrecord"), Reading(feature_sizes=SIZES))


@fuzzed
@given(data=st.data())
def test_index_of_a_shard(index: ShardIndex, data: st.DataObject) -> None:
    sound = index.to_bytes()
    start = 12 + int.from_bytes(sound[8:12], "little")
    if data.draw(st.booleans()):
        content = data.draw(damaged(sound[:-4]))
    else:
        header = json.dumps(data.draw(changed(json.loads(sound[12:start])))).encode()
        content = sound[:8] + len(header).to_bytes(4, "little") + header + sound[start:-4]
    content += crc32c(content).to_bytes(4, "little")
    survives(lambda: ShardIndex.from_bytes(content))


@fuzzed
@given(data=st.data())
def test_published_index(folder: Path, index: ShardIndex, data: st.DataObject) -> None:
    """The list of shards, and the list of the files of rows beside it."""
    artifact = folder / "artifact"
    if not artifact.exists():
        artifact.mkdir()
        write_index(artifact, [index], {index.uri: np.zeros(len(index), bool)})
    shards = ShardManifest(shards=(describe_shard(index, "a", False, None),))
    text = shards.to_json()
    changed_text = json.dumps(data.draw(changed(json.loads(text))))
    survives(lambda: ShardManifest.from_json(changed_text))
    path = folder / "shards.json"
    path.write_bytes(data.draw(damaged(text.encode())))
    survives(lambda: ShardManifest.read(path))
    path = folder / "rows.json"
    sound = (artifact / INDEX_FILE).read_bytes()
    values = data.draw(
        st.one_of(damaged(sound), changed(json.loads(sound)).map(lambda value: json.dumps(value).encode()))
    )
    path.write_bytes(values)
    survives(lambda: PackedIndex.read(path, shards))


@fuzzed
@given(data=st.data())
def test_manifest_of_an_artifact(data: st.DataObject) -> None:
    files = {"weights.bin": {"size": 3, "sha256": "0" * 64}, "report/plot.svg": {"size": 0, "sha256": "1" * 64}}
    fields: Any = {"fingerprint": "f", "digest": "d", "files": files, "parents": {"a": "d"}, "metadata": {"map": 0.5}}
    sound = Manifest(key="asset/model", generation=1, folder="000001-abcd", **fields).to_bytes()
    if data.draw(st.booleans()):
        content = data.draw(damaged(sound))
    else:
        values = json.loads(sound)
        del values["checksum"]
        values = data.draw(changed(values))
        try:
            checksum = sha256_text(canonical_json(values))
        except (ValueError, RecursionError):
            checksum = "0"
        content = json.dumps({**values, "checksum": checksum} if isinstance(values, dict) else values).encode()
    found = survives(lambda: Manifest.from_bytes(content, "manifest"))
    if found is not None:  # nobody meets a surprise later on
        assert found.size >= 0
        assert all(len(entry["sha256"]) == 64 for entry in found.files.values())


RECIPE = {
    "base": "demo",
    "seed": 3,
    "data": {"holdout": {"fraction": 0.5}, "pretraining": ["a*.tfrecord"], "num_classes": 10},
    "models": {
        "bert_l2h12": {"finetuning": {"num_steps": 8, "learning_rate": 0.1}, "shifts": [0, 1], "overrides": {"a": 1}}
    },
    "model_keys": ["bert_l2h12"],
    "prediction": {"top_k": 100},
}


@fuzzed
@given(
    content=st.one_of(
        changed(RECIPE, 3).map(lambda value: json.dumps(value).encode()),
        damaged(json.dumps(RECIPE).encode()),
        st.integers(1, 100_000).map(
            lambda depth: b'{"base": "demo", "data": {"test": ' + b"[" * depth + b"]" * depth + b"}}"
        ),
    )
)
def test_recipe_in_json(folder: Path, content: bytes) -> None:
    path = folder / "recipe.json"
    path.write_bytes(content)
    survives(lambda: load_recipe(path))


SUBMISSION = b"Class,Segments\n3,abcd:0 wxyz:5\n7,abcd:10\n"


@fuzzed
@given(
    content=st.one_of(damaged(SUBMISSION), st.binary(max_size=100)),
    videos=st.sampled_from([None, {"abcd": 15, "wxyz": 6}]),
)
def test_submission_validator(folder: Path, content: bytes, videos: Any) -> None:
    """It lists faults and raises nothing; only what is sound has none."""
    path = folder / "submission.csv"
    path.write_bytes(content)
    problems = survives(lambda: validate_submission(path, [3, 7], videos))
    assert problems is not None
    if not problems:
        header, *lines = content.decode("ascii").splitlines()
        assert header == "Class,Segments"
        assert {line.split(",")[0] for line in lines} == {"3", "7"}
        assert all(name.rpartition(":")[2].isdigit() for line in lines for name in line.split(",")[1].split(" "))


NUMBERS = st.sampled_from(
    [b"9" * 12, b"9" * 5000, "\u0663".encode(), b"-1", b"1e9", b'"' + b"9" * 200_000 + b'"', b"\0", b'"']
)


@fuzzed
@given(data=st.data())
def test_csv_of_ratings_and_of_classes(folder: Path, data: st.DataObject) -> None:
    path = folder / "table.csv"
    for sound, read in (
        (b"segment_id,class_id,score\nabcd:0,3,1\nwxyz:5,7,0\n", Ratings.read_csv),
        (b"abcd,0,3,1.0\nwxyz,5,7,0\n", Ratings.read_csv),
        (b"Index\n3\n7\n", lambda path: load_segment_classes(str(path))),
        (b'Index,TrainVideoCount,Name\n0,15,"Game, video"\n1,9,Car\n', lambda path: load_vocabulary(str(path))),
    ):
        cell = data.draw(st.sampled_from([b"3", b"0", b"1", b"7"]))
        replaced = NUMBERS.map(lambda number, sound=sound, cell=cell: sound.replace(cell, number, 1))
        path.write_bytes(data.draw(st.one_of(damaged(sound), replaced)))
        survives(lambda read=read: read(path))


EXPERIMENT = {"experiment_id": "1", "name": "yt8m", "artifact_location": "/tmp/a", "lifecycle_stage": "active"}
INFO = {"run_id": "r", "run_name": "tiny", "experiment_id": "1", "status": "RUNNING", "start_time": 1}
DATA = {
    "metrics": [{"key": "train/loss", "value": 0.5, "timestamp": 1, "step": 1}],
    "tags": [{"key": "yt8m.alive", "value": "1"}],
}
ANSWERS = {"experiment": EXPERIMENT, "run": {"info": INFO, "data": DATA}, "runs": [{"info": INFO, "data": DATA}]}
"""What fits most questions, for each takes what it needs of it."""


class Babbler:
    """An HTTP server that answers each request with the next of its answers: status and body."""

    def __init__(self) -> None:
        babbler = self
        self.answers: list[tuple[int, bytes]] = []
        self.asked = 0

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, body = babbler.answers[babbler.asked % len(babbler.answers)]
                babbler.asked += 1
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with suppress(OSError):  # who has given up listens no more
                    self.wfile.write(body)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


@pytest.fixture(scope="module")
def babbler() -> Iterator[Babbler]:
    started = Babbler()
    yield started
    started.server.shutdown()
    started.server.server_close()


@settings(fuzzed, max_examples=EXAMPLES // 10 or 6)
@given(
    answers=st.lists(
        st.tuples(
            st.sampled_from([200, 200, 200, 204, 400, 401, 404, 500, 503]),
            st.one_of(changed(ANSWERS, 3).map(lambda value: json.dumps(value).encode()), st.binary(max_size=40)),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_answers_of_an_mlflow_server(babbler: Babbler, answers: list[tuple[int, bytes]]) -> None:
    """A training takes no notice, whatever it is told."""
    babbler.answers, babbler.asked = answers, 0
    tracking = MlflowTracking(babbler.uri, budget_seconds=0.2)
    started = time.monotonic()
    with tracking.run("tiny", kind="pretraining", model="tiny", params={"a": 1}) as run:
        run.log_metrics({"train/loss": 0.5}, 1)
    assert run.record.points[0][:3] == ("train/loss", 1, 0.5)
    assert time.monotonic() - started < SECONDS
    outcomes["tracked" if babbler.asked else "never asked"] += 1
