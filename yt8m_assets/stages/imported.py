"""Finished weights of the original, as a model of the graph."""

from collections.abc import Mapping

import numpy as np
import torch

from models import load_tf_variables
from yt8m_assets.errors import ConfigError
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.lineage import current_manifest, resolve_inputs
from yt8m_assets.stages.nodes import Node
from yt8m_assets.stages.training import model_spec
from yt8m_assets.storage import ArtifactStore, StageResult
from yt8m_assets.training.job import num_parameters
from yt8m_assets.training.model_files import write_model


def publish_imported(
    recipe: Recipe,
    store: ArtifactStore,
    asset: str,
    model_key: str,
    variables: Mapping[str, np.ndarray],
    num_steps: int | None = None,
) -> StageResult:
    """Publish TensorFlow variables (names of SPEC section 12) as a pretrained_model or finetuned_model of the recipe.

    `num_steps` is the number of steps they were trained for (by default the recipe's), where the learning-rate
    schedule of fine-tuning goes on. A fine-tuned model that is imported needs no pre-trained one: where none is
    published, the same weights stand in for it. Raises ValueError naming what is missing, unused or mis-shaped, and
    MissingArtifactError when the data is not there.
    """
    if asset not in ("pretrained_model", "finetuned_model"):
        raise ConfigError(f"asset = {asset!r}: choose pretrained_model or finetuned_model")
    row = recipe.model(model_key)
    config = row.pretraining if asset == "pretrained_model" else row.finetuning
    spec = model_spec(recipe, model_key)
    model = spec.build()
    load_tf_variables(model, dict(variables))  # type: ignore[arg-type]
    if asset == "finetuned_model" and current_manifest(recipe, store, Node("pretrained_model", model_key)) is None:
        publish_imported(recipe, store, "pretrained_model", model_key, variables)
    inputs = resolve_inputs(recipe, store, Node(asset, model_key))
    steps = config.num_steps if num_steps is None else num_steps
    training = {
        "steps": steps,
        "examples": steps * config.batch_size,
        "optimizer_steps": 0,
        "weights": "imported",
        "candidates": {},
        "start": None,
        "best": None,
        "evaluations": [],
    }
    with torch.no_grad(), store.publish(inputs.node.key, **inputs.publish_arguments()) as publication:
        write_model(publication.path, spec, dict(model.state_dict()), training)
        publication.metadata.update(
            {"imported": True, "weights": "imported", "steps": steps, "parameters": num_parameters(model)}
        )
    return publication.result
