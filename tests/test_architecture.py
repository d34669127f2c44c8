"""Which way imports point, what may not be imported where, and how long things may be."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("models", "yt8m_assets", "orchestration")
TOP_LEVEL = {
    "models", "yt8m_assets", "orchestration", "tests", "docs", "pyproject.toml", "workspace.yaml",
    "README.md", "Makefile", "requirements.lock", ".ci", ".gitignore", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md",
    "SECURITY.md",
}  # fmt: skip
"""What DESIGN lists; everything a run writes goes under .state/."""


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names that a module imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield str(node.module)


def parsed() -> Iterator[tuple[str, ast.Module]]:
    for path in sources():
        yield relative(path), ast.parse(path.read_text())


def test_mlflow_is_imported_when_used() -> None:
    """Where it may be imported, and which way imports point, say the contracts of pyproject.toml."""
    wrong = [
        f"{name}: {ast.unparse(node)}"
        for name, tree in parsed()
        if not name.endswith("serving/entry.py")  # run by MLflow itself
        for node in tree.body
        if "mlflow" in _direct(node)
    ]
    assert not wrong


def _direct(node: ast.stmt) -> set[str]:
    return (
        {module.split(".")[0] for module in imports(node)} if isinstance(node, ast.Import | ast.ImportFrom) else set()
    )


def test_nothing_loads_what_could_run_code() -> None:
    wrong = []
    for name, tree in parsed():
        wrong += [
            f"{name} imports {m}" for m in imports(tree) if m.split(".")[0] in ("pickle", "dill", "joblib", "shelve")
        ]
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                called = ast.unparse(node.func)
                if called in ("torch.load", "yaml.load", "yaml.unsafe_load"):
                    wrong.append(f"{name}:{node.lineno} calls {called}")
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
                wrong.append(f"{name}:{node.lineno} calls {node.func.id}")
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant)
                assert node.value.value is False
    assert not wrong


def test_core_does_not_print() -> None:
    wrong = [
        f"{name}:{node.lineno}"
        for name, tree in parsed()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not wrong


def is_asset(function: ast.FunctionDef) -> bool:
    return any(
        ast.unparse(decorator).startswith(("dg.asset(", "dg.asset_check(")) for decorator in function.decorator_list
    )


def test_asset_bodies_are_short() -> None:
    """At most 20 lines after the docstring; there are some."""
    bodies = [
        (name, node)
        for name, tree in parsed()
        if name.startswith("yt8m_assets/assets/")
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and is_asset(node)
    ]
    assert len(bodies) >= 8
    for name, node in bodies:
        first = node.body[1] if ast.get_docstring(node) else node.body[0]
        length = int(node.end_lineno or 0) - first.lineno + 1
        assert length <= 20, f"{name}: the body of {node.name} has {length} lines"


@pytest.mark.parametrize(
    ("limit", "pattern"), [(60, "orchestration/definitions.py"), (120, "yt8m_assets/assets/*.py"), (300, "**/*.py")]
)
def test_files_are_short(limit: int, pattern: str) -> None:
    paths = [path for path in ROOT.glob(pattern) if relative(path).startswith(PACKAGES)]
    assert paths
    assert not {relative(p): n for p in paths if (n := len(p.read_text().splitlines())) > limit}


def test_top_level_holds_what_the_design_lists() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout: there is no list of the project's own files")
    assert {line.split("/")[0] for line in listed.stdout.splitlines()} <= TOP_LEVEL


def test_each_decision_has_a_number_of_its_own() -> None:
    numbers = [path.name[:4] for path in sorted((ROOT / "docs" / "decisions").glob("*.md"))]
    assert numbers == [f"{number:04d}" for number in range(1, len(numbers) + 1)]


def test_the_tier_of_servers_is_where_it_is_looked_for() -> None:
    """`make test-servers` collects in these folders alone, which takes seconds instead of a minute."""
    command = next(line for line in (ROOT / "Makefile").read_text().splitlines() if "browser or cloud or" in line)
    folders = [ROOT / word for word in command.split() if word.startswith("tests/")]
    assert folders
    marked = re.compile(r"\bmark\.(browser|cloud|processes)\b")
    strays = [
        relative(path)
        for path in (ROOT / "tests").rglob("test_*.py")
        if marked.search(path.read_text()) and not any(folder in path.parents for folder in folders)
    ]
    assert not strays


def test_definitions_load_fast_and_light() -> None:
    """Without torch and MLflow, in under 3 seconds of processor time."""
    script = (
        "import sys, time, tempfile, pathlib\n"
        "from orchestration.definitions import build_definitions\n"
        "from orchestration.resources import build_resources\n"
        "from orchestration.settings import Settings\n"
        "from orchestration.state import prepare_state\n"
        "from yt8m_assets.recipes import load_recipe\n"
        "state = prepare_state(pathlib.Path(tempfile.mkdtemp()))\n"
        "resources = build_resources(Settings.from_environment(state, {}))\n"
        "build_definitions(load_recipe('challenge'), resources).resolve_asset_graph()\n"
        "heavy = ('torch', 'mlflow', 'tensorflow', 'matplotlib')\n"
        "print(time.process_time(), *[m for m in heavy if m in sys.modules])\n"
    )
    answer = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, *heavy = answer.stdout.split()
    assert not heavy
    assert float(seconds) < 3


def test_what_the_architecture_page_names_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"`((?:models|yt8m_assets|orchestration)/[\w/]+\.py)(?::(\w+))?`", text))
    assert len(named) > 20
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text())
        defined = {getattr(node, "name", None) for node in tree.body}
        for node in tree.body:
            if isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                defined |= {ast.unparse(target) for target in targets}
        assert not name or name in defined, f"{path} has no {name}"
