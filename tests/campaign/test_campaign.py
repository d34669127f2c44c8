"""The campaign finds what is lost, and says so."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.campaign.__main__ import table
from tests.campaign.passes import Pass, Watch
from tests.campaign.rounds import REMEDIES, Fault, Round
from tests.campaign.site import Site, code_digest
from tests.storage.suite import FILES, publish
from yt8m_assets.storage import ArtifactStore

ROOT = Path(__file__).parents[2]


def fault(kind: str, struck: bool = True) -> Fault:
    return Fault(kind, 1, 0.5, struck)


def test_faults_are_counted_by_kind_and_outcome() -> None:
    kinds = ("SIGTERM", "damaged shard", "SIGINT")
    one = Round(1, 1, 0, [fault(kind) for kind in kinds] + [fault("disk full", struck=False)], "refused")
    assert list(one.outcomes()) == [("SIGTERM", "survived"), ("damaged shard", "refused"), ("SIGINT", "survived")]
    other = Round(1, 2, 0, [fault("SIGTERM"), fault("SIGINT")], "lost")
    assert list(other.outcomes()) == [("SIGTERM", "survived"), ("SIGINT", "lost")]
    lines = table([{"outcomes": list(it.outcomes())} for it in (one, other)])
    assert [line.split() for line in lines[1:]] == [
        ["SIGINT", "2", "1", "0", "1"],
        ["SIGTERM", "2", "2", "0", "0"],
        ["damaged", "shard", "1", "0", "1", "0"],
        ["all", "5", "3", "1", "1"],
    ]


@pytest.mark.parametrize("loss", ["flipped", "gone", "other", "more"])
def test_whatever_is_not_as_in_the_reference_is_found(tmp_path: Path, loss: str) -> None:
    site = Site(tmp_path, tmp_path / "kept")
    store = ArtifactStore(str(site.state / "artifacts"), tmp_path / "cache")
    file = site.state / "artifacts" / "asset" / "model" / publish(store).folder / "weights.bin"
    site.reference = site.files()
    assert set(site.reference) == {"asset/model/weights.bin", "asset/model/sub/table.csv"}
    assert not site.damaged()
    if loss == "flipped":
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    elif loss == "gone":
        file.unlink()
    else:
        publish(store, "asset/more" if loss == "more" else "asset/model", "f2", FILES | {"weights.bin": b"other"})
    wanted = {"flipped": "not what its manifest says instead", "gone": "not what its manifest says instead"}
    assert any(wanted.get(loss, " instead of ") in line for line in site.damaged())


@pytest.mark.parametrize(
    "text", ["yt8m: unexpected KeyError: 'x' (--debug shows where)", "Traceback (most recent call"]
)
def test_an_error_without_a_name_is_no_refusal(text: str) -> None:
    assert Pass(0, 0, 0, 0, text, code=1).unnamed
    assert Pass(0, 0, 0, 0, "killed", code=1).unnamed
    assert not Pass(0, 0, 0, 0, "yt8m: /a/b: 3 bytes, its manifest says 4; materialise it again", code=1).unnamed
    assert not Pass(0, 0, 0, 0, text, code=-signal.SIGKILL).unnamed


def test_a_reference_is_taken_again_unless_the_code_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path, tmp_path / "kept")
    assert not site.recall()
    site.kept.mkdir()
    known = {"code": code_digest(), "files": {"a": "1"}, "metrics": [["run", "map", 0, 0.5]], "operations": [7]}
    (site.kept / "reference.json").write_text(json.dumps(known))
    assert site.recall()
    assert (site.reference, site.metrics, site.operations) == ({"a": "1"}, {("run", "map", 0, 0.5)}, [7])
    monkeypatch.setattr("tests.campaign.site.code_digest", lambda: "other")
    assert not site.recall()


def test_what_messages_ask_for() -> None:
    def asked(message: str) -> str:
        return next(name for name, pattern, _ in REMEDIES if re.search(pattern, message))

    assert asked("yt8m: /site/data/train0000.tfrecord: record 3 at byte 9: bad checksum") == "fetch the shard again"
    assert asked("yt8m: /s: damaged. Delete /s/storage and run the same command again") == "delete it"
    assert asked("yt8m: /s/dagster.yaml: not YAML: x; mend it, or delete it and it is made again") == "delete it"
    assert asked("yt8m: /a: 3 bytes, its manifest says 4; materialise it again") == "yt8m verify --repair"


def test_a_process_is_held_at_its_nth_operation_below_the_folder(tmp_path: Path) -> None:
    told, answer = os.pipe(), os.pipe()
    watch = Watch(str(tmp_path), 2, told[1], answer[0])
    write = os.O_WRONLY | os.O_CREAT
    for name, mode, flags in [("/a", "w", write), ("/elsewhere", "w", write), ("/b", "r", os.O_RDONLY)]:
        watch("open", (name if name == "/elsewhere" else f"{tmp_path}{name}", mode, flags))
    assert watch.count == 1
    os.write(answer[1], json.dumps({"next": 3}).encode())
    watch("os.rename", ("x", "y", -1, -1))
    assert os.read(told[0], 9) == b"!"
    assert watch.at == 5
    for descriptor in (*told, *answer):
        os.close(descriptor)


@pytest.mark.slow
@pytest.mark.parametrize(("plant", "code"), [("torn_publication", 1), ("nothing", 0)])
def test_a_planted_defect_is_found_and_its_round_repeats_it(tmp_path: Path, plant: str, code: int) -> None:
    def campaign(*options: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "tests.campaign", "--plant", plant, "--kinds", "SIGKILL at", "--seed", "1"]
        places = ["--reuse", "--folder", str(tmp_path), *options]
        return subprocess.run([*command, *places], cwd=ROOT, capture_output=True, text=True, check=False)

    log = tmp_path / "log.jsonl"
    done = campaign("--rounds", "6", "--log", str(log))
    assert done.returncode == code, done.stdout + done.stderr
    lost = [one["number"] for one in map(json.loads, log.read_text().splitlines()) if one["outcome"] == "lost"]
    assert bool(lost) == bool(code)
    for number in lost[:1]:
        assert f"again: python -m tests.campaign --seed 1 --round {number} --place folder" in done.stdout
        assert campaign("--round", str(number)).returncode == code
