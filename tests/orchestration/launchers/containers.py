"""A container without a container: the command of a manifest as a local process, in an environment of its own."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]


def image_environment() -> dict[str, str]:
    """What the image itself would set: nothing of the calling process but where Python and the code are."""
    return {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "HOME": os.environ.get("HOME", "/"),
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }


class Container:
    """A running or ended command. `stop` is a polite end with a grace period, `kill` the loss of the machine."""

    def __init__(self, args: Sequence[str], env: Mapping[str, str], log_path: Path) -> None:
        self.args, self.log_path = list(args), log_path
        with log_path.open("wb") as log:
            self._process = subprocess.Popen(
                self.args,
                env={**image_environment(), **env},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd="/",
            )

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    @property
    def log(self) -> str:
        """What it wrote so far."""
        return self.log_path.read_text(errors="replace")

    def stop(self, grace_seconds: float = 20) -> None:
        """SIGTERM now and SIGKILL after the grace period, as a container runtime does; returns at once."""
        self._signal(signal.SIGTERM)
        timer = threading.Timer(grace_seconds, self.kill)
        timer.daemon = True
        timer.start()

    def kill(self) -> None:
        """SIGKILL for the whole process group, then wait for its end."""
        self._signal(signal.SIGKILL)
        self._process.wait(timeout=20)

    def _signal(self, number: int) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)
