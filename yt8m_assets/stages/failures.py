"""What a stage that makes several artifacts raises when some of them failed."""

from collections.abc import Mapping, Sequence

from yt8m_assets.errors import TransientError


def raise_worst(errors: Mapping[str, Exception], published: Sequence[str] = ()) -> None:
    """Raise the error that decides whether the stage is tried again, if there is one: what may pass before what stays.

    First of all that of a stop that was asked for. Where there were several artifacts, a note says whose it is, what
    failed beside it, and what is published.
    """
    if not errors:
        return
    first = min(errors, key=lambda name: _lasts(errors[name]))
    others = [f"{name}: {type(error).__name__}: {error}" for name, error in errors.items() if name != first]
    if others or published:
        also = f"; failed too: {'; '.join(others)}" if others else ""
        errors[first].add_note(f"this ended {first}{also}; published: {', '.join(published) or 'nothing'}")
    raise errors[first]


def _lasts(error: Exception) -> tuple[bool, bool]:
    return getattr(error, "exit_code", None) is None, not isinstance(error, TransientError)
