"""A round: some faults drawn from its seed, a plain run, and what came of it."""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

from tests.campaign.faults import KINDS, PLACES, ROTS, Missed
from tests.campaign.passes import Pass, Reply
from tests.campaign.site import Site

MAX_FAULTS = 6


@dataclass
class Fault:
    """One that was drawn."""

    kind: str
    after: int
    """It strikes so many operations after the one before, or after the start of the next pass."""
    seed: float
    """What its own draws come from."""
    struck: bool = False
    """Whether the pass came there, and there was something to strike."""
    code: int | None = None
    said: str = ""
    """How the pass ended."""


@dataclass
class Round:
    """What happened in a round."""

    seed: int
    number: int
    start: int
    """The part of the graph at which it started."""
    faults: list[Fault] = field(default_factory=list)
    outcome: str = ""
    """survived (the plain run converged), refused (by name; converged after what the message asks for), or lost."""
    remedies: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    """The messages that asked for them."""
    why: list[str] = field(default_factory=list)
    """What was lost."""
    unnamed: list[str] = field(default_factory=list)
    """Errors of struck passes that do not say what is wrong and what to do."""
    seconds: float = 0.0

    def outcomes(self) -> Iterator[tuple[str, str]]:
        """Kind and outcome of each fault that struck."""
        struck = [fault for fault in self.faults if fault.struck]
        answerable = [fault for fault in struck if fault.kind in ROTS] or struck
        for fault in struck:
            lost = self.outcome == "lost" and fault is struck[-1]
            refused = self.outcome == "refused" and fault in answerable
            yield fault.kind, "lost" if lost else "refused" if refused else "survived"

    def as_json(self) -> dict[str, object]:
        """For the log."""
        return asdict(self)


Remedy = Callable[[Site, str], Pass | None]


def _without(site: Site, message: str) -> None:
    """Delete the files or folders that a message says to delete."""
    import shutil

    with site.stopped() if "stop `yt8m ui`" in message else nullcontext():
        for name in re.findall(r"[Dd]elete (/[^\s,;]+)", message) or re.findall(r"yt8m: (/[^\s:]+): ", message)[:1]:
            path = Path(name)
            assert path.is_relative_to(site.state), message
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _with_an_empty_database(site: Site, message: str) -> None:
    with site.stopped():
        site.mlflow.unlink(missing_ok=True)


REMEDIES: Sequence[tuple[str, str, Remedy]] = (
    ("an empty database for the server", r"stop that server", _with_an_empty_database),
    ("fetch the shard again", r"/data/[\w.]+|holds no records", lambda site, _: site.restore_source()),
    ("delete it", r"goes on without them; delete /", _without),
    ("--allow-fallback", r"allow-fallback", lambda site, _: site.materialize("--allow-fallback")),
    ("--start-afresh", r"start-afresh", lambda site, _: site.materialize("--start-afresh")),
    ("delete it", r"[Dd]elete (/|it and it is made again)", _without),
    ("yt8m verify --repair", r"again|redo|--repair", lambda site, _: site.run("verify", "--repair")),
)
"""Name, what a message must hold that asks for it, and what it is: what a person does who reads the message."""


def play(site: Site, seed: int, number: int, kinds: Sequence[str] = tuple(KINDS), most: int = MAX_FAULTS) -> Round:
    """Run one round, which seed, number and `most` faults repeat.

    The faults strike one after the other, in one pass as long as it lives, at moments drawn over what is to be made.
    """
    draw, begun = Random(f"{seed} {number}"), time.monotonic()
    kinds = [kind for kind in kinds if PLACES[kind] in ("", site.where)]
    start = draw.randrange(len(site.operations))
    moments = sorted(draw.randrange(site.operations[start]) for _ in range(draw.randint(1, most)))
    gaps = [1 + moment - before for before, moment in zip([0, *moments], moments, strict=False)]
    round_ = Round(seed, number, start, [Fault(draw.choice(kinds), gap, seed=draw.random()) for gap in gaps])
    site.reset(start)
    left = list(round_.faults)
    while left and not round_.why and not _pass(site, left, round_):
        pass
    if not round_.why:
        converge(site, round_)
    if round_.remedies and not any(fault.struck and fault.kind in ROTS for fault in round_.faults):
        round_.why.append("refuses, although nothing was damaged")
    round_.outcome = "lost" if round_.why else "refused" if round_.remedies else "survived"
    round_.seconds = round(time.monotonic() - begun, 1)
    return round_


def _pass(site: Site, left: list[Fault], round_: Round) -> bool:
    """A pass, and the faults in it, which are taken from those left; whether it came to the end of the graph."""
    struck: list[Fault] = []

    def strike(process: Pass) -> Iterator[Reply]:
        fault = left.pop(0)
        struck.append(fault)
        try:
            kind = KINDS[fault.kind](site, process, Random(fault.seed))
            reply = next(kind)
            fault.struck = True
        except Missed:
            kind, reply = iter(()), {}
        yield reply | ({"next": left[0].after} if left else {})
        yield from kind

    try:
        process = site.materialize(at=left[0].after, strike=strike)
    except AssertionError as error:
        round_.why.append(f"{[fault.kind for fault in struck]}: {error}")
        return True
    for fault in struck:
        fault.code, fault.said = process.code, process.message[-600:]
    if process.hung:
        round_.why.append(f"{[fault.kind for fault in struck]}: the pass hung")
    elif process.unnamed:
        round_.unnamed.append(process.message[-1000:] or process.text[-1000:])
    if not struck and process.code:
        return not _answer(site, process, round_)
    return process.code == 0


def converge(site: Site, round_: Round) -> None:
    """A plain run; where it refuses, what its message asks for, and again."""
    while (process := site.materialize()).code:
        if not _answer(site, process, round_):
            return
    if site.damaged():
        verified = site.run("verify")
        if not verified.code or not any(fault.kind in ROTS for fault in round_.faults):
            round_.why += [f"not to be found: {verified.text[-300:]}", *site.damaged()]
            return
        round_.remedies.append("yt8m verify --repair")
        repaired = site.run("verify", "--repair")
        if repaired.code or (process := site.materialize()).code:
            round_.why.append(f"not repaired: {(repaired.message or process.message)[-600:]}")
            return
    while site.untold() and (synced := site.run("sync-mlflow")).code:
        if not _answer(site, synced, round_, "" if synced.message else synced.text):
            break
    round_.why += [*site.damaged(), *site.untold(), *site.left_open()]


def _answer(site: Site, process: Pass, round_: Round, counted: str = "") -> bool:
    """Do what a refusal asks for; False where it asks for nothing, or for what was done before.

    counted: what it said where it ended by no error, but by a count of what is damaged.
    """
    message = counted or process.message
    if process.hung or (process.unnamed and not counted) or (process.code or 0) < 0:
        round_.why.append(f"plain run: {'hung' if process.hung else f'code {process.code}: {process.text[-1500:]}'}")
        return False
    for name, pattern, action in REMEDIES:
        if re.search(pattern, message) and round_.remedies.count(name) < 2:
            round_.remedies.append(name)
            round_.refusals.append(message[-600:])
            action(site, message)
            return True
    round_.why.append(f"refuses, and does not say what helps: {message[-600:]}")
    return False
