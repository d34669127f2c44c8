"""Print what an image installs: the project's own requirements with the extras of production, without the test tools.

Versions come from requirements.lock, given to pip as constraints: one lock serves development and production.
"""

import re
import sys
import tomllib
from pathlib import Path

EXTRAS = ("k8s", "vertex", "gpu")


def production_requirements(pyproject: Path) -> list[str]:
    """Requirements of the project and its production extras; extras that name the project itself are followed."""
    project = tomllib.loads(pyproject.read_text())["project"]
    found, waiting = list(project["dependencies"]), list(EXTRAS)
    for extra in waiting:
        for requirement in project["optional-dependencies"][extra]:
            own = re.fullmatch(rf"{re.escape(project['name'])}\[(.+)\]", requirement)
            if own:
                waiting += [name for name in own[1].split(",") if name not in waiting]
            else:
                found.append(requirement)
    return sorted(set(found))


if __name__ == "__main__":
    sys.stdout.write("\n".join(production_requirements(Path(sys.argv[1]))) + "\n")
