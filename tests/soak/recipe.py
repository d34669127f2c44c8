"""The golden recipe over the shards beside the state that YT8M_STATE names: runs of seconds, artifacts of kilobytes."""

import os
from pathlib import Path

from tests.golden.release import recipe

RECIPE = recipe(Path(os.environ["YT8M_STATE"]) / "shards")
