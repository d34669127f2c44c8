"""The shell commands of docs/cloud.md, run as typed, with stand-ins of gcloud and kubectl that note what they get."""

import json
import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
NOTE = """#!/usr/bin/env python3
import json, os, sys
with open(os.environ["NOTES"], "a") as notes:
    notes.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
if "describe" in sys.argv:
    print("10.0.0.3")
"""


def commands(*beginnings: str) -> str:
    """The lines of docs/cloud.md that begin so, in order, each with its continuation."""
    text = (ROOT / "docs" / "cloud.md").read_text().replace("\\\n", " ")
    return "\n".join(line for line in text.splitlines() if line.startswith(beginnings))


def test_the_database_takes_the_password_that_the_secrets_hold_and_no_file_keeps_it(tmp_path: Path):
    tools, folder = tmp_path / "bin", tmp_path / "checkout"
    tools.mkdir()
    folder.mkdir()
    for name in ("gcloud", "kubectl"):
        (tools / name).write_text(NOTE)
        (tools / name).chmod(0o755)
    script = commands(
        "DAGSTER_PASSWORD=", "gcloud sql users create", "export DATABASE_ADDRESS", "kubectl -n yt8m create secret"
    )
    environment = {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "NOTES": str(tmp_path / "notes"),
        "PROJECT": "p",
    }
    subprocess.run(["bash", "-euc", script], cwd=folder, env=environment, check=True)
    calls = [json.loads(line) for line in (tmp_path / "notes").read_text().splitlines()]
    given = {call[4]: call[call.index("--password") + 1] for call in calls if "--password" in call}
    assert set(given) == {"dagster", "mlflow"}
    assert all(re.fullmatch("[0-9a-f]{48}", password) for password in given.values()), "a newline is no part of it"
    secrets = {call[6]: call[-1].removeprefix("--from-literal=") for call in calls if call[0] == "kubectl"}
    assert secrets["dagster-postgresql"] == f"postgresql-password={given['dagster']}"
    assert secrets["mlflow-database"] == f"uri=postgresql://mlflow:{given['mlflow']}@10.0.0.3:5432/mlflow"
    assert not list(folder.iterdir()), "a password lies in the checkout"
