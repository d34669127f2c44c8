"""Defects that are planted in the processes of a campaign, to see that it finds them."""

_PIECE = 64
"""Bytes that it writes at a time: each is an operation at which it may be killed."""
PARTS = {"torn_publication": ("holdout_ratings",), "nothing": ("holdout_ratings",)}
"""The parts of the graph that are enough to find one."""


def torn_publication() -> None:
    """A publication that is not atomic: the manifest takes its name first, and readers believe it."""
    from pathlib import Path

    from yt8m_assets.stages import lineage
    from yt8m_assets.storage import store
    from yt8m_assets.storage.backend import LocalBackend

    waiting: list[tuple[Path, str]] = []
    create = LocalBackend.create_exclusive

    def put_later(self: LocalBackend, folder: Path, name: str) -> None:
        waiting.append((folder, name))

    def create_first(self: LocalBackend, name: str, content: bytes) -> None:
        create(self, name, content)
        folder, target = waiting.pop()
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            place = self.root / target / path.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            content = path.read_bytes()
            for at in range(0, len(content), _PIECE):
                with place.open("ab") as file:
                    file.write(content[at : at + _PIECE])

    LocalBackend.put_folder = put_later  # type: ignore[assignment]
    LocalBackend.create_exclusive = create_first  # type: ignore[method-assign]
    for module in (store, lineage):
        module.damage = lambda *_: []  # type: ignore[attr-defined]


def nothing() -> None:
    """No defect: the same small part of the graph, sound."""
