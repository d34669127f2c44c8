"""A site whose graph is made by Dagster's daemon and run workers, and rounds that kill those."""

import contextlib
import os
import re
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
    ENDED,
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
PATIENCE_SECONDS = 15
"""For a process to be struck, and for the end of a backfill after the last fault: the plain run makes the rest."""


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

    def begin(self, number: int) -> None:
        """As `reset`, but Dagster's records stay once the servers write them; its monitoring is made to hurry."""
        if not self.running:
            super().reset(len(self.parts))
            settings = self.state / "dagster" / "dagster.yaml"
            settings.write_text(
                re.sub(r"(poll_interval|(start|cancel)_timeout)_seconds: .*", _hurry, settings.read_text())
            )
        for name in ("artifacts", "mlflow", "cache"):
            shutil.rmtree(self.state / name, ignore_errors=True)
            if (before := self.kept / str(number) / name).is_dir():
                shutil.copytree(before, self.state / name)
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

    def workers(self) -> list[psutil.Process]:
        """Run workers and steps that live now, those of dead servers too."""
        return [it for it in psutil.process_iter() if self._is_ours(it)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            spawned = any("spawn_main" in word for word in process.cmdline())
            return spawned and process.environ().get("YT8M_STATE") == str(self.state)
        except psutil.Error:
            return False

    def victims(self, what: str) -> list[psutil.Process]:
        """The processes of a sort that live now."""
        if what in self.running:
            return [psutil.Process(self.running[what].pid)]
        workers = self.workers()
        return [it for it in workers if (what == "step") == (psutil.Process(it.pid).parent() in workers)]

    def strike(self, sign: str, what: str, draw: Random) -> bool:
        """Send a signal to a process of a sort, and start a server again; whether one lived within some seconds."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self.victims(what) and time.monotonic() < deadline:
            time.sleep(0.5)
        with contextlib.suppress(psutil.Error, IndexError):
            victim = draw.choice(sorted(self.victims(what), key=lambda it: it.pid))
            victim.send_signal(signal.Signals[sign])
            if what in SERVERS:
                try:
                    self.running[what].wait(20)
                except subprocess.TimeoutExpired:  # as whoever stops a container
                    victim.kill()
                    self.running[what].wait()
                self.serve()
            return True
        return False

    def settle(self, dagster: Dagster, backfill: str) -> None:
        """Wait a while for the end of a backfill; cancel what is left of it, and end who still works on it."""
        deadline, idle = time.monotonic() + PATIENCE_SECONDS, 0
        while idle < 5 and time.monotonic() < deadline:
            idle = 0 if self._goes_on(dagster, backfill) else idle + 1
            time.sleep(1)
        if dagster.state(backfill)["status"] not in BACKFILL_ENDED:
            dagster.cancel(backfill)
        deadline = time.monotonic() + 30
        while (workers := self.workers()) and time.monotonic() < deadline:
            time.sleep(1)
        for process in workers:
            with contextlib.suppress(psutil.Error):
                process.kill()

    def _goes_on(self, dagster: Dagster, backfill: str) -> bool:
        state = dagster.state(backfill)
        begun = {run["status"] for run in state["runs"]} - ENDED
        dead = begun and begun <= {"STARTED", "CANCELING"} and not self.workers()
        return state["status"] not in BACKFILL_ENDED and not dead

    def close(self) -> None:
        """End everything."""
        for server in self.running.values():
            server.kill()
            server.wait()
        for process in self.workers():
            with contextlib.suppress(psutil.Error):
                process.kill()


def _hurry(found: "re.Match[str]") -> str:
    return f"{found[1]}_seconds: {5 if found[1] == 'poll_interval' else 20}"


def play(site: DaemonSite, seed: int, number: int, most: int = MAX_FAULTS, seconds: float = 60.0) -> Round:
    """One round: a backfill of what is missing, processes killed at moments drawn over it, then a plain run."""
    draw, begun = Random(f"daemon {seed} {number}"), time.monotonic()
    start = draw.randrange(len(PARTS))
    round_ = Round(seed, number, start)
    span = seconds * (len(PARTS) - start) / len(PARTS) + 10
    moments = sorted(draw.uniform(2, span) for _ in range(draw.randint(3, most)))
    round_.faults = [Fault(draw.choice(KINDS), int(moment), seed=moment) for moment in moments]
    try:
        site.begin(start)
        dagster = site.serve()
        backfill, launched = (
            dagster.backfill_all([it for part in PARTS[start:] for it in ASSETS[part]]),
            time.monotonic(),
        )
        for fault in round_.faults:
            time.sleep(max(launched + fault.seed - time.monotonic(), 0))
            sign, _, what = fault.kind.partition(" of the ")
            fault.struck = site.strike(sign, what, draw)
        site.settle(site.serve(), backfill)
        converge(site, round_)
    except (AssertionError, OSError) as error:  # a server that does not come back
        round_.why.append(f"{type(error).__name__}: {error}")
    round_.outcome = "lost" if round_.why else "refused" if round_.remedies else "survived"
    round_.seconds = round(time.monotonic() - begun, 1)
    return round_
