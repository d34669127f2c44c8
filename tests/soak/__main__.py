"""`make soak`: does anything grow without bound while materialisations go on, and are pages quick when many are there?

    python -m tests.soak run --runs 120 --minutes 9     as many runs as fit; the same command goes on
    python -m tests.soak fill --minutes 9               10,000 runs and 50,000 events beside them, likewise
    python -m tests.soak pages                          how long pages take
    python -m tests.soak report                         the trends

Everything lies in --state (default: .state/soak), which a later call goes on with. Real servers, loopback only.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from tests.soak.sampling import sample_processes, sample_state, trends
from tests.soak.work import materialise, num_materialisations, prepare, serve

EVERY = 5


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def read(state: Path) -> list[dict[str, float]]:
    """The samples so far."""
    path = state / "samples.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def run(state: Path, wanted: int, deadline: float) -> None:
    """Materialise, and take a sample at the start and after every fifth run."""
    prepare(state)
    before = read(state)
    done = int(before[-1]["runs"]) if before else 0
    session = 1 + int(before[-1]["session"]) if before else 1
    with serve(state) as servers, (state / "samples.jsonl").open("a") as file:

        def take(done: int) -> None:
            own = {"runs": done, "session": session, "at": time.time()}
            file.write(json.dumps({**own, **sample_processes(servers.process_id), **sample_state(state)}) + "\n")
            file.flush()

        take(done)
        for number in materialise(servers, done, wanted, deadline):
            if number % EVERY == 0:
                take(number)
                say(f"{number} of {wanted} runs")


def report(state: Path) -> None:
    """The trends as a table."""
    samples = read(state)
    runs = int(samples[-1]["runs"])
    made, sessions = num_materialisations(runs), int(samples[-1]["session"])
    say(f"{made} materialisations by {runs} runs in {sessions} sessions of the servers")
    say("| figure | first | last | per 100 runs | |\n| --- | ---: | ---: | ---: | --- |")
    for name, trend in trends(samples).items():
        slope = f"{trend.per_100_runs:+.2f} ± {trend.spread:.2f}"
        say(f"| {name} | {trend.first:.1f} | {trend.last:.1f} | {slope} | {trend.verdict} |")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("what", choices=("run", "fill", "pages", "report"))
    parser.add_argument("--state", type=Path, default=Path(".state/soak"))
    parser.add_argument("--runs", type=int, default=120)
    parser.add_argument("--minutes", type=float, default=9.0)
    arguments = parser.parse_args()
    state = arguments.state.absolute()
    state.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * arguments.minutes
    match arguments.what:
        case "run":
            run(state, arguments.runs, deadline)
        case "fill":
            from tests.soak.filling import fill_dagster, fill_mlflow

            prepare(state)
            if fill_dagster(state, deadline, say) and fill_mlflow(state, deadline, say):
                say("all is there")
        case "pages":
            from tests.soak.pages import measure, table

            with serve(state) as servers:
                say(table(measure(servers, state)))
        case "report":
            report(state)


if __name__ == "__main__":
    main()
