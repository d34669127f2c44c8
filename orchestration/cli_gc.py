"""`yt8m gc`: what may go, and what that frees; it goes when asked."""

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from orchestration.history import History
from orchestration.session import Session, open_session, say
from yt8m_assets.recipes import load_recipe
from yt8m_assets.stages.collection import Dropped, find_dropped, find_superseded, remove


def command_gc(arguments: argparse.Namespace) -> int:
    """Show what may go, or remove it; exit code 1 if something stays because a run writes it."""
    session = open_session(arguments)
    recipes = [session.recipe, *(load_recipe(name) for name in arguments.keep)]
    names = ", ".join(one.name for one in recipes)
    dropped = find_dropped(recipes, session.store)
    taken = {(one.key, one.generation) for one in dropped}
    superseded = [one for one in find_superseded(session.store) if (one.key, one.generation) not in taken]
    if not dropped:
        say(f"nothing in {session.store.root_uri} is of models that {names} dropped")
    more = ". Recipes that share this store: --keep"
    stays = [
        *_collect(session, dropped, f"of models that are not in {names}", arguments.delete, more),
        *_collect(session, superseded, "of generations that are no longer kept", arguments.delete),
    ]
    _history(session, arguments.history, arguments.delete)
    logs, cache = session.state.root / "logs", session.settings.cache_path
    say(f"{megabytes(_size(_files(logs)))} of logs in {logs}: bounded, an old one makes room for a new one")
    say(f"{megabytes(_size(_files(cache)))} of copies in {cache}: bounded by YT8M_CACHE_GB, yours to delete at rest")
    return 1 if stays else 0


def _collect(
    session: Session, dropped: Sequence[Dropped], what: str, delete: bool, more: str = ""
) -> Sequence[Dropped]:
    """Show generations, or remove them; those that stay, because a run writes that artifact now."""
    if not dropped:
        return ()
    for key, number in Counter(one.key for one in dropped).items():
        size = sum(one.size for one in dropped if one.key == key)
        say(f"{key}: {number} generation{'s' * (number > 1)}, {megabytes(size)}")
    total = sum(one.size for one in dropped)
    if not delete:
        say(f"{megabytes(total)} {what}; --delete removes it{more}")
        return ()
    busy = remove(dropped, session.store)
    say(*(f"{one.key}: a run is writing it; stays" for one in busy))
    say(f"{megabytes(total - sum(one.size for one in busy))} removed")
    return busy


def _history(session: Session, days: float | None, delete: bool) -> None:
    """Show how much Dagster's history takes and which of it is old, or remove that."""
    home = session.state.dagster_home
    total = megabytes(_size(_files(home)))
    if days is None:
        say(f"{total} of Dagster's history in {home}; --history DAYS says how much of it is older")
        return
    with History.open(session.state) as history:
        old = history.ended_before(days)
        size = megabytes(_size(history.files(old)))
        text = f"{len(old)} runs that ended more than {days:g} days ago"
        if not delete:
            say(f"{total} of Dagster's history in {home}: {size} of {text}; --delete removes them")
            return
        history.delete(old)
    say(f"{size} removed: {text}")


def _files(folder: Path) -> Iterable[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _size(paths: Iterable[Path]) -> int:
    total = 0
    for path in paths:
        with suppress(FileNotFoundError):  # gone in the meantime
            total += path.stat().st_size
    return total


def megabytes(size: int) -> str:
    """Bytes in decimal megabytes."""
    return f"{size / 1e6:,.1f} MB"
