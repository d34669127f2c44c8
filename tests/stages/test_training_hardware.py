"""A training says what it runs on, and does not fall back to the CPU where a GPU is required."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.memory_tracking import MemoryTracking
from tests.training.support import MIX, make_recipe, prepare_store
from yt8m_assets.errors import ConfigError
from yt8m_assets.progress import PlainProgress
from yt8m_assets.stages.training import pretrain

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


def run(folder: Path, shards: Path, tracking: MemoryTracking, stream: io.StringIO) -> Any:
    recipe = make_recipe(shards, MIX)
    store = prepare_store(folder, recipe)
    return pretrain(recipe, store, "mix", tracking=tracking, progress=PlainProgress(stream), run_tags={})


def test_without_the_required_gpu_nothing_is_trained(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YT8M_REQUIRE_GPU", "1")
    tracking = MemoryTracking()
    with pytest.raises(ConfigError, match=r"asks for a GPU.*YT8M_REQUIRE_GPU=0"):
        run(tmp_path, shards, tracking, io.StringIO())
    assert not tracking.runs


def test_log_and_tags_name_the_hardware(tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YT8M_REQUIRE_GPU", "0")
    tracking, stream = MemoryTracking(), io.StringIO()
    run(tmp_path, shards, tracking, stream)
    assert f"; on CPU only; torch {torch.__version__}" in stream.getvalue()
    tags = tracking.runs[0].tags
    assert (tags["device"], tags["torch"]) == ("CPU", torch.__version__)
    assert {"driver", "cuda"} <= set(tags)
