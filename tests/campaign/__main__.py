"""`python -m tests.campaign`: strike the graph at random, round after round, and say what was lost.

    python -m tests.campaign --rounds 150 --seed 1                 # a hundred and fifty rounds
    python -m tests.campaign --rounds 150 --seed 1 --round 17      # the seventeenth of them again

Exit code 1 where anything was lost.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

MOUNT_MEGABYTES = 400


def say(text: str) -> None:
    """A line for whoever waits."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def table(rounds: Iterable[dict[str, object]]) -> list[str]:
    """Faults by kind: tried, survived, refused, lost."""
    counts: dict[str, Counter[str]] = {}
    for one in rounds:
        for kind, outcome in one["outcomes"]:  # type: ignore[attr-defined]
            counts.setdefault(kind, Counter())[outcome] += 1
    lines = [f"{'fault':34}{'tried':>7}{'survived':>10}{'refused':>9}{'lost':>6}"]
    for kind, found in [*sorted(counts.items()), ("all", sum(counts.values(), Counter()))]:
        row = (found.total(), found["survived"], found["refused"], found["lost"])
        lines.append(
            f"{kind:34}" + "".join(f"{count:>{width}}" for count, width in zip(row, (7, 10, 9, 6), strict=True))
        )
    return lines


def main() -> int:
    """Run the campaign; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=150, help="how many rounds (default: 150)")
    parser.add_argument("--seed", type=int, default=1, help="what they are drawn from")
    parser.add_argument("--first", type=int, default=1, help="number of the first round")
    parser.add_argument("--round", type=int, help="only this round")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no round after this long")
    places = ("folder", "bucket", "served", "daemon")
    parser.add_argument("--faults", type=int, default=6, help="at most so many in a round (default: 6)")
    parser.add_argument("--place", choices=places, default="folder", help="what the graph lives on")
    parser.add_argument("--kinds", default="", help="only faults with one of these words in their name, by commas")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder); it is emptied")
    parser.add_argument("--reuse", action="store_true", help="take the reference that is in the folder")
    parser.add_argument("--log", type=Path, help="append a line of JSON for each round")
    parser.add_argument("--total", type=Path, nargs="+", help="only add up these logs")
    parser.add_argument("--plant", help="a defect of tests.campaign.plants that is to be found")
    parser.add_argument("--no-mount", action="store_true", help="without a file system of its own (and a full disk)")
    options = parser.parse_args()
    if options.total:
        rounds = [json.loads(line) for path in options.total for line in path.read_text().splitlines()]
        say("\n".join(table(rounds)))
        return int(any(one["outcome"] == "lost" for one in rounds))
    if os.geteuid() == 0 and not options.no_mount and "YT8M_CAMPAIGN_APART" not in os.environ:
        os.environ["YT8M_CAMPAIGN_APART"] = "1"
        os.execvp("unshare", ["unshare", "--mount", sys.executable, "-m", "tests.campaign", *sys.argv[1:]])
    folder = options.folder or Path(mkdtemp(prefix="campaign-"))
    if "YT8M_CAMPAIGN_APART" in os.environ:  # in a namespace of its own, so that it goes with this process
        (folder / "site").mkdir(parents=True, exist_ok=True)
        size = f"size={MOUNT_MEGABYTES}m"
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "campaign", str(folder / "site")], check=True)
    return campaign(options, folder)


def campaign(options: argparse.Namespace, folder: Path) -> int:
    """Prepare the site and play the rounds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import dagster
        import matplotlib.pyplot
        import mlflow
        import torch

        import orchestration.cli_commands
        import orchestration.driver
    del dagster, matplotlib, mlflow, orchestration
    torch.set_num_threads(1)
    from tests.campaign import plants
    from tests.campaign.bucket import BucketSite
    from tests.campaign.daemon import DaemonSite
    from tests.campaign.faults import KINDS
    from tests.campaign.site import Site
    from tests.campaign.tracking import ServedSite

    words = options.kinds.split(",")
    kinds = [kind for kind in KINDS if any(word in kind for word in words)]
    sites = {"folder": Site, "bucket": BucketSite, "served": ServedSite, "daemon": DaemonSite}
    site = sites[options.place](folder / "site", folder / "kept")
    site.parts = plants.PARTS.get(options.plant, site.parts)
    begun = time.monotonic()
    if not (options.reuse and site.recall()):
        site.prepare()
    if options.plant:
        site.plant = getattr(plants, options.plant)
        site.reset(0)
        site.operations = [site.materialize().operations]
    say(f"a graph without faults: {site.operations[0]} operations; ready in {time.monotonic() - begun:.0f} s")
    try:
        return _play_all(site, options, kinds, begun)
    finally:
        site.close()


def _play_all(site: Any, options: argparse.Namespace, kinds: list[str], begun: float) -> int:
    from tests.campaign.daemon import DaemonSite
    from tests.campaign.daemon import play as play_with_daemon
    from tests.campaign.rounds import play

    played: list[dict[str, object]] = []
    numbers = [options.round] if options.round else range(options.first, options.first + options.rounds)
    for number in numbers:
        if time.monotonic() - begun > options.seconds:
            break
        if isinstance(site, DaemonSite):
            one = play_with_daemon(site, options.seed, number, options.faults)
        else:
            one = play(site, options.seed, number, kinds, options.faults)
        record = {**one.as_json(), "outcomes": list(one.outcomes())}
        played.append(record)
        struck = ", ".join(f"{it.kind} +{it.after}" if it.struck else f"({it.kind})" for it in one.faults)
        say(f"round {number} from part {one.start}: {struck}: {one.outcome} {one.remedies or ''} {one.seconds} s")
        for text in [*one.refusals, *one.why, *(f"unnamed: {text}" for text in one.unnamed)]:
            say(f"    {text}")
        if one.outcome == "lost":
            again = f"--seed {options.seed} --round {number} --place {options.place} --faults {options.faults}"
            say(f"    again: python -m tests.campaign {again}")
        if options.log:
            with options.log.open("a") as file:
                file.write(json.dumps(record) + "\n")
    say("\n".join(table(played)))
    return int(any(one["outcome"] == "lost" for one in played))


if __name__ == "__main__":
    sys.exit(main())
