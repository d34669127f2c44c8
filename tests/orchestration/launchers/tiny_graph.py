"""A graph of two assets for the launchers' tests: one counts slowly and checkpoints each number, one sums up."""

import os
import time
from pathlib import Path

import dagster as dg

from orchestration.cluster import DeploymentOptions
from orchestration.executors import executor_for
from orchestration.hints import ResourceHints, step_tags
from yt8m_assets.assets.failures import stage_errors

HINTS = {
    "counted": ResourceHints(num_gpus=1, gpu_type="l4", num_cpus=7, memory_gib=26, shared_memory_gib=8),
    "summed": ResourceHints(num_cpus=2, memory_gib=4),
}
EXECUTOR = os.environ.get("TINY_EXECUTOR", "in_process")
TAGS = step_tags(os.environ.get("TINY_HINTS", EXECUTOR), HINTS)


class Counting(dg.Config):
    """Where to count to, and how slowly."""

    folder: str
    target: int = 3
    delay_seconds: float = 0.0
    fail: bool = False


@dg.asset(retry_policy=dg.RetryPolicy(max_retries=1), op_tags=TAGS("counted"))
def counted(context: dg.AssetExecutionContext, config: Counting) -> dg.MaterializeResult:
    """Counts to a target, writing each number before the next; continues from the last one written."""
    with stage_errors(context):
        count(context, config)
    return dg.MaterializeResult(metadata={"count": config.target})


def count(context: dg.AssetExecutionContext, config: Counting) -> None:
    """From the number after the last one written to the target."""
    checkpoint = Path(config.folder) / "checkpoint.txt"
    start = int(checkpoint.read_text()) if checkpoint.exists() else 0
    context.log.info(f"counting from {start}")
    with (Path(config.folder) / "history.txt").open("a") as history:
        for number in range(start + 1, config.target + 1):
            time.sleep(config.delay_seconds)
            history.write(f"{number} {os.environ.get('DAGSTER_RUN_STEP_KEY', 'run')} {os.environ['OMP_NUM_THREADS']}\n")
            history.flush()
            temporary = checkpoint.with_suffix(".new")
            temporary.write_text(str(number))
            temporary.replace(checkpoint)
    if config.fail:
        raise dg.Failure("told to fail", allow_retries=False)


@dg.asset(deps=[counted], op_tags=TAGS("summed"))
def summed(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """A second, small step."""
    return dg.MaterializeResult(metadata={"ready": True})


@dg.definitions
def defs() -> dg.Definitions:
    """The graph under the executor of TINY_EXECUTOR, with its hints as op tags."""
    pending = float(os.environ.get("TINY_PENDING_MINUTES", "60"))
    return dg.Definitions(
        assets=[counted, summed],
        jobs=[
            dg.define_asset_job("count", [counted]),
            dg.define_asset_job("sum_up", [summed]),
            dg.define_asset_job("both", [counted, summed]),
        ],
        executor=executor_for(EXECUTOR, DeploymentOptions(pending_minutes=pending)),
    )
