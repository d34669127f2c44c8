"""What a run of predictions leaves behind when some of its cells cannot be made."""

import dagster as dg

from tests.assets.support import QUIET
from yt8m_assets.assets.predictions import build_prediction_assets
from yt8m_assets.partitions import parse_cell
from yt8m_assets.progress import NullProgress
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.nodes import Node
from yt8m_assets.storage import ArtifactStore
from yt8m_assets.tracking import NullTracking


class Silent:
    """Progress that nobody sees."""

    def open(self, log: object) -> NullProgress:
        return NullProgress()


def predict(recipe: Recipe, store: ArtifactStore, first: str, last: str) -> dg.ExecuteInProcessResult:
    """A run over a rectangle of cells."""
    (asset, *_) = build_prediction_assets(recipe)
    return dg.materialize(
        [asset],
        resources={"store": store, "tracking": NullTracking(), "progress": Silent()},
        tags={"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last},
        run_config=QUIET,
        raise_on_error=False,
    )


def materialized(result: dg.ExecuteInProcessResult) -> dict[str, str]:
    """Partition -> digest of the materialisations that a run recorded."""
    made = [event for event in result.all_events if event.is_step_materialization]
    events = [event.step_materialization_data.materialization for event in made]
    return {str(event.partition): str(event.metadata["digest"].value) for event in events}


def test_the_cells_that_were_made_are_recorded_though_the_run_fails(graph: tuple[Recipe, ArtifactStore]) -> None:
    recipe, store = graph
    model = store.require("finetuned_model/two")
    store.delete(model.key)
    result = predict(recipe, store, "one|0", "two|1")
    assert not result.success
    digests = {key: store.require(Node("oof_predictions", *parse_cell(key)).key).digest for key in ("one|0", "one|1")}
    assert materialized(result) == digests
    assert store.manifest("oof_predictions/two/shift+0") is None
