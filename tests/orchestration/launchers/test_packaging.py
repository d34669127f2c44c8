"""The launchers stand alone: no import of this project, and none of a cloud's client before it is used."""

import ast
import subprocess
import sys
from pathlib import Path

import orchestration.launchers

FOLDER = Path(orchestration.launchers.__file__).parent


def imported(tree: ast.AST) -> set[str]:
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return names | {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}


def test_the_launchers_import_nothing_of_this_project():
    files = sorted(FOLDER.glob("*.py"))
    assert len(files) >= 4
    own = {name for path in files for name in imported(ast.parse(path.read_text()))}
    project = {name for name in own if name.split(".")[0] in ("orchestration", "yt8m_assets", "models", "tests")}
    assert all(name.startswith("orchestration.launchers") for name in project), project


def test_loading_the_launcher_needs_no_google_client():
    code = "import sys, orchestration.launchers.vertex; sys.exit('google.cloud.aiplatform_v1' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
