"""A bucket as it is at one time: planning over a hundred artifacts costs a listing an asset, not five requests each.

A folder's tree is listed when something in it is first asked for, and with the second folder all others at the same
time; the manifests that are the newest of their artifacts are read together. A manifest never changes, so one that was
read before is kept on this machine under what the listing says of it.
"""

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from crc32c import crc32c

from yt8m_assets.storage.backend import INDEXING_FOLDER, SUBMITTED_FOLDER, RemoteBackend
from yt8m_assets.storage.files import atomic_write
from yt8m_assets.storage.manifest import sha256_text
from yt8m_assets.storage.remote import RemoteStat

_TOO_LARGE = ("checkpoints", "simulated", INDEXING_FOLDER, SUBMITTED_FOLDER)
"""Folders of the root that hold no artifact of the graph: asked about as anywhere else."""
_NUM_PARALLEL = 32
_MANIFEST = "/manifest-"


class GlancedBackend(RemoteBackend):
    """The backend of a bucket whose listings are taken once, until another one is made of it."""

    def __init__(self, backend: RemoteBackend) -> None:
        self.__dict__.update(backend.__dict__)
        self._trees: dict[str, _Tree] = {}

    def names(self, folder: str) -> list[str]:
        """Names directly inside `folder`, sorted; empty where it does not exist."""
        tree = self._tree(folder)
        return super().names(folder) if tree is None else sorted(tree.children[folder])

    def sizes(self, folder: str) -> dict[str, int]:
        """Name below `folder` -> bytes of every object in it, folders within it included."""
        tree, start = self._tree(folder), f"{folder}/"
        if tree is None:
            return super().sizes(folder)
        return {name.removeprefix(start): seen.size for name, seen in tree.objects.items() if name.startswith(start)}

    def read_bytes(self, name: str) -> bytes:
        """The bytes of an object; of a manifest as they were seen before, where the listing says it is the same."""
        described = self.described(name) if _MANIFEST in name else None
        return super().read_bytes(name) if described is None else self._manifest(name, described)

    def described(self, name: str) -> RemoteStat | None:
        """What the listing says of an object."""
        tree = self._tree(name)
        return None if tree is None else tree.objects.get(name)

    def _tree(self, name: str) -> "_Tree | None":
        top = name.split("/", 1)[0]
        if not top or top in _TOO_LARGE:
            return None
        if top not in self._trees:
            tops = {top} if not self._trees else {top, *super().names("")}.difference(_TOO_LARGE, self._trees)
            with ThreadPoolExecutor(_NUM_PARALLEL) as pool:
                listed = dict(zip(tops, pool.map(self._list, tops), strict=True))
                newest = [(name, tree.objects[name]) for tree in listed.values() for name in tree.newest_manifests()]
                list(pool.map(self._try_manifest, *zip(*newest, strict=True)) if newest else ())
            self._trees |= listed
        return self._trees[top]

    def _list(self, top: str) -> "_Tree":
        start = len(self._path("")) + 1
        found = self.filesystem.find(self._path(top))
        return _Tree({path[start:]: described for path, described in found.items()})

    def _try_manifest(self, name: str, described: RemoteStat) -> None:
        with suppress(Exception):  # raised to whoever asks for it
            self._manifest(name, described)

    def _manifest(self, name: str, described: RemoteStat) -> bytes:
        if described.crc32c is None:
            return super().read_bytes(name)
        mark = sha256_text(f"{self.root_uri}/{name}|{described}")[:32]
        path = self.cache / "manifests" / f"{mark}.json"
        try:
            content = path.read_bytes()
            if crc32c(content) == described.crc32c:
                return content
        except FileNotFoundError:
            pass
        content = self.filesystem.cat_file(self._path(name), 0, described.size)
        if crc32c(content) != described.crc32c:
            return super().read_bytes(name)  # asks the store anew, and insists
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
        return content


class _Tree:
    """All objects below a folder of the root."""

    def __init__(self, objects: dict[str, RemoteStat]) -> None:
        self.objects = objects
        """Name -> what the listing says of it."""
        self.children: dict[str, set[str]] = defaultdict(set)
        """Folder -> names directly inside it."""
        for name in objects:
            parts = name.split("/")
            for depth in range(1, len(parts)):
                self.children["/".join(parts[:depth])].add(parts[depth])

    def newest_manifests(self) -> list[str]:
        """Of each artifact the manifest with the highest number."""
        manifests = [name for name in sorted(self.objects) if _MANIFEST in name]
        return list({name.rsplit("/", 1)[0]: name for name in manifests}.values())
