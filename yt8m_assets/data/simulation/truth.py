"""The hidden ratings of the simulated test videos: what the real challenge keeps to itself. For evaluation alone."""

import csv
from pathlib import Path

from yt8m_assets.data.simulation.config import SimulationConfig
from yt8m_assets.data.simulation.scripts import shard_scripts
from yt8m_assets.data.simulation.world import build_world
from yt8m_assets.errors import DataError, MissingDataError

TRUTH_HEADER = ["video_id", "start", "class_id", "score"]


def test_ratings(config: SimulationConfig) -> dict[tuple[str, int], int]:
    """{(segment id "video:start", class id): 0 or 1} of the test split, made anew from the config."""
    world = build_world(config)
    return {
        (f"{script.video_id}:{start}", class_id): score
        for shard in range(config.num_shards("test"))
        for script, _ in shard_scripts(config, world, "test", shard)
        for start, class_id, score in script.ratings
    }


def read_test_ratings(path: Path) -> dict[tuple[str, int], int]:
    """The same, from the file `write_dataset` left. Raises MissingDataError, or DataError naming the line."""
    ratings = {}
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except FileNotFoundError as error:
        raise MissingDataError(f"{path}: no such file; it is written with the test split") from error
    for number, row in enumerate(csv.reader(lines), start=1):
        if number == 1:
            if row != TRUTH_HEADER:
                raise DataError(f"{path}: line 1: expected the header {','.join(TRUTH_HEADER)}, got {','.join(row)!r}")
            continue
        if len(row) != 4 or not all(field.isdigit() for field in row[1:]) or row[3] not in ("0", "1"):
            raise DataError(f"{path}: line {number}: expected id,second,class,0 or 1, got {','.join(row)!r}")
        ratings[f"{row[0]}:{row[1]}", int(row[2])] = int(row[3])
    return ratings
