"""`yt8m`: the whole graph from the command line. Errors are one message on stderr; a traceback needs --debug."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models import list_models

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("orchestration.cli_commands", "run the whole graph on simulated data and show the result"),
    "materialize": ("orchestration.cli_commands", "bring the graph of a recipe up to date"),
    "predict": ("orchestration.cli_commands", "score a rectangle of models and shifts"),
    "ablate": ("orchestration.cli_commands", "show what each switch of the recipe is worth, with intervals"),
    "status": ("orchestration.cli_commands", "show what is materialised, stale or missing"),
    "explain": ("orchestration.cli_state", "say why something is stale: which field, file or parent has changed"),
    "lineage": ("orchestration.cli_state", "show what an artifact is made from: digest and folder of each"),
    "verify": ("orchestration.cli_state", "read every published file again and name what is damaged"),
    "gc": ("orchestration.cli_gc", "show what models no longer in the recipe have left behind, or remove it"),
    "doctor": ("orchestration.doctor", "try GPU, storage, database and MLflow: the first run on a new machine"),
    "ui": ("orchestration.ui", "serve the Dagster and MLflow pages on this machine"),
    "validate-submission": ("orchestration.cli_files", "check a submission file, line by line"),
    "score-submission": ("orchestration.cli_files", "MAP of a submission file against ratings"),
    "report": ("orchestration.cli_files", "the leaderboard with a column for ratings of your own"),
    "timeline": ("orchestration.cli_files", "draw what the models see in one video, second by second"),
    "inspect": ("orchestration.cli_files", "show what shards hold"),
    "init-recipe": ("orchestration.cli_recipe", "write a JSON recipe for data of your own, to be filled in"),
    "import-checkpoint": ("orchestration.cli_files", "publish weights of the original (NPZ of its variables)"),
}
"""Command -> module with `command_<name>(arguments)`, and its line of help."""

WITH_MODELS = ("materialize", "predict", "timeline", "import-checkpoint")
"""Commands whose help names the models."""


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from yt8m_assets.tracking.system import code_tags

        tags = code_tags()
        sys.stdout.write(f"yt8m {tags['package_version']} {tags.get('mlflow.source.git.commit', '')}".rstrip() + "\n")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--recipe", help="demo, challenge, or a .py or .json file (default: YT8M_RECIPE, or demo)")
    shared.add_argument("--state", type=Path, help="state folder (default: .state of the project)")
    shared.add_argument("--debug", action="store_true", help="show tracebacks")
    parser = argparse.ArgumentParser(prog="yt8m", description="YouTube-8M segment classification, end to end.")
    parser.add_argument("--version", action=_Version, help="show the version and the commit, and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    models = f"Models of demo and challenge: {', '.join(list_models())}."
    parsers = {
        name: subparsers.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=models if name in WITH_MODELS else None,
            parents=[shared],
        )
        for name, (_, text) in COMMANDS.items()
    }
    _add_graph_options(parsers)
    _add_file_options(parsers)
    parsers["doctor"].add_argument("--gpu", action="store_true", help="fail where torch sees no GPU")
    ui = parsers["ui"]
    ui.add_argument("--port", type=int, default=3000, help="port of the Dagster pages")
    ui.add_argument("--mlflow-port", type=int, default=5000, help="port of the MLflow pages")
    return parser


def _add_graph_options(parsers: dict[str, argparse.ArgumentParser]) -> None:
    materialize = parsers["materialize"]
    materialize.add_argument("--models", type=_names, default=(), help="only these models, separated by commas")
    materialize.add_argument("--until", help="the last asset wanted, such as finetuned_model")
    help_text = "resume training from an older checkpoint where the newest is damaged"
    materialize.add_argument("--allow-fallback", action="store_true", help=help_text)
    help_text = "throw away half-trained models of another configuration"
    materialize.add_argument("--start-afresh", action="store_true", help=help_text)
    help_text = "make the last asset wanted again even where it is up to date"
    materialize.add_argument("--force", action="store_true", help=help_text)
    help_text = "such as finetuned_model, or finetuned_model/bert_l2h12 (default: where staleness begins)"
    parsers["explain"].add_argument("node", nargs="?", help=help_text)
    help_text = "such as submission, or finetuned_model/bert_l2h12 (default: submission)"
    parsers["lineage"].add_argument("node", nargs="?", default="submission", help=help_text)
    help_text = "remove what is damaged, and materialise it again"
    parsers["verify"].add_argument("--repair", action="store_true", help=help_text)
    gc = parsers["gc"]
    gc.add_argument("--delete", action="store_true", help="remove it (default: only show it)")
    help_text = "another recipe whose models stay (may be given several times)"
    gc.add_argument("--keep", metavar="RECIPE", action="append", default=[], help=help_text)
    predict = parsers["predict"]
    predict.add_argument("--split", choices=("oof", "test", "both"), default="both", help="which segments")
    predict.add_argument("--models", type=_names, default=(), help="models, separated by commas (default: all)")
    predict.add_argument("--shifts", type=_numbers, default=(), help="--shifts=-1,0,1 in seconds (default: -2 to 2)")
    ablate = parsers["ablate"]
    ablate.add_argument("--json", action="store_true", help="print the figures as JSON instead of a table")
    ablate.add_argument("--no-tracking", action="store_true", help="do not keep them as an MLflow run")


def _add_file_options(parsers: dict[str, argparse.ArgumentParser]) -> None:
    validate = parsers["validate-submission"]
    validate.add_argument("file", type=Path, help="submission.csv")
    validate.add_argument("--classes", help="file of the rated classes (default: those of the materialised graph)")
    score = parsers["score-submission"]
    score.add_argument("file", type=Path, help="submission.csv")
    score.add_argument(
        "--ratings",
        type=Path,
        required=True,
        help="ratings.csv (video_id:start,class,0 or 1), or rated shards: one, a pattern, or a folder",
    )
    report_help = "ratings of the test videos: as for score-submission"
    parsers["report"].add_argument("--ratings", type=Path, required=True, help=report_help)
    timeline = parsers["timeline"]
    timeline.add_argument("video", help="id of a video of the segment or test shards")
    timeline.add_argument("--models", type=_names, default=(), help="models, separated by commas (default: all)")
    init = parsers["init-recipe"]
    init.add_argument(
        "file", type=Path, help="the recipe to be written, such as mine.json; --recipe is what it builds on"
    )
    init.add_argument(
        "--data",
        default="/data",
        help="folder or gs:// URI of 2/, 3/ and the class files, which is searched (default: /data)",
    )
    inspect = parsers["inspect"]
    inspect.add_argument("uri", nargs="+", help="TFRecord shards, patterns or folders: local paths or gs:// URIs")
    checkpoint = parsers["import-checkpoint"]
    checkpoint.add_argument("file", type=Path, help="NPZ file: the original's variable names -> arrays")
    checkpoint.add_argument("--model", required=True, help="model key")
    checkpoint.add_argument("--as", dest="stage", choices=("pretrained", "finetuned"), required=True)
    checkpoint.add_argument("--steps", type=int, help="steps it was trained for (default: the recipe's)")


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
            raise
        return report(error)


def report(error: BaseException) -> int:
    """One message on stderr; returns the exit code."""
    from yt8m_assets.errors import Yt8mError

    if isinstance(error, KeyboardInterrupt):
        sys.stderr.write("\nyt8m: interrupted; the same command continues where it stopped\n")
        return EXIT_INTERRUPTED
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at exit
        return EXIT_ERROR
    if isinstance(error, Yt8mError):
        text = str(error)
    elif isinstance(error, OSError) and error.filename and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    else:
        reason = (str(error).strip() or "without a message").splitlines()[0]
        text = f"unexpected {type(error).__name__}: {reason} (--debug shows where)"
    sys.stderr.write(f"yt8m: {text}\n")
    return int(getattr(error, "exit_code", EXIT_ERROR))


if __name__ == "__main__":
    sys.exit(main())
