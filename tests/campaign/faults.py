"""What strikes a pass: each kind is a generator that acts while the process is held, replies, and tidies up.

A kind that finds nothing to strike raises Missed.
"""

import os
import re
import resource
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from tests.campaign.passes import Pass, Reply
from tests.campaign.site import Site

Kind = Callable[[Site, Pass, Random], Iterator[Reply]]
KINDS: dict[str, Kind] = {}
"""Name -> what happens."""
PLACES: dict[str, str] = {}
"""Name -> the only sort of sites that it strikes; empty: any."""
ROTS: set[str] = set()
"""Those that damage what no run can make again, or does not look at again by itself: a refusal by name is right."""
_YEAR = 365.25 * 24 * 3600


class Missed(Exception):
    """There was nothing to strike."""


def kind(name: str, rots: bool = False, where: str = "") -> Callable[[Kind], Kind]:
    """Register a kind; `where`: it only strikes sites of that sort."""

    def register(function: Kind) -> Kind:
        KINDS[name], PLACES[name] = function, where
        if rots:
            ROTS.add(name)
        return function

    return register


def _signals(name: str, number: int, longest: float) -> None:
    @kind(name)
    def send(site: Site, process: Pass, draw: Random) -> Iterator[Reply]:
        yield {"signal": number, "after": draw.uniform(0, longest)}


@kind("SIGKILL at an operation")
def killed(site: Site, process: Pass, draw: Random) -> Iterator[Reply]:
    """Before the file is touched."""
    os.kill(process.pid, signal.SIGKILL)
    yield {}


_signals("SIGKILL between operations", signal.SIGKILL, 0.5)
_signals("SIGTERM", signal.SIGTERM, 0.5)
_signals("SIGINT", signal.SIGINT, 0.5)


@kind("file size limit")
def limited(site: Site, process: Pass, draw: Random) -> Iterator[Reply]:
    """No file may grow beyond some size from now on, databases included."""
    size = int(2 ** draw.uniform(8, 22))
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, size))
    yield {}


@kind("disk full")
def full(site: Site, process: Pass, draw: Random) -> Iterator[Reply]:
    """Nothing is free from now on but some kilobytes, on a file system of the campaign's own."""
    if not os.path.ismount(site.folder):
        raise Missed
    ballast, left = site.folder / "ballast", int(2 ** draw.uniform(12, 18))
    with ballast.open("wb") as file:
        while True:
            space = os.statvfs(site.folder)
            try:
                os.posix_fallocate(file.fileno(), 0, max(space.f_bavail * space.f_frsize - left, 1))
                break
            except OSError:  # servers have written since: they are not held
                left *= 2
    yield {}
    ballast.unlink(missing_ok=True)  # a second one in the same pass has taken it


@kind("clock jumps")
def jumped(site: Site, process: Pass, draw: Random) -> Iterator[Reply]:
    """In the process, by up to a year."""
    yield {"clock": draw.choice((-1, 1)) * _YEAR ** draw.random()}


@kind("times of files")
def touched(site: Site, process: Pass, draw: Random) -> Iterator[Reply]:
    """Of a fifth of all files, sources included, as another clock would have set them."""
    paths = [path for folder in (site.state, site.data) for path in sorted(folder.rglob("*")) if path.is_file()]
    now = time.time()
    for path in draw.sample(paths, len(paths) // 5):
        at = max(now + draw.uniform(-20, 20) * _YEAR, 0)
        os.utime(path, (at, at))
    yield {}


@kind("another pass at once")
def doubled(site: Site, process: Pass, draw: Random) -> Iterator[Reply]:
    """A second driver, which may be killed."""
    at = draw.randint(1, 400) if draw.random() < 0.4 else 0
    other = site.start("materialize", "--until", site.parts[-1], at=at)
    yield {}
    other.wait(lambda it: killed(site, it, draw))
    if other.hung or other.unnamed:
        raise AssertionError(f"the other pass: {other.message or 'hung'}")


def _locks(name: str, of: Callable[[Site], Path]) -> None:
    @kind(f"lock on the database of {name}")
    def lock(site: Site, process: Pass, draw: Random) -> Iterator[Reply]:
        if not of(site).is_file():
            raise Missed
        locked, held = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                database = sqlite3.connect(of(site), isolation_level=None, timeout=20)
                database.execute("BEGIN EXCLUSIVE")
                os.write(held, b"!")
                time.sleep(10 ** draw.uniform(-1, 1))
            finally:
                os._exit(0)
        os.close(held)
        os.read(locked, 1)
        os.close(locked)
        yield {}
        os.waitpid(pid, 0)


_locks("MLflow", lambda site: site.mlflow)
_locks("Dagster", lambda site: site.state / "dagster/storage/history" / "runs/index.db")
_locks("Dagster's runs", lambda site: site.state / "dagster/storage/history/runs.db")


def damage(content: bytes, draw: Random, way: str) -> bytes:
    """The same content, damaged."""
    place = draw.randrange(max(len(content), 1))
    if way == "cut":
        return content[:place]
    if way == "page":
        return b"<html><body>503 Service Unavailable</body></html>\n"
    if way == "zeros":
        return content[:place] + bytes(min(512, len(content) - place)) + content[place + 512 :]
    flipped = bytes([content[place] ^ 1 << draw.randrange(8)]) if content else b"\0"
    return content[:place] + flipped + content[place + 1 :]


def rot(name: str, pattern: str, ways: tuple[str, ...] = ("flip", "cut", "zeros", "gone")) -> None:
    """Register the damage of one file of a site, its time of change kept or not."""

    @kind(f"damaged {name}", rots=True)
    def rotten(site: Site, process: Pass, draw: Random) -> Iterator[Reply]:
        names = [name for name in site.names() if re.fullmatch(pattern, name)]
        if not names:
            raise Missed
        struck = draw.choice(names)
        way, now = draw.choice(ways), time.time_ns() if draw.random() < 0.5 else None
        site.write(struck, None if way == "gone" else damage(site.read(struck), draw, way), now)
        yield {}


_KEPT = r"state/artifacts/(?!checkpoints/|.*/\.tmp-)"
"""What is being written has no checksum yet."""
rot("shard", r"data/.*\.tfrecord", ("flip", "cut", "zeros", "page"))
rot("manifest", rf"{_KEPT}.*/manifest-\d+\.json")
rot("weights", rf"{_KEPT}.*\.safetensors")
rot("checkpoint", "state/artifacts/checkpoints/.*")
rot("Parquet", rf"{_KEPT}.*\.parquet")
rot("table or text", rf"{_KEPT}(?!.*(report/|manifest-)).*\.(csv|json|jsonl)")
rot("index", rf"{_KEPT}[a-z]+_shards/\d.*")
rot("cache file", "state/cache/.*")
rot("database of MLflow", "state/mlflow/mlflow.db")
rot("database of Dagster", r"state/dagster/storage/.*\.db")
rot("settings of Dagster", "state/dagster/dagster.yaml")
