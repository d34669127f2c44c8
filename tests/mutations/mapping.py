"""Which tests must notice a change of a source: those that mirror it, and those that import it."""

import ast
import re
from functools import lru_cache
from pathlib import Path

MAX_FILES = 24
"""Test files for one source; `errors.py` is imported by nearly all. Only a survivor meets the last of them."""


def relevant_tests(root: Path, source: str) -> list[str]:
    """Test files for a source, the likeliest first: its mirrors, what is near, then whatever leads to it by imports.

    Paths are relative to the project.
    """
    module = source.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    importers = _importers(root)
    known_as = {module, *_exporters(root, module)}
    found = {path for path, modules in importers.items() if modules & known_as or _mirrors(path, source)}
    relatives, own = [source], Path("tests", *Path(source).parts[1:-1])
    mirrored = any(_mirrors(path, source) for path in found)
    if not mirrored:  # then its folder's tests, and what mirrors its users, know it, too
        found |= {path for path in importers if Path(path).parent == own != Path("tests")}
        users = {name for name, modules in _imports_of_sources(root).items() if module in modules}
        relatives += [f"{name.replace('.', '/')}.py" for name in users]
        found |= {path for path in importers if any(_mirrors(path, relative) for relative in relatives)}
        found |= set() if found else {path for path, modules in importers.items() if modules & users}

    names = _definitions(root / source)

    def rank(path: str) -> tuple[int, int, str]:
        parent = Path(path).parent
        places = [
            _mirrors(path, source),
            not mirrored and parent == own != Path("tests"),
            any(_mirrors(path, relative) for relative in relatives),
            parent == Path("tests", "faults"),
            parent == own != Path("tests"),
        ]
        said = len(names.intersection(re.findall(r"\w+", (root / path).read_text())))
        return (places.index(True) if True in places else len(places), -said, path)

    return sorted(found, key=rank)[:MAX_FILES]


def _exporters(root: Path, module: str) -> set[str]:
    """Packages that give on what is in a module: who imports one of them may well use it."""
    sources = _imports_of_sources(root).items()
    return {name.removesuffix(".__init__") for name, seen in sources if name.endswith(".__init__") and module in seen}


def _definitions(path: Path) -> set[str]:
    """Names of the functions and classes of a source: a test that says them knows it better than one that does not."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def _mirrors(test: str, source: str) -> bool:
    """Whether a test is a source's by rule: tests/storage/test_remote.py of yt8m_assets/storage/remote.py.

    a test file's name may be the beginning of the source's, or its folder's the source's whole name.
    """
    parts = Path(source).parts
    inside = parts[1:] if parts[0] == "yt8m_assets" else parts
    folder, stem = Path("tests", *inside[:-1]), inside[-1].removesuffix(".py")
    if stem == "__init__":
        folder, stem = folder.parent, folder.name
    place = Path(test)
    names = [place.stem.removeprefix("test_")] if place.parent == folder else []
    names += [place.parent.name] if place.parent.parent == folder else []
    return any(stem == name or stem.startswith(f"{name}_") for name in names)


@lru_cache
def _importers(root: Path) -> dict[str, set[str]]:
    """Test file -> the project's modules that it, or a helper beside the tests that it imports, imports."""
    files = {path.relative_to(root).as_posix(): _modules(path) for path in sorted(root.glob("tests/**/*.py"))}
    by_module = {path.removesuffix(".py").replace("/", "."): modules for path, modules in files.items()}
    found = {}
    for path, modules in files.items():
        if Path(path).name.startswith("test_") and not path.startswith("tests/browser/"):
            helpers = [by_module[module] for module in modules if module in by_module]
            found[path] = modules.union(*helpers)
    return found


@lru_cache
def _imports_of_sources(root: Path) -> dict[str, set[str]]:
    paths = [path for package in ("models", "yt8m_assets", "orchestration") for path in root.glob(f"{package}/**/*.py")]
    return {p.relative_to(root).as_posix().removesuffix(".py").replace("/", "."): _modules(p) for p in paths}


def _modules(path: Path) -> set[str]:
    """Dotted names that a file imports anywhere in it; of `from a import b` both a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found
