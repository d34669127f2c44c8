"""The bars of a run at full size, as ratios within one run: `make bench-scale [ROWS="first_step status"]`.

A row is a function that is registered under its name with a bar; it measures and returns its ratio (or seconds). One
JSON line a row: name, measured, bar, ok. The whole ends with an error where a bar is missed. Small versions of the rows
are tests of the normal suite.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.benchmarks import scale_index, scale_pass, scale_reading

Measure = Callable[[Path], float]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One bar."""

    what: str
    """One line for people."""
    bar: float
    """What may not be passed."""
    measure: Measure
    """Measures in an empty folder."""
    at_least: bool = False
    """Whether the bar is a lower one."""

    def met(self, measured: float) -> bool:
        """Whether a measurement keeps the bar."""
        return measured >= self.bar if self.at_least else measured <= self.bar


ROWS: dict[str, Row] = {
    "first_step": Row(
        what="bytes before step 1 on an empty machine / bytes of the training shards (20, window of 2)",
        bar=0.15,
        measure=scale_index.first_step,
    ),
    "requests": Row(
        what="requests besides reads, per shard, whole run of index + 1 epoch", bar=3.0, measure=scale_index.requests
    ),
    "replaced_shard": Row(
        what="*_shards made again with one shard of 60 replaced: bytes of shards read / bytes of that shard",
        bar=1.0,
        measure=scale_index.replaced_shard,
    ),
    "listing": Row(
        what="3844 shards in a bucket, 60 ms: seconds until an empty machine knows that their published list holds",
        bar=10.0,
        measure=scale_index.listing,
    ),
    "pass": Row(
        what="nine demo-width models in one pass / nine passes: seconds, reading 3/4 of a model's run",
        bar=0.35,
        measure=scale_pass.from_a_bucket,
    ),
    "pass_warm": Row(what="the same, everything on the disk", bar=1.02, measure=scale_pass.warm),
    "pass_bytes": Row(what="bytes the pass reads / bytes of one training", bar=1.02, measure=scale_pass.bytes_read),
    "worker_memory": Row(
        what="each of 8 reader processes at 5.6 M videos: MB more than at 12 thousand",
        bar=100.0,
        measure=scale_index.worker_memory,
    ),
    "worker_start": Row(
        what="8 reader processes at 5.6 M videos: seconds until all know what to read first",
        bar=30.0,
        measure=scale_index.worker_start,
    ),
    **{
        f"reader_{latency}": Row(
            what=f"bandwidth that a training which only reads gets / the bucket's, 200 MB/s at {latency} ms",
            bar=0.85,
            measure=partial(scale_reading.bandwidth, latency_ms=latency, mb_per_second=200.0),
            at_least=True,
        )
        for latency in (20, 60, 150)
    },
    "second_epoch": Row(
        what="second epoch, cache large enough: bytes and requests", bar=0.0, measure=scale_reading.second_epoch
    ),
    "status": Row(what="status over a bucket store, 101 nodes, 60 ms: seconds", bar=3.0, measure=scale_index.status),
}


def main() -> None:
    """Measure the rows that are asked for, by default all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}")
    chosen = parser.parse_args().rows or list(ROWS)
    missed = []
    for name in chosen:
        row, began = ROWS[name], time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            measured = row.measure(Path(folder))
        line = {"name": name, "measured": round(measured, 4), "bar": row.bar, "ok": row.met(measured)}
        seconds = round(time.perf_counter() - began, 1)
        sys.stdout.write(json.dumps(line | {"seconds": seconds, "what": row.what}) + "\n")
        sys.stdout.flush()
        missed += [] if row.met(measured) else [name]
    if missed:
        raise SystemExit(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
