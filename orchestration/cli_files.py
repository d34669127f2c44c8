"""The commands that work on files: submissions, shards and imported weights."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from orchestration.session import open_session, say, show
from yt8m_assets.errors import ConfigError, DataError, MissingDataError
from yt8m_assets.progress import default_progress
from yt8m_assets.stages.lineage import current_manifest
from yt8m_assets.stages.nodes import Node
from yt8m_assets.storage import safe_join
from yt8m_assets.storage.arrays import read_arrays

MAX_PROBLEMS = 20


def require_file(path: Path) -> Path:
    """The path, or MissingDataError."""
    if not path.is_file():
        raise MissingDataError(f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")
    return path


def command_validate_submission(arguments: argparse.Namespace) -> int:
    """Name what is wrong with a submission; exit code 1 if anything is."""
    from yt8m_assets.data.records.vocabulary import load_segment_classes
    from yt8m_assets.stages.audit import test_video_ids
    from yt8m_assets.stages.data import read_segment_classes
    from yt8m_assets.submission import validate_submission

    session, path = open_session(arguments), require_file(arguments.file)
    known = None
    if arguments.classes:
        classes = load_segment_classes(arguments.classes, session.recipe.data.num_classes)
    else:
        classes = read_segment_classes(session.recipe, session.store)
        known = test_video_ids(session.recipe, session.store)
    problems = validate_submission(path, classes.tolist(), known)
    say(*problems[:MAX_PROBLEMS])
    if len(problems) > MAX_PROBLEMS:
        say(f"and {len(problems) - MAX_PROBLEMS} more")
    say(f"{path}: {f'{len(problems)} problems' if problems else f'valid, {len(classes)} classes'}")
    return 1 if problems else 0


def command_score_submission(arguments: argparse.Namespace) -> int:
    """MAP@100,000 of a submission, with an interval and what is missing."""
    from yt8m_assets.reports.submission_score import score_submission
    from yt8m_assets.stages.ratings import read_ratings

    session, path = open_session(arguments), require_file(arguments.file)
    recipe = session.recipe
    ratings = read_ratings(arguments.ratings, recipe.data)
    score = score_submission(path, ratings, num_rounds=recipe.bootstrap_rounds, seed=recipe.seed)
    result, low, high = score.result, score.interval.low, score.interval.high
    classes = f"{len(result.per_class)} classes"
    say(f"MAP@100000 {result.map:.6f} over {classes} (95 % interval over videos {low:.4f} - {high:.4f})")
    if result.missing:
        named = ", ".join(map(str, result.missing[:MAX_PROBLEMS]))
        more = " ..." if len(result.missing) > MAX_PROBLEMS else ""
        say(f"{len(result.missing)} classes with positive ratings are not in the file and count 0: {named}{more}")
    if arguments.per_class:
        from yt8m_assets.reports.per_class import per_class_table, write_table

        shards = current_manifest(recipe, session.store, Node("segment_shards"))
        write_table(*per_class_table({"submission": result}, ratings, session.store, shards), arguments.per_class)
        say(arguments.per_class)
    return 0


def command_report(arguments: argparse.Namespace) -> int:
    """The leaderboard with a column for ratings of one's own, with rows for variants, as a table and as a page."""
    from yt8m_assets.reports.leaderboard import LEADERBOARD_FILE, figures_table, write_own_report
    from yt8m_assets.stages.ratings import read_ratings

    session, given = open_session(arguments), arguments.ratings
    if given is None and not arguments.variants:
        raise ConfigError("report: say what is to be added: --ratings FILE, --variants, or both")
    ratings = None if given is None else (given.name, read_ratings(given, session.recipe.data))
    folder = session.state.root / "reports" / session.recipe.name
    page = write_own_report(session.recipe, session.store, folder, ratings, arguments.variants)
    figures = json.loads((folder / LEADERBOARD_FILE).read_text(encoding="utf-8"))
    show([figures_table(figures), str(page)])
    return 0


def command_timeline(arguments: argparse.Namespace) -> int:
    """Draw what the models see in one video, second by second."""
    from yt8m_assets.data.dataset.imports import legal_id
    from yt8m_assets.reports.timeline import make_timeline

    session = open_session(arguments)
    for key in arguments.models:
        session.recipe.model(key)
    name = arguments.video if arguments.shards is None else legal_id(arguments.video)
    folder = session.state.root / "timelines" / safe_join(name)
    options = {"model_keys": arguments.models, "shards": arguments.shards}
    say(make_timeline(session.recipe, session.store, arguments.video, folder, **options))
    return 0


def command_import_features(arguments: argparse.Namespace) -> int:
    """Write what an extractor wrote as shards of this project."""
    from yt8m_assets.data.dataset.imports import IDS_FILE, import_features, read_labels
    from yt8m_assets.data.dataset.shards import expand_patterns
    from yt8m_assets.data.records.foreign import read_whitening

    data, target = open_session(arguments).recipe.data, arguments.to
    labels = read_labels(require_file(arguments.labels), data.num_classes) if arguments.labels else None
    whitening = read_whitening(require_file(arguments.pca)) if arguments.pca else None
    rgb_size, audio_size = data.feature_sizes
    found = import_features(
        expand_patterns(arguments.files),
        target,
        whitening=whitening,
        labels=labels,
        silent=arguments.silent,
        feature_sizes=(rgb_size, audio_size),
        progress=default_progress(),
    )
    say(f"{target}: {found.num_videos} videos, {found.num_seconds} seconds, {found.num_labelled} with labels")
    say(f"names and ids: {target / IDS_FILE}", f"next: yt8m timeline NAME --shards {target}")
    return 0


def command_inspect(arguments: argparse.Namespace) -> int:
    """Describe what shards hold; exit code 1 if a record is damaged or a class lies outside the vocabulary."""
    from yt8m_assets.data.dataset.inspection import inspect, render

    data = open_session(arguments).recipe.data
    report = inspect(
        arguments.uri,
        feature_sizes=data.feature_sizes,
        num_classes=data.num_classes,
        vocabulary_uri=data.vocabulary_uri,
        progress=default_progress(),
    )
    sys.stdout.write(render(report))
    return 1 if report.total("num_damaged") or report.num_outside else 0


FORMATS = (
    ((".index", ".meta", ".data-00000-of-00001", "checkpoint", ".ckpt"), "a part of a TensorFlow checkpoint"),
    ((".pb",), "a TensorFlow graph"),
    ((".h5", ".keras", ".hdf5"), "a Keras file"),
    ((".pt", ".pth", ".bin", ".safetensors"), "a PyTorch file"),
)
"""Names that weights may have, and what such a file is."""


def read_variables(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an NPZ file by name. Raises DataError naming the file; pickled objects are refused."""
    require_file(path)
    try:
        return read_arrays(path)
    except DataError as error:
        known = next((text for endings, text in FORMATS if path.name.endswith(endings)), "")
        cure = "docs/import-checkpoint.md has the lines that write its variables to an .npz file"
        text = f"{known}; {cure}" if known else f"not an NPZ file of plain arrays; {cure}"
        raise DataError(f"{path}: {text}") from error


def command_import_checkpoint(arguments: argparse.Namespace) -> int:
    """Publish variables of the original as a model of the recipe."""
    from yt8m_assets.stages.imported import publish_imported

    session = open_session(arguments)
    session.recipe.model(arguments.model)
    variables, asset = read_variables(arguments.file), f"{arguments.stage}_model"
    try:
        made = publish_imported(session.recipe, session.store, asset, arguments.model, variables, arguments.steps)
    except ValueError as error:
        raise DataError(f"{arguments.file}: {error}") from error
    say(f"{made.manifest.key}: {session.store.uri(made.manifest)}")
    return 0
