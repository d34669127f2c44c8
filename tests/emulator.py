"""Google Cloud Storage on loopback: a real client talks to an emulator in a process of its own."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.ports import free_port

HOST = "127.0.0.1"
BUCKET = "yt"
_CODE = """
import sys, time
from gcp_storage_emulator.server import create_server
create_server({host!r}, {port}, in_memory={in_memory}, default_bucket={bucket!r}, data_dir={folder!r}).start()
sys.stdin.read()
"""
"""The emulator lives as long as its stdin is open, that is, no longer than the process that started it."""


def wait_for_port(port: int, process: subprocess.Popen[bytes], seconds: float = 30.0) -> None:
    """Return when the process answers on the port. Raises RuntimeError when it has ended or takes too long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"nothing answers on port {port}; the process ended with {process.poll()}")


@contextmanager
def storage_emulator(folder: Path | None = None) -> Iterator[str]:
    """Address of an emulator that holds one empty bucket, `gs://yt`; what STORAGE_EMULATOR_HOST is to be set to.

    Objects are kept in memory, or below `folder`: the whole demo writes gigabytes.
    """
    port = free_port()
    place = {"in_memory": folder is None, "folder": None if folder is None else str(folder)}
    # a process of its own, because it writes to stderr whenever a client hangs up
    process = subprocess.Popen(
        [sys.executable, "-c", _CODE.format(host=HOST, port=port, bucket=BUCKET, **place)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for_port(port, process)
        yield f"http://{HOST}:{port}"
    finally:
        process.kill()
        process.communicate()
