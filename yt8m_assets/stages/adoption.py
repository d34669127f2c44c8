"""A model that starts from another one's pre-trained weights: they are published as its own, not trained again."""

import shutil

from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.lineage import resolve_inputs
from yt8m_assets.stages.nodes import Node
from yt8m_assets.storage import ArtifactStore, StageResult
from yt8m_assets.storage.soundness import content_files

_OF_THE_RUN = ("mlflow_run_id", "mlflow_url", "resumed_from_step")
"""Metadata that speak of the run which trained the weights, and are that one's alone."""


def adopt(recipe: Recipe, store: ArtifactStore, model_key: str) -> StageResult:
    """Publish the pre-trained weights of the model that this one `starts_from` as `pretrained_model` of this one.

    So everything below finds them in their place, and a change of the other's pre-training reaches this one, too.
    Raises MissingArtifactError or ParentMismatchError where the other's are not there or not up to date.
    """
    inputs = resolve_inputs(recipe, store, Node("pretrained_model", model_key))
    if inputs.published is not None:
        return StageResult(inputs.published, reused=True)
    origin = inputs.parent("pretrained_model", recipe.model(model_key).starts_from)
    with store.publish(inputs.node.key, **inputs.publish_arguments()) as publication:
        folder = store.fetch(origin)
        for name in content_files(origin):
            shutil.copyfile(folder / name, publication.path / name)
        kept = {name: value for name, value in origin.metadata.items() if name not in _OF_THE_RUN}
        publication.metadata.update(kept, weights_of=origin.key)
    return publication.result
