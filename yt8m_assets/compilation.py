"""torch.compile with a way back: what it cannot compile runs as it was, and the log says why."""

import logging
from collections.abc import Callable
from typing import Any

import torch

logger = logging.getLogger(__name__)


class Compiled:
    """A function that is compiled at its first call, where `enabled`; if that fails, it goes on uncompiled.

    Running out of memory is not the compiler's fault and is raised. Nothing of torch's compiler is imported before
    that first call: importing it takes seconds.
    """

    def __init__(self, function: Callable[..., Any], *, enabled: bool, what: str, dynamic: bool | None = None) -> None:
        self.function, self.what, self.dynamic = function, what, dynamic
        self.enabled = enabled
        self._compiled: Callable[..., Any] | None = None

    def __call__(self, *arguments: Any) -> Any:
        """Call the compiled function, or the plain one."""
        if self._compiled is not None:
            return self._compiled(*arguments)
        if not self.enabled:
            return self.function(*arguments)
        try:
            compiled = torch.compile(self.function, dynamic=self.dynamic)
            result = compiled(*arguments)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - compilers fail in many ways; the work goes on without one
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            logger.warning("torch.compile failed, %s goes on uncompiled: %s", self.what, reason)
            self.enabled = False
            return self.function(*arguments)
        self._compiled = compiled
        return result
