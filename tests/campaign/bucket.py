"""A bucket that misbehaves as the campaign tells it, in a process of its own; and a site whose store it is."""

import copy
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

from tests.campaign.faults import kind
from tests.campaign.passes import Pass, Reply
from tests.campaign.site import Site
from tests.storage.fake_store import FakeStore

FAULTS = {
    "401": (401, 3),
    "403": (403, 3),
    "429": (429, 6),
    "503": (503, 6),
    "hang": ("hang", 3),
    "cut line": ("reset", 6),
    "cut answer": ("half-line", 6),
    "short answer": ("short", 3),
    "corrupt bytes": ("corrupt", 2),
    "lost answer": ("unheard", 3),
}
"""Name -> what the stand-in does, and to how many requests in a row at most."""


class Misbehaving(FakeStore):
    """The stand-in, told by requests below `/_`."""

    def __init__(self) -> None:
        self.before_now: dict[str, bytes] = {}
        self.stale_lists = 0
        super().__init__()

    def handle(self, handler: Any, method: str) -> None:
        """Answer, misbehave, or do what the campaign says."""
        if not handler.path.startswith("/_"):
            super().handle(handler, method)
            return
        order = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        self._json(handler, 200, {"answer": getattr(self, f"do_{handler.path[2:]}")(**order)})

    def do_misbehave(self, fault: Any, count: int) -> None:
        """Let the next requests meet a fault, or the next listings show what was there when this was said."""
        if fault == "stale":
            self.before_now, self.stale_lists = dict(self.objects), count
        else:
            self.faults = [fault] * count

    def do_behave(self) -> None:
        """Let no request meet a fault."""
        self.faults, self.stale_lists = [], 0

    def do_names(self) -> list[str]:
        """Every object."""
        return sorted(self.objects)

    def do_content(self, name: str) -> str:
        """What an object holds, in hexadecimal."""
        return self.objects[name].hex()

    def do_replace(self, name: str, content: str | None) -> None:
        """Change an object behind the back of all (content in hexadecimal), or remove it."""
        if content is None:
            del self.objects[name]
        else:
            self.objects[name] = bytes.fromhex(content)

    def do_load(self, folder: str) -> None:
        """Hold what a folder holds, and nothing else."""
        root = Path(folder)
        paths = [path for path in root.rglob("*") if path.is_file()]
        self.objects = {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}

    def do_dump(self, folder: str) -> None:
        """Write all objects into a folder."""
        for name, content in self.objects.items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def _list(self, handler: Any, bucket: str, query: dict[str, list[str]]) -> None:
        view = self
        if self.stale_lists > 0:
            self.stale_lists -= 1
            view = copy.copy(self)
            view.objects = self.before_now
        FakeStore._list(view, handler, bucket, query)


class BucketSite(Site):
    """Sources and artifacts lie in a bucket."""

    where = "bucket"

    def __init__(self, folder: Path, kept: Path) -> None:
        super().__init__(folder, kept)
        command = [sys.executable, "-m", "tests.campaign.bucket"]
        self.server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.server.stdout is not None
        self.url = self.server.stdout.readline().strip()

    def tell(self, what: str, **order: Any) -> Any:
        """Give the bucket an order; its answer."""
        request = urllib.request.Request(f"{self.url}/_{what}", json.dumps(order).encode(), method="POST")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())["answer"]

    @property
    def environment(self) -> Mapping[str, str]:
        """As of a folder, but for the places."""
        places = {"STORAGE_EMULATOR_HOST": self.url, "YT8M_STORAGE": "gs://yt/artifacts"}
        return {**super().environment, **places, self.DATA: "gs://yt/data"}

    def _keep(self, number: int) -> None:
        super()._keep(number)
        self.tell("dump", folder=str(self.kept / f"{number}.objects"))

    def _first(self) -> None:
        super()._first()
        shutil.copytree(self.source, self.kept / "0.objects" / "yt" / "data")
        self.tell("load", folder=str(self.kept / "0.objects"))

    def reset(self, number: int) -> None:
        """As of a folder."""
        super().reset(number)
        self.tell("behave")
        self.tell("load", folder=str(self.kept / f"{number}.objects"))

    def names(self) -> Iterator[str]:
        """As of a folder."""
        yield from super().names()
        for name in self.tell("names"):
            yield name.replace("yt/artifacts/", "state/artifacts/").removeprefix("yt/")

    def _object(self, name: str) -> str:
        return "yt/" + name.removeprefix("state/") if name.startswith(("state/artifacts/", "data/")) else ""

    def read(self, name: str) -> bytes:
        """As of a folder."""
        if not (there := self._object(name)):
            return super().read(name)
        return bytes.fromhex(self.tell("content", name=there))  # no request that could meet a fault

    def write(self, name: str, content: bytes | None, changed: int | None = None) -> None:
        """As of a folder."""
        if there := self._object(name):
            self.tell("replace", name=there, content=None if content is None else content.hex())
        else:
            super().write(name, content, changed)

    def restore_source(self) -> None:
        """As of a folder."""
        for path in self.source.rglob("*"):
            if path.is_file():
                self.write(f"data/{path.relative_to(self.source)}", path.read_bytes())


def _registered(name: str, fault: Any, most: int) -> None:
    @kind(f"bucket: {name}", where="bucket")
    def misbehave(site: Site, process: Pass, draw: Random) -> Iterator[Reply]:
        assert isinstance(site, BucketSite)
        site.tell("misbehave", fault=fault, count=draw.randint(1, most))
        yield {}
        site.tell("behave")


for _name, (_fault, _most) in FAULTS.items():
    _registered(_name, _fault, _most)
_registered("stale listing", "stale", 4)


def main() -> None:
    """Serve until stdin is closed: no longer than the process that started this one."""
    store = Misbehaving()
    store.hang_seconds = 3.0
    sys.stdout.write(f"{store.url}\n")
    sys.stdout.flush()
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
