"""A site whose graph is made by Dagster's daemon and run workers, and rounds that kill those."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from random import Random

import psutil

from orchestration.ui import answers
from tests.campaign.rounds import MAX_FAULTS, Fault, Round, converge
from tests.campaign.site import PARTS, Site
from tests.orchestration.servers import (
    BACKFILL_ENDED,
    DAEMON,
    HOST,
    LOCATION,
    ROOT,
    WORKSPACE,
    Dagster,
    listens,
    wait_for,
)
from tests.ports import free_port

SERVERS = ("code server", "web server", "daemon")
KINDS = tuple(f"{sign} of the {what}" for what in ("run worker", "step", *SERVERS) for sign in ("SIGKILL", "SIGTERM"))
ASSETS = {
    "holdout_ratings": ("pretraining_shards", "segment_shards", "test_shards", "holdout_ratings"),
    "pretrained_model": ("pretrained_model",),
    "finetuned_model": ("finetuned_model",),
    "oof_ranking": ("oof_predictions", "oof_ranking"),
    "test_ranking": ("test_predictions", "test_ranking"),
    "leaderboard": ("ensemble_weights", "submission", "leaderboard"),
}
"""The assets of each part of the graph."""
LONGEST_SECONDS = 120


class DaemonSite(Site):
    """The servers work on the state; between rounds all is reset but Dagster's records."""

    where = "daemon"

    def __init__(self, folder: Path, kept: Path) -> None:
        super().__init__(folder, kept)
        self.code_port, self.web_port = free_port(), free_port()
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.log = kept.parent / "servers.log"

    @property
    def served_environment(self) -> Mapping[str, str]:
        """What the servers find."""
        home = {"DAGSTER_HOME": str(self.state / "dagster"), "YT8M_EXECUTOR": "multiprocess", "PYTHONPATH": str(ROOT)}
        return {**os.environ, **self.environment, **home}

    def reset(self, number: int) -> None:
        """All but Dagster's records, once the servers have begun to write them."""
        if not self.running:
            super().reset(number)
            return
        for name in ("artifacts", "mlflow", "cache"):
            shutil.rmtree(self.state / name, ignore_errors=True)
            shutil.copytree(self.kept / str(number) / name, self.state / name)
        self.restore_source()

    def serve(self) -> Dagster:
        """Start the servers that do not run."""
        workspace = self.folder / "workspace.yaml"
        workspace.write_text(WORKSPACE.format(host=HOST, port=self.code_port))
        code = ["--location-name", LOCATION, "--host", HOST, "--port", str(self.code_port)]
        module = ["--use-python-environment-entry-point", "-m", "orchestration.definitions"]
        where = ["-w", str(workspace)]
        self._start("code server", ["-m", "dagster", "api", "grpc", *module, *code])
        wait_for(lambda: listens(self.code_port), LONGEST_SECONDS, "the code server")
        self._start("web server", ["-m", "dagster_webserver", "-h", HOST, "-p", str(self.web_port), *where])
        self._start("daemon", ["-c", DAEMON, "run", *where])
        dagster = Dagster(self.web_port)
        wait_for(lambda: answers(dagster.url), LONGEST_SECONDS, "the web server")
        return dagster

    def _start(self, name: str, arguments: list[str]) -> None:
        if name in self.running and self.running[name].poll() is None:
            return
        with self.log.open("ab") as log:
            self.running[name] = subprocess.Popen(
                [sys.executable, *arguments], env=dict(self.served_environment), cwd=ROOT, stdout=log, stderr=log
            )

    def victims(self, what: str) -> list[psutil.Process]:
        """The processes of a sort that live now."""
        if what in self.running:
            return [psutil.Process(self.running[what].pid)]
        below = [child for server in self.running.values() if server.poll() is None for child in _children(server.pid)]
        workers = [it for it in below if "execute_run" in _command(it)]
        steps = [it for worker in workers for it in _children(worker.pid) if "spawn_main" in _command(it)]
        return workers if what == "run worker" else steps

    def close(self) -> None:
        """End everything."""
        family = [it for server in self.running.values() if server.poll() is None for it in _children(server.pid)]
        for server in self.running.values():
            server.kill()
            server.wait()
        for process in family:
            with contextlib.suppress(psutil.Error):
                process.kill()


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def play(site: DaemonSite, seed: int, number: int, seconds: float = 60.0) -> Round:
    """One round: a backfill of what is missing, processes killed at moments drawn over it, then a plain run."""
    draw, begun = Random(f"daemon {seed} {number}"), time.monotonic()
    start = draw.randrange(len(PARTS))
    round_ = Round(seed, number, start)
    site.reset(start)
    dagster = site.serve()
    assets = [asset for part in PARTS[start:] for asset in ASSETS[part]]
    backfill, launched = dagster.backfill_all(assets), time.monotonic()
    span = seconds * (len(PARTS) - start) / len(PARTS) + 10
    for moment in sorted(draw.uniform(2, span) for _ in range(draw.randint(2, MAX_FAULTS))):
        fault = Fault(draw.choice(KINDS), int(moment), seed=moment)
        round_.faults.append(fault)
        time.sleep(max(launched + moment - time.monotonic(), 0))
        sign, _, what = fault.kind.partition(" of the ")
        with contextlib.suppress(psutil.Error, IndexError):
            victim = draw.choice(sorted(site.victims(what), key=lambda it: it.pid))
            victim.send_signal(signal.SIGKILL if sign == "SIGKILL" else signal.SIGTERM)
            fault.struck = True
            if what in SERVERS:
                site.running[what].wait(30)
                dagster = site.serve()
    dagster = site.serve()
    deadline = time.monotonic() + LONGEST_SECONDS
    while time.monotonic() < deadline and _open(site, dagster, backfill):
        time.sleep(1)
    if dagster.state(backfill)["status"] not in BACKFILL_ENDED:
        dagster.cancel(backfill)
    converge(site, round_)
    round_.outcome = "lost" if round_.why else "refused" if round_.remedies else "survived"
    round_.seconds = round(time.monotonic() - begun, 1)
    return round_


def _open(site: DaemonSite, dagster: Dagster, backfill: str) -> bool:
    """Whether the backfill goes on: it has not ended, and somebody works on it."""
    return dagster.state(backfill)["status"] not in BACKFILL_ENDED and bool(
        site.victims("run worker") or set(dagster.statuses(backfill)) & {"QUEUED", "NOT_STARTED", "STARTING"}
    )
