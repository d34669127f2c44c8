"""What `dg scaffold defs` has added below `orchestration/defs`."""

from pathlib import Path

import dagster as dg

FOLDER = Path(__file__).with_name("defs")


def added_definitions() -> list[dg.Definitions]:
    """The definitions of the folder; none, and nothing imported, while it holds nothing of a person's."""
    added = [path for path in FOLDER.glob("*") if path.name not in ("__init__.py", "__pycache__")]
    return [dg.load_from_defs_folder(path_within_project=FOLDER)] if added else []
