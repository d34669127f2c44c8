"""A compiler that fails at its first call, at a later one, or by running out of memory."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch

from yt8m_assets.device.compilation import Compiled


class Compiler:
    """Stands for torch.compile: its functions compute like the plain ones, and fail at the calls it was given."""

    def __init__(self, *failures: Exception | None) -> None:
        self.failures, self.compiled, self.calls = list(failures), 0, 0

    def __call__(self, function: Callable[..., Any], dynamic: bool | None = None) -> Callable[..., Any]:
        self.compiled += 1

        def run(*arguments: Any) -> Any:
            self.calls += 1
            failure = self.failures.pop(0) if self.failures else None
            if failure is not None:
                raise failure
            return function(*arguments)

        return run


@pytest.mark.parametrize("good_calls", [0, 2])
def test_it_goes_on_uncompiled_from_any_call_and_says_so_once(
    good_calls: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = Compiler(*[None] * good_calls, RuntimeError("\nno kernel for this shape\nmore"))
    monkeypatch.setattr(torch, "compile", compiler)
    double = Compiled(lambda value: 2 * value, enabled=True, what="doubling")
    with caplog.at_level(logging.WARNING):
        assert [double(value) for value in range(5)] == [0, 2, 4, 6, 8]
    assert caplog.messages == ["torch.compile failed, doubling goes on uncompiled: no kernel for this shape"]
    assert (compiler.compiled, compiler.calls) == (1, good_calls + 1)
    assert not double.enabled


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: out of memory"), MemoryError()]
)
@pytest.mark.parametrize("good_calls", [0, 1])
def test_memory_that_ran_out_is_raised_and_the_compiled_function_stays(
    error: Exception, good_calls: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = Compiler(*[None] * good_calls, error)
    monkeypatch.setattr(torch, "compile", compiler)
    double = Compiled(lambda value: 2 * value, enabled=True, what="doubling")
    for value in range(good_calls):
        assert double(value) == 2 * value
    with pytest.raises(type(error)) as caught:
        double(7)
    assert caught.value is error
    assert not caplog.messages
    assert double(7) == 14
    assert (compiler.compiled, compiler.calls) == (1, good_calls + 2)


def test_an_error_of_the_function_itself_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(value: int) -> int:
        raise ValueError(f"no {value}")

    monkeypatch.setattr(torch, "compile", Compiler())
    compiled = Compiled(broken, enabled=True, what="breaking")
    with pytest.raises(ValueError, match="no 3"):
        compiled(3)
    with pytest.raises(ValueError, match="no 4"):
        compiled(4)


def test_nothing_is_compiled_where_it_is_not_enabled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Compiler()
    monkeypatch.setattr(torch, "compile", compiler)
    assert Compiled(lambda value: value + 1, enabled=False, what="adding")(1) == 2
    assert compiler.compiled == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # of torch's own compiler
def test_a_recompilation_of_torchs_own_that_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The real compiler, for a second shape, with a code generator that works once."""
    seen: list[int] = []

    def code_generator(graph: Any, inputs: Any) -> Any:
        seen.append(len(inputs))
        if len(seen) > 1:
            raise NotImplementedError("no such shape")
        return graph.forward

    compile_ = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda function, dynamic: compile_(function, dynamic=False, backend=code_generator)
    )
    root = Compiled(lambda x: x.square().sum(), enabled=True, what="a root", dynamic=True)
    try:
        assert [float(root(torch.full((size,), 2.0))) for size in (3, 3, 5, 3, 6)] == [12, 12, 20, 12, 24]
    finally:
        torch.compiler.reset()
    assert len(seen) == 2
    [message] = [record.message for record in caplog.records if record.name == "yt8m_assets.device.compilation"]
    assert message == (
        "torch.compile failed, a root goes on uncompiled: backend='code_generator' raised: "
        "NotImplementedError: no such shape"
    )
