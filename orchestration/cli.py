"""`yt8m`: the whole graph from the command line. Errors are one message on stderr; a traceback needs --debug."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from models import list_models
from orchestration.launchers.machines import ACCELERATORS

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("orchestration.cli_commands", "run the whole graph on simulated data and show the result"),
    "materialize": ("orchestration.cli_commands", "bring the graph of a recipe up to date"),
    "variant": (
        "orchestration.cli_variants",
        "train a model with other settings, beside the recipe's own; compare them",
    ),
    "study": ("orchestration.cli_variants", "try settings of a model, as many as a budget of steps allows"),
    "predict": ("orchestration.cli_commands", "score a rectangle of models and shifts"),
    "ablate": ("orchestration.cli_commands", "show what each switch of the recipe is worth, with intervals"),
    "submit": ("orchestration.cli_submit", "run one of these commands on a rented machine: Vertex AI, SkyPilot, Slurm"),
    "status": ("orchestration.cli_commands", "show what is materialised, stale or missing"),
    "explain": ("orchestration.cli_state", "say why something is stale: which field, file or parent has changed"),
    "lineage": ("orchestration.cli_state", "show what an artifact is made from: digest and folder of each"),
    "verify": ("orchestration.cli_state", "read every published file again and name what is damaged"),
    "gc": (
        "orchestration.cli_gc",
        "show what may go (dropped models, generations, history) and its size, or remove it",
    ),
    "sync-mlflow": ("orchestration.cli_mlflow", "make or complete the MLflow run of everything in the store"),
    "doctor": ("orchestration.cli_commands", "try GPU, storage, database and MLflow: the first run on a new machine"),
    "ui": ("orchestration.ui", "serve the Dagster and MLflow pages on this machine"),
    "validate-submission": ("orchestration.cli_files", "check a submission file, line by line"),
    "score-submission": ("orchestration.cli_files", "MAP of a submission file against ratings"),
    "report": ("orchestration.cli_files", "the leaderboard with a column for ratings of your own, or with variants"),
    "timeline": ("orchestration.cli_files", "draw what the models see in one video, second by second"),
    "export": ("orchestration.cli_export", "write a model (.pt2, .onnx), a ranking with scores, or AP by class (.csv)"),
    "inspect": ("orchestration.cli_files", "show what shards hold"),
    "import-features": (
        "orchestration.cli_files",
        "make shards of what an extractor wrote of your own videos",
    ),
    "init-recipe": ("orchestration.cli_recipe", "write a JSON recipe for data of your own, to be filled in"),
    "import-checkpoint": ("orchestration.cli_files", "publish weights of the original (NPZ of its variables)"),
}
"""Command -> module with `command_<name>(arguments)`, and its line of help."""

WITH_MODELS = ("materialize", "variant", "study", "predict", "timeline", "import-checkpoint")
"""Commands whose help names the models."""


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from yt8m_assets.tracking.system import code_tags

        tags = code_tags()
        sys.stdout.write(f"yt8m {tags['package_version']} {tags.get('mlflow.source.git.commit', '')}".rstrip() + "\n")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--recipe", help="demo, challenge, demo_beyond, beyond, or a .py or .json file (default: YT8M_RECIPE, or demo)"
    )
    shared.add_argument("--state", type=Path, help="state folder (default: .state of the project)")
    shared.add_argument("--debug", action="store_true", help="show tracebacks")
    parser = argparse.ArgumentParser(prog="yt8m", description="YouTube-8M segment classification, end to end.")
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and the commit, and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    models = f"Models of demo and challenge: {', '.join(list_models())}."
    for name, (_, text) in COMMANDS.items():
        epilog, description = models if name in WITH_MODELS else None, text[0].upper() + text[1:] + "."
        command = subparsers.add_parser(name, help=text, description=description, epilog=epilog, parents=[shared])
        _add_options(name, command)
    return parser


def _add_options(name: str, parser: argparse.ArgumentParser) -> None:
    """The arguments that a command alone has."""

    def add(argument: str, text: str | None = None, **settings: Any) -> None:
        parser.add_argument(argument, help=text, **settings)

    def switch(argument: str, text: str) -> None:
        add(argument, text, action="store_true")

    match name:
        case "materialize":
            add("--models", "only these models, separated by commas", type=_names, default=())
            add("--until", "the last asset wanted, such as finetuned_model")
            switch("--allow-fallback", "resume training from an older checkpoint where the newest is damaged")
            switch("--start-afresh", "throw away half-trained models of another configuration")
            switch("--force", "make the last asset wanted again even where it is up to date")
        case "variant":
            add("model", "the model (default: show all that have variants)", nargs="?")
            add("name", "the variant's name, such as lr3e4 (default: show those of the model)", nargs="?")
            text = "what is to be different: finetuning.FIELD, pretraining.FIELD or overrides.OPTION, and its value"
            add("--set", text, metavar="FIELD=VALUE", action="append", default=[])
            add("--save", "write a recipe whose model has the variant's settings, such as mine.json", type=Path)
            switch("--forget", "forget the variant; `yt8m gc` removes what was made of it")
            switch("--allow-fallback", "resume training from an older checkpoint where the newest is damaged")
            switch("--start-afresh", "throw away half-trained models of another configuration")
        case "study":
            add("model", "the model")
            add("--steps", "optimiser steps of all trials together", type=int, required=True)
            text = (
                "two numbers (a range), one value (fixed) or choices, such as 'finetuning.learning_rate=[1e-4, 1e-2]'"
            )
            add("--space", text, metavar="FIELD=LIST", action="append", default=[])
            add("--name", "the study's name; its trials are NAME_00, ... (default: study)", default="study")
            add("--seed", "seed of what is tried (default: 0)", type=int, default=0)
            switch("--allow-fallback", "resume training from an older checkpoint where the newest is damaged")
            switch("--start-afresh", "throw away half-trained models of another configuration")
        case "predict":
            add("--split", "which segments", choices=("oof", "test", "both"), default="both")
            add("--models", "models, separated by commas (default: all)", type=_names, default=())
            add("--shifts", "--shifts=-1,0,1 in seconds (default: -2 to 2)", type=_numbers, default=())
        case "submit":
            text = "materialize, predict or doctor, with its own options"
            add("job", text, nargs=argparse.REMAINDER, metavar="COMMAND")
            add("--image", "container image of this project (default: YT8M_IMAGE)")
            add("--gpu", "GPU of the machine (default: the recipe's)", choices=tuple(ACCELERATORS))
            switch("--spot", "take a machine that can be taken away: cheaper; the job goes on from its checkpoint")
            add("--hours", "the job is ended after so long (default: 24)", type=float, default=24.0)
            add("--price", "what the machine costs an hour, to show what the job can cost", type=float)
            add("--project", "Google Cloud project that pays (default: YT8M_GCP_PROJECT)")
            add("--region", "region such as us-east1 (default: YT8M_GCP_LOCATION)")
            add("--service-account", "account that the job acts as (default: YT8M_GCP_SERVICE_ACCOUNT)")
            switch("--yes", "do not ask")
            switch("--cancel", "end the job that runs this command")
            text = "only write the job down: a task, a script, or a request"
            add("--print", text, choices=("skypilot", "slurm", "vertex"))
        case "ablate":
            switch("--json", "print the figures as JSON instead of a table")
            add("--html", "also write them as a page", type=Path, metavar="FILE")
            switch("--no-tracking", "do not keep them as an MLflow run")
        case "explain":
            text = "such as finetuned_model, or finetuned_model/bert_l2h12 (default: where staleness begins)"
            add("node", text, nargs="?")
        case "lineage":
            text = "such as submission, or finetuned_model/bert_l2h12 (default: submission)"
            add("node", text, nargs="?", default="submission")
        case "verify":
            switch("--repair", "remove what is damaged, and materialise it again")
        case "gc":
            switch("--delete", "remove it (default: only show it)")
            text = "another recipe whose models stay (may be given several times)"
            add("--keep", text, metavar="RECIPE", action="append", default=[])
            text = "also Dagster's runs that ended more than so many days ago, but those that made what is newest"
            add("--history", text, metavar="DAYS", type=float)
        case "sync-mlflow":
            switch("--restore", "bring runs back that were deleted on the server")
        case "doctor":
            switch("--gpu", "fail where torch sees no GPU")
        case "ui":
            add("--port", "port of the Dagster pages", type=int, default=3000)
            add("--mlflow-port", "port of the MLflow pages", type=int, default=5000)
        case "validate-submission":
            add("file", "submission.csv", type=Path)
            add("--classes", "file of the rated classes (default: those of the materialised graph)")
        case "score-submission":
            add("file", "submission.csv", type=Path)
            text = "ratings.csv (video_id:start,class,0 or 1), or rated shards: one, a pattern, or a folder"
            add("--ratings", text, type=Path, required=True)
            add("--per-class", "a CSV file to be written, with the average precision of each class", type=Path)
        case "report":
            add("--ratings", "ratings of the test videos: as for score-submission", type=Path)
            switch("--variants", "rows for the models' variants (yt8m variant) that are trained and up to date")
        case "timeline":
            add("video", "id of a video of the segment or test shards, or of those that --shards names")
            add("--shards", "a folder or pattern of shards; an import's videos are known by their old names, too")
            add("--models", "models, separated by commas (default: all)", type=_names, default=())
        case "export":
            text = (
                "finetuned_model/MODEL, oof_ranking/MODEL, test_ranking/MODEL, submission, or leaderboard (AP by class)"
            )
            add("node", text)
            add("file", "a model: .pt2 or .onnx; scores: .csv or .parquet; AP by class: .csv", type=Path)
            add("--frames", "frames of the windows that a model takes (default: 5)", type=int)
        case "inspect":
            add("uri", "TFRecord shards, patterns or folders: local paths or gs:// URIs", nargs="+")
        case "import-features":
            add("files", "TFRecord files of MediaPipe's or the starter's extractor, or patterns", nargs="+")
            add("--to", "folder of the shards and of ids.csv", type=Path, required=True)
            add("--pca", "NPZ file that whitens floats: rgb_mean, rgb_components, rgb_eigenvalues, ...", type=Path)
            add("--labels", "CSV of the videos' classes: id,labels (numbers, separated by spaces)", type=Path)
            switch("--silent", "write zeros where a video has no audio")
        case "init-recipe":
            add("file", "the recipe to be written, such as mine.json; --recipe is what it builds on", type=Path)
            text = "folder or gs:// URI of 2/, 3/ and the class files, which is searched (default: /data)"
            add("--data", text, default="/data")
        case "import-checkpoint":
            add("file", "NPZ file: the original's variable names -> arrays", type=Path)
            add("--model", "model key", required=True)
            add("--as", dest="stage", choices=("pretrained", "finetuned"), required=True)
            add("--steps", "steps it was trained for (default: the recipe's)", type=int)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(name) for name in _names(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: give whole numbers separated by commas") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (0 done, 1 error, 75 preempted, 130 interrupted)."""
    parser = build_parser()
    parsed = parser.parse_args(arguments)
    if parsed.command is None:
        parser.print_help()
        return 0
    try:
        module = importlib.import_module(COMMANDS[parsed.command][0])
        return int(getattr(module, f"command_{parsed.command.replace('-', '_')}")(parsed) or 0)
    except (Exception, KeyboardInterrupt) as error:
        if parsed.debug:
            sys.excepthook = show_traceback
            raise
        return report(error)


def show_traceback(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """What Python writes of an error that nobody handles, without the passwords that its texts may quote."""
    from traceback import format_exception

    from yt8m_assets.errors import without_credentials

    sys.stderr.write(without_credentials("".join(format_exception(kind, error, traceback))))


def report(error: BaseException) -> int:
    """One message on stderr; returns the exit code."""
    from yt8m_assets.errors import Yt8mError, with_notes, without_credentials

    if isinstance(error, KeyboardInterrupt):
        sys.stderr.write("\nyt8m: interrupted; the same command continues where it stopped\n")
        return EXIT_INTERRUPTED
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at exit
        return EXIT_ERROR
    if isinstance(error, Yt8mError):
        text = with_notes(error, str(error))
    elif isinstance(error, OSError) and error.filename and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    else:
        reason = (str(error).strip() or "without a message").splitlines()[0]
        text = f"unexpected {type(error).__name__}: {reason} (--debug shows where)"
    sys.stderr.write(f"yt8m: {without_credentials(text)}\n")
    return int(getattr(error, "exit_code", EXIT_ERROR))


if __name__ == "__main__":
    sys.exit(main())
