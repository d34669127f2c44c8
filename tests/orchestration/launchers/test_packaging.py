"""The launchers stand alone: no import of this project, and none of a cloud's client before it is used."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from dagster._config import validate_config
from dagster._core.instance.config import dagster_instance_config_schema

import orchestration.launchers
from orchestration.launchers.vertex import VertexAIRunLauncher
from orchestration.launchers.vertex_job import JOB_FIELDS, parse_tag

FOLDER = Path(orchestration.launchers.__file__).parent
README = (FOLDER / "README.md").read_text()
ELSEWHERE = """
import importlib, pathlib, pkgutil, sys
sys.path.insert(0, sys.argv[1])
import borrowed.launchers as package
for module in pkgutil.iter_modules(package.__path__):
    importlib.import_module(f"borrowed.launchers.{module.name}")
ours = ("orchestration", "yt8m_assets", "models", "tests", "torch")
print([name for name in sys.modules if name.split(".")[0] in ours])
"""


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


def test_a_copy_works_under_another_name_without_this_project(tmp_path: Path):
    copy = tmp_path / "borrowed" / "launchers"
    shutil.copytree(FOLDER, copy)
    for path in copy.glob("*.py"):
        path.write_text(path.read_text().replace("orchestration.launchers", "borrowed.launchers"))
    code = [sys.executable, "-c", ELSEWHERE, str(tmp_path)]
    assert subprocess.run(code, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_readme_names_every_file_and_its_examples_are_valid():
    files = {path.name for path in FOLDER.glob("*.py")} - {"__init__.py"}
    assert set(re.findall(r"^\| `(\w+\.py)`", README, re.MULTILINE)) == files
    example = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)[0])
    result = validate_config(dagster_instance_config_schema(), example)
    assert result.success, [error.message for error in result.errors or []]
    result = validate_config(VertexAIRunLauncher.config_type(), example["run_launcher"]["config"])
    assert result.success, [error.message for error in result.errors or []]
    (tag,) = re.findall(r'"vertex-ai/config": (\{.*?\})', README)
    assert set(parse_tag({"vertex-ai/config": json.dumps(ast.literal_eval(tag))})) == {
        "machine_type",
        "accelerator_type",
    }
    listed = README.split("The tag takes ")[1].split(";")[0]
    assert set(re.findall(r"`(\w+)`", listed)) == set(JOB_FIELDS)
