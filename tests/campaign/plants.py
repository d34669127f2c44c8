"""Defects that are planted in the processes of a campaign, to see that it finds them."""

PARTS = {"torn_publication": ("holdout_ratings",)}
"""The parts of the graph that are enough to find one."""


def torn_publication() -> None:
    """A publication that is not atomic: the manifest takes its name first, and readers believe it."""
    from pathlib import Path

    from yt8m_assets.storage import store
    from yt8m_assets.storage.backend import LocalBackend

    waiting: list[tuple[Path, str]] = []
    put, create = LocalBackend.put_folder, LocalBackend.create_exclusive

    def put_later(self: LocalBackend, folder: Path, name: str) -> None:
        waiting.append((folder, name))

    def create_first(self: LocalBackend, name: str, content: bytes) -> None:
        create(self, name, content)
        put(self, *waiting.pop())

    LocalBackend.put_folder = put_later  # type: ignore[assignment]
    LocalBackend.create_exclusive = create_first  # type: ignore[method-assign]
    store.damage = lambda *_: []  # type: ignore[assignment]
