"""A store with the tiny recipe's data and untrained models: what the stages after training start from."""

from pathlib import Path

from yt8m_assets.progress import NullProgress
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.data import make_holdout_ratings, make_shards
from yt8m_assets.stages.lineage import resolve_inputs
from yt8m_assets.stages.nodes import Node
from yt8m_assets.storage import ArtifactStore, Manifest
from yt8m_assets.tracking import NullTracking

QUIET = NullProgress()


def publish_untrained(recipe: Recipe, store: ArtifactStore, key: str, seed: int) -> Manifest:
    """A fine-tuned model with random weights, and an empty pre-trained one that it comes from."""
    from yt8m_assets.stages.training import model_spec
    from yt8m_assets.training.model_files import write_model

    before = Node("pretrained_model", key)
    with store.publish(before.key, **resolve_inputs(recipe, store, before).publish_arguments()) as publication:
        (publication.path / "file").write_text(key)
    spec = model_spec(recipe, key)
    model = spec.build(seed)
    node = Node("finetuned_model", key)
    with store.publish(node.key, **resolve_inputs(recipe, store, node).publish_arguments()) as publication:
        scores = {"map": 0.5, "half_0a": 0.4, "half_0b": 0.6}
        later = {"step": 2, "map": 0.5, "half_0a": 0.5, "half_0b": 0.58}
        training = {"evaluations": [{"step": 1, **scores}, later], "candidates": {"best": scores, "ema": None}}
        write_model(publication.path, spec, dict(model.state_dict()), {"steps": 2, "best": None, **training})
        parameters = sum(value.numel() for value in model.parameters())
        publication.metadata.update(parameters=parameters, map=0.5, mlflow_run_id="run", weights="best")
    assert publication.manifest is not None
    return publication.manifest


def make_lists(recipe: Recipe, store: ArtifactStore) -> None:
    """The lists of shards, and the held-out ratings."""
    for asset in ("pretraining_shards", "segment_shards", "test_shards"):
        make_shards(recipe, store, asset, progress=QUIET)
    make_holdout_ratings(recipe, store, progress=QUIET)


def make_data(recipe: Recipe, store: ArtifactStore) -> None:
    """The shards and ratings, and an untrained model for each row of the recipe."""
    make_lists(recipe, store)
    for number, key in enumerate(recipe.model_keys):
        publish_untrained(recipe, store, key, number)


def make_rankings(recipe: Recipe, store: ArtifactStore) -> None:
    """Every cell and ranking of both splits."""
    from yt8m_assets.stages.prediction import predict_cells
    from yt8m_assets.stages.ranking import rank_model

    cells = [(model.key, shift) for model in recipe.models for shift in model.shifts]
    for split in ("oof", "test"):
        predict_cells(recipe, store, split, cells, tracking=NullTracking(), progress=QUIET)  # type: ignore[arg-type]
        for key in recipe.model_keys:
            rank_model(recipe, store, split, key, progress=QUIET)  # type: ignore[arg-type]


def open_store(folder: Path) -> ArtifactStore:
    """A store in a folder."""
    return ArtifactStore(str(folder / "store"), folder / "cache")
