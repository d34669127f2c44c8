"""Places where a store may lie, read and written behind its back."""

import json
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.storage.fake_store import FakeStore


class Place(Protocol):
    """Raw objects below the root of a store, by relative name."""

    root_uri: str
    """What the store is opened with."""

    def names(self) -> list[str]: ...

    def read(self, name: str) -> bytes: ...

    def write(self, name: str, content: bytes) -> None: ...

    def remove(self, name: str) -> None: ...


class Folder:
    """A folder of this machine. Lock files are not objects."""

    def __init__(self, root: Path) -> None:
        self.root, self.root_uri = root, str(root)

    def names(self) -> list[str]:
        paths = (path for path in self.root.rglob("*") if path.is_file() and path.name != ".lock")
        return sorted(path.relative_to(self.root).as_posix() for path in paths)

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_bytes(content)

    def remove(self, name: str) -> None:
        (self.root / name).unlink()


class Memory:
    """A root in fsspec's memory, which is the same for the whole process."""

    def __init__(self, name: str) -> None:
        self.root_uri, self.prefix = f"memory://{name}", f"/{name}/"

    def names(self) -> list[str]:
        return sorted(name.removeprefix(self.prefix) for name in MemoryFileSystem.store if name.startswith(self.prefix))

    def read(self, name: str) -> bytes:
        return MemoryFileSystem.store[self.prefix + name].getvalue()

    def write(self, name: str, content: bytes) -> None:
        MemoryFileSystem().pipe_file(self.prefix + name, content)

    def remove(self, name: str) -> None:
        del MemoryFileSystem.store[self.prefix + name]


class Strict:
    """A bucket of the fake store, which honours create-only writes as Google's does."""

    def __init__(self, fake: FakeStore, prefix: str) -> None:
        self.fake, self.prefix = fake, f"bucket/{prefix}/"
        self.root_uri = f"gs://bucket/{prefix}"

    def names(self) -> list[str]:
        return sorted(
            name.removeprefix(self.prefix) for name in list(self.fake.objects) if name.startswith(self.prefix)
        )

    def read(self, name: str) -> bytes:
        return self.fake.objects[self.prefix + name]

    def write(self, name: str, content: bytes) -> None:
        self.fake.objects[self.prefix + name] = content

    def remove(self, name: str) -> None:
        del self.fake.objects[self.prefix + name]


class Emulated:
    """A folder in the bucket of the emulator, over plain HTTP."""

    def __init__(self, address: str, prefix: str) -> None:
        self.address, self.prefix, self.root_uri = address, f"{prefix}/", f"gs://yt/{prefix}"

    def _ask(self, path: str, content: bytes | None = None, method: str | None = None) -> bytes:
        request = urllib.request.Request(f"{self.address}{path}", content, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bytes(answer.read())

    def _object(self, name: str) -> str:
        return f"/storage/v1/b/yt/o/{urllib.parse.quote(self.prefix + name, safe='')}"

    def names(self) -> list[str]:
        items = json.loads(self._ask(f"/storage/v1/b/yt/o?prefix={urllib.parse.quote(self.prefix)}"))["items"]
        return sorted(item["name"].removeprefix(self.prefix) for item in items)

    def read(self, name: str) -> bytes:
        return self._ask(self._object(name) + "?alt=media")

    def write(self, name: str, content: bytes) -> None:
        place = urllib.parse.quote(self.prefix + name, safe="")
        self._ask(f"/upload/storage/v1/b/yt/o?uploadType=media&name={place}", content)

    def remove(self, name: str) -> None:
        self._ask(self._object(name), method="DELETE")


@contextmanager
def fake_bucket(prefix: str) -> Iterator[Strict]:
    """A strict bucket for the length of a block, with the environment that leads to it."""
    fake = FakeStore()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", fake.url)
        try:
            yield Strict(fake, prefix)
        finally:
            fake.close()
