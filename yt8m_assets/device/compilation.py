"""torch.compile with a way back: what it cannot compile runs as it was, and the log says why."""

import logging
from collections.abc import Callable
from typing import Any

import torch

from yt8m_assets.device.memory import is_out_of_memory

logger = logging.getLogger(__name__)


class Compiled:
    """A function that is compiled, where `enabled`, until that fails at some call; from then on it runs uncompiled.

    Compilers fail at the first call, at a later one with other shapes, or in the backward pass. Calling this goes on by
    itself, which suits functions that change nothing; a caller whose function has effects uses `attempt` and, when that
    or the backward pass fails, `give_up`, takes the effects back and tries again. Running out of memory is not the
    compiler's fault and is raised. Nothing of torch's compiler is imported before the first call: it takes seconds.
    """

    def __init__(self, function: Callable[..., Any], *, enabled: bool, what: str, dynamic: bool | None = None) -> None:
        self.function, self.what, self.dynamic = function, what, dynamic
        self.enabled = enabled
        self._compiled: Callable[..., Any] | None = None

    def __call__(self, *arguments: Any) -> Any:
        """Call the compiled function, or the plain one."""
        try:
            return self.attempt(*arguments)
        except Exception as error:
            if not self.give_up(error):
                raise
        return self.function(*arguments)

    def attempt(self, *arguments: Any) -> Any:
        """Call the compiled function while there is one, else the plain one; whatever either raises is raised."""
        if not self.enabled:
            return self.function(*arguments)
        if self._compiled is None:
            self._compiled = torch.compile(self.function, dynamic=self.dynamic)
        return self._compiled(*arguments)

    def give_up(self, error: Exception) -> bool:
        """Run uncompiled from now on, if the compiler may be to blame for an error; whether to try again so."""
        if not self.enabled or is_out_of_memory(error):
            return False
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = " ".join(lines[: 2 if lines[0].endswith(":") else 1])  # "backend='inductor' raised:", says torch
        logger.warning("torch.compile failed, %s goes on uncompiled: %s", self.what, reason)
        self.enabled, self._compiled = False, None
        return True
