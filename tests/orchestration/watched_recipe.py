"""The tiny recipe, whose predictions a test can watch, hold up and make fail, through files in YT8M_WATCHED.

`reads` gets a line for each pass over the data; while `hold` is there, passes wait; a cell named in `fail` fails once.
"""

import functools
import os
import time
from pathlib import Path
from typing import Any

from tests.tiny import tiny_recipe
from yt8m_assets.data.dataset import memory
from yt8m_assets.errors import DataError
from yt8m_assets.stages import prediction as stages
from yt8m_assets.stages.lineage import Inputs

RECIPE = tiny_recipe()
FOLDER = Path(os.environ["YT8M_WATCHED"])
LIMIT_SECONDS = 90
# A process may load its recipe several times: what is wrapped already is unwrapped first.
load_videos: Any = getattr(memory.load_videos, "__wrapped__", memory.load_videos)
publish_ranking: Any = getattr(stages.publish_ranking, "__wrapped__", stages.publish_ranking)


@functools.wraps(load_videos)
def watched_load(*arguments: Any, **options: Any) -> Any:
    """Note the pass, wait while told to, and read."""
    with (FOLDER / "reads").open("a") as file:
        file.write(f"{os.getpid()}\n")
    deadline = time.monotonic() + LIMIT_SECONDS
    while (FOLDER / "hold").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return load_videos(*arguments, **options)


@functools.wraps(publish_ranking)
def failing_publish(store: Any, inputs: Inputs, *arguments: Any) -> Any:
    """Publish, unless the cell is the one that is to fail."""
    fail = FOLDER / "fail"
    if fail.exists() and fail.read_text() == inputs.node.key:
        fail.unlink()
        raise DataError(f"{inputs.node.key}: told to fail")
    return publish_ranking(store, inputs, *arguments)


memory.load_videos = watched_load
stages.publish_ranking = failing_publish  # type: ignore[assignment]
