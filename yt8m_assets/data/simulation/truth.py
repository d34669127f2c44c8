"""The hidden ratings of the simulated test videos: what the real challenge keeps to itself. For evaluation alone."""

from yt8m_assets.data.simulation.config import SimulationConfig
from yt8m_assets.data.simulation.scripts import shard_scripts
from yt8m_assets.data.simulation.world import build_world

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
