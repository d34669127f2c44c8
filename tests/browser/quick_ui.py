"""The program `yt8m`, whose `ui` starts a daemon that looks for work every two seconds instead of every thirty."""

import sys
from pathlib import Path

from orchestration import ui
from orchestration.cli import main
from tests.orchestration.servers import DAEMON


def quick_daemon(workspace: Path) -> list[str]:
    """The daemon's own command line with another interval."""
    return [sys.executable, "-c", DAEMON, "run", "-w", str(workspace)]


if __name__ == "__main__":
    ui.daemon_command = quick_daemon
    sys.exit(main())
