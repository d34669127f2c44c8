"""A clock on which only pauses between attempts take time, however busy the machine is."""

import asyncio
from types import SimpleNamespace

import pytest

from yt8m_assets.storage import retry


class Clock:
    """Stands for the clock and the pauses of `retry`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        monkeypatch.setattr(retry, "time", SimpleNamespace(monotonic=lambda: self.seconds))
        monkeypatch.setattr(retry, "asyncio", SimpleNamespace(sleep=self.sleep))

    async def sleep(self, seconds: float) -> None:
        """Pass on at once; let others run."""
        self.seconds += seconds
        await asyncio.sleep(0)
