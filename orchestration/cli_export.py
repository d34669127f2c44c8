"""`yt8m export`: what the graph has made, as one file for other programs."""

import argparse
from pathlib import Path

from orchestration.cli_state import named_nodes
from orchestration.session import Session, open_session, say
from yt8m_assets.errors import ConfigError
from yt8m_assets.progress import default_progress
from yt8m_assets.stages.lineage import require_current, resolve_inputs
from yt8m_assets.stages.nodes import Node

MODELS = ("pretrained_model", "finetuned_model")
RANKINGS = ("oof_predictions", "test_predictions", "oof_ranking", "test_ranking", "submission")


def command_export(arguments: argparse.Namespace) -> int:
    """Write a model, a ranking with its scores, or the average precision by class; what the suffix says."""
    session, path = open_session(arguments), arguments.file
    found = named_nodes(session.recipe, arguments.node)
    if len(found) > 1:
        raise ConfigError(f"{arguments.node}: one at a time; {', '.join(node.key for node in found[:5])}, ...")
    node = found[0]
    if arguments.frames is not None and node.asset not in MODELS:
        raise ConfigError(f"--frames is for models, {node.key} is none")
    if node.asset in MODELS:
        _model(session, node, path, 5 if arguments.frames is None else arguments.frames)
    elif node.asset in RANKINGS:
        _scores(session, node, path)
    elif node.asset == "leaderboard":
        _per_class(session, node, path)
    else:
        known = ", ".join((*MODELS, *RANKINGS, "leaderboard"))
        raise ConfigError(f"{node.key}: nothing that is exported; known: {known}")
    return 0


def _model(session: Session, node: Node, path: Path, num_frames: int) -> None:
    from yt8m_assets.serving.export import export_model

    manifest = require_current(session.recipe, session.store, node)
    facts = {"model": node.key, "recipe": session.recipe.name, "digest": manifest.digest}
    difference = export_model(session.store.fetch(manifest), path, num_frames, facts)
    say(f"{path}: {node.key}, windows of {num_frames} frames; at most {difference:.1e} from the model, on random input")


def _scores(session: Session, node: Node, path: Path) -> None:
    from yt8m_assets.reports.scores import published_ranking, write_scores

    ranking = published_ranking(session.recipe, session.store, node)
    with default_progress().task(f"writing {path.name}", len(ranking.class_ids), "classes") as task:
        total = write_scores(ranking, path, task.advance)
    say(f"{path}: {node.key}, {total} entries of {len(ranking.class_ids)} classes")


def _per_class(session: Session, node: Node, path: Path) -> None:
    from yt8m_assets.reports.per_class import holdout_results, per_class_table, write_table

    if path.suffix != ".csv":
        raise ConfigError(f"{path}: average precision by class is written as .csv")
    recipe, store = session.recipe, session.store
    inputs = resolve_inputs(recipe, store, node)
    results, ratings = holdout_results(recipe, store, inputs)
    write_table(*per_class_table(results, ratings, store, inputs.parent("segment_shards")), path)
    say(f"{path}: average precision of {', '.join(results)}; out of fold")
