"""Where rounds are run: a folder with source data, a state, and what a graph without faults is."""

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.campaign.passes import Pass, Strike, start
from tests.campaign.recipe import DATA
from tests.training.support import write_shards

PARTS = ("holdout_ratings", "pretrained_model", "finetuned_model", "oof_ranking", "test_ranking", "leaderboard")
"""The graph in parts: the last asset of each."""
RECIPE = Path(__file__).with_name("recipe.py")
_METRICS = ("train/loss", "train/learning_rate", "holdout/map", "holdout/best", "trial/", "ensemble/", "submission/")
"""Those that are the same however often a run was interrupted."""
_RUNS = ("training, ", "tuning, ", "ensemble search", "submission", "leaderboard")
"""Those that are the same runs, too; predictions are one run for each pass over the data."""

_BELOW = "state/artifacts/"

Files = dict[str, str]


def code_digest() -> str:
    """Names the code that a reference comes from: other code may rightly log other metrics."""
    root, found = RECIPE.parents[2], hashlib.sha256(RECIPE.read_bytes())
    for path in sorted(
        path for top in ("models", "orchestration", "yt8m_assets") for path in (root / top).rglob("*.py")
    ):
        found.update(path.read_bytes())
    return found.hexdigest()


class Site:
    """A folder in which one round at a time is run."""

    where = "folder"
    """What faults ask: whether they can strike here."""
    DATA = DATA

    def __init__(self, folder: Path, kept: Path, parts: Sequence[str] = PARTS) -> None:
        self.folder, self.kept, self.parts = folder, kept, tuple(parts)
        self.plant: Callable[[], None] = lambda: None
        self.data, self.state, self.source = folder / "data", folder / "state", kept / "source"
        self.reference: Files = {}
        self.metrics: set[Any] = set()
        self.operations: list[int] = []
        """Of a pass from each start to the end of the graph."""

    @property
    def mlflow(self) -> Path:
        """MLflow's database."""
        return self.state / "mlflow" / "mlflow.db"

    @property
    def environment(self) -> Mapping[str, str]:
        """What a pass finds in its environment."""
        return {DATA: str(self.data), "YT8M_STATE": str(self.state), "YT8M_RECIPE": str(RECIPE), "COLUMNS": "200"}

    def start(self, *arguments: str, at: int = 0) -> Pass:
        """Start `yt8m ...`."""
        return start(arguments, self.environment, self.folder, at, self.plant)

    def run(self, *arguments: str, at: int = 0, strike: Strike | None = None, seconds: float = 180.0) -> Pass:
        """Run `yt8m ...` to its end."""
        return self.start(*arguments, at=at).wait(strike, seconds)

    def materialize(self, *options: str, at: int = 0, strike: Strike | None = None, seconds: float = 180.0) -> Pass:
        """A plain run; `options` are those that a message asks for."""
        return self.run("materialize", "--until", self.parts[-1], *options, at=at, strike=strike, seconds=seconds)

    def prepare(self) -> None:
        """Make the reference, part by part. Raises RuntimeError where that fails, or is not the same twice."""
        for folder in (self.state, self.data, self.kept):
            shutil.rmtree(folder, ignore_errors=True)
        self.kept.mkdir(parents=True)
        write_shards(self.source)
        self._first()
        self._keep(0)
        before = []
        for number, part in enumerate(self.parts, 1):
            made = self.run("materialize", "--until", part)
            if made.code:
                raise RuntimeError(f"the reference cannot be made: {made.text}")
            before.append(made.operations)
            self._keep(number)
        self.reference, self.metrics = self.files(), self.logged()
        self.reset(0)
        again = self.materialize()
        if again.code or self.damaged() or self.untold():
            raise RuntimeError(f"two graphs without faults differ: {self.damaged()} {self.untold()} {again.text}")
        self.reset(len(before))
        idle = self.materialize().operations
        share = (again.operations - idle) / sum(before)
        self.operations = [int(sum(before[number:]) * share) + idle for number in range(len(before) + 1)]
        known = {
            "code": code_digest(),
            "files": self.reference,
            "metrics": sorted(self.metrics, key=str),
            "operations": self.operations,
        }
        (self.kept / "reference.json").write_text(json.dumps(known))

    def recall(self) -> bool:
        """Take the reference that an earlier campaign made in this folder; whether there is one, of this very code."""
        path = self.kept / "reference.json"
        known = json.loads(path.read_text()) if path.is_file() else {}
        if known.get("code") != code_digest():
            return False
        self.reference, self.operations = known["files"], known["operations"]
        self.metrics = {tuple(row) for row in known["metrics"]}
        return True

    def _first(self) -> None:
        """Sources, and an empty database of MLflow with all tables, which takes seconds to make."""
        shutil.copytree(self.source, self.data)
        self.mlflow.parent.mkdir(parents=True)
        ask = f"from mlflow import MlflowClient; MlflowClient('sqlite:///{self.mlflow}').search_experiments()"
        subprocess.run([sys.executable, "-c", ask], check=True, capture_output=True)

    def _keep(self, number: int) -> None:
        shutil.copytree(self.state, self.kept / str(number))

    def reset(self, number: int) -> None:
        """Go to the start of a part (len(parts): all is there), with sound sources."""
        for folder, before in ((self.state, self.kept / str(number)), (self.data, self.source)):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(before, folder)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Without the servers that work on the state, which start again at the end of the block."""
        yield

    def restore_source(self) -> None:
        """Fetch the source data anew."""
        shutil.copytree(self.source, self.data, dirs_exist_ok=True)

    def names(self) -> Iterator[str]:
        """Every file that a fault may strike, below the folder."""
        for top in (self.data, self.state):
            yield from (path.relative_to(self.folder).as_posix() for path in sorted(top.rglob("*")) if path.is_file())

    def read(self, name: str) -> bytes:
        """The content of a file."""
        return (self.folder / name).read_bytes()

    def write(self, name: str, content: bytes | None, changed: int | None = None) -> None:
        """Change a file behind the back of all, and its time of change (nanoseconds); None: remove it."""
        path = self.folder / name
        if content is None:
            path.unlink()
            return
        before = path.stat().st_mtime_ns
        path.write_bytes(content)
        os.utime(path, ns=(before, changed or before))

    def files(self) -> Files:
        """Artifact and file -> sha256 of its bytes, of the newest generations; pictures and pages left out."""
        held = {name.removeprefix(_BELOW) for name in self.names() if name.startswith(_BELOW)}
        newest: dict[str, str] = {}
        for name in sorted(held):
            key, _, file = name.rpartition("/")
            if file.startswith("manifest-") and not key.startswith("checkpoints/"):
                newest[key] = name
        found = {}
        for key, name in newest.items():
            manifest = json.loads(self.read(_BELOW + name))
            for file, entry in manifest["files"].items():
                if not file.startswith("report/"):
                    place = f"{key}/{manifest['folder']}/{file}"
                    same = place in held and hashlib.sha256(self.read(_BELOW + place)).hexdigest() == entry["sha256"]
                    found[f"{key}/{file}"] = entry["sha256"] if same else "not what its manifest says"
        return found

    def logged(self) -> set[Any]:
        """(run, metric, step, value) of finished runs in MLflow's database; `twice` where one has it twice."""
        query = """SELECT r.name, m.key, m.step, m.value, max(m.number) FROM runs r JOIN
            (SELECT run_uuid, key, step, value, count(*) AS number FROM metrics GROUP BY run_uuid, key, step, value) m
            ON m.run_uuid = r.run_uuid WHERE r.status = 'FINISHED' AND r.lifecycle_stage = 'active'
            GROUP BY r.name, m.key, m.step, m.value"""
        database = sqlite3.connect(self.mlflow)
        try:
            rows = database.execute(query).fetchall()
        except sqlite3.DatabaseError as error:
            return {str(error)}
        finally:
            database.close()
        wanted = [row for row in rows if row[1].startswith(_METRICS) and any(run in row[0] for run in _RUNS)]
        return {row[:4] for row in wanted} | {("twice", *row) for row in wanted if row[4] > 1}

    def damaged(self) -> list[str]:
        """In what the artifacts differ from those of the reference."""
        found = self.files()
        names = sorted(set(found) | set(self.reference))
        wanted = [(name, self.reference.get(name, "nothing"), found.get(name, "nothing")) for name in names]
        return [f"{name}: {now} instead of {before}" for name, before, now in wanted if before != now]

    def untold(self) -> list[str]:
        """In what MLflow's metrics differ from those of the reference."""
        return [f"MLflow: {row}" for row in sorted(self.metrics ^ self.logged(), key=str)[:5]]

    def left_open(self) -> Iterator[str]:
        """Runs that Dagster takes to be under way, and slots of pools that are taken, although no process runs."""
        history = self.state / "dagster" / "storage" / "history"
        questions = {
            history / "runs.db": "SELECT count(*) FROM runs WHERE status IN ('STARTING', 'STARTED', 'CANCELING')",
            history / "runs" / "index.db": "SELECT count(*) FROM concurrency_slots WHERE run_id IS NOT NULL",
        }
        for path, question in questions.items():
            database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
            count = database.execute(question).fetchone()[0]
            database.close()
            if count:
                yield f"Dagster, {path.name}: {count} left open"

    def close(self) -> None:
        """End what was started beside the passes."""
