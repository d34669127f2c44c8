"""`yt8m sync-mlflow`: fill an MLflow server with the runs of what the store holds."""

import argparse

from orchestration.relocation import require_sound
from orchestration.session import open_session, say
from yt8m_assets.errors import TransientError, Yt8mError

SYNC_PATIENCE_SECONDS = 100.0
"""A person waits for the answer here, and no training."""
AGAIN = (
    "run this again. Where a server says so each time, its log says why; where its database is damaged, "
    "stop that server, give it an empty database, start it and run this again"
)


def command_sync_mlflow(arguments: argparse.Namespace) -> int:
    """Make or complete the run of every artifact and half-trained model; says how many of which.

    Exit code 1 where files of artifacts are damaged.
    """
    from yt8m_assets.tracking.errors import describe
    from yt8m_assets.tracking.sync import sync

    session = open_session(arguments)
    tracking = session.settings.open_tracking(budget_seconds=SYNC_PATIENCE_SECONDS)
    try:
        found = sync(session.store, tracking, restore=arguments.restore)
    except Yt8mError:
        raise
    except Exception as error:
        if arguments.debug:
            raise
        require_sound(session.state.root / "mlflow" / "mlflow.db")
        raise TransientError(f"{tracking} does not take the runs ({describe(error)}); {AGAIN}") from error
    words = {"made": "made", "completed": "completed", "complete": "complete before", "running": "running now"}
    words |= {
        "deleted": "deleted there by hand, which they stay (--restore brings them back)",
        "damaged": "damaged here (`yt8m verify --repair`, then this again)",
    }
    parts = [f"{found[name]} {text}" for name, text in words.items() if found[name]]
    say(f"{found.total()} runs in {tracking}{': ' if parts else ''}{', '.join(parts)}")
    return 1 if found["damaged"] else 0
