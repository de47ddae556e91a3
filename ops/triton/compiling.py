"""The process that compiles kernels, without a GPU.

    python -m rewriter.ops.triton.compiling CAPABILITY MULTIPROCESSORS

A line of its input is one request: {"tasks": [...], "at_once": n}, the tasks as `ahead.task` writes them. It answers
with a line for each task, as they end: "compiled" or "failed". Each task has a process of its own, forked from this
one, which has loaded torch and Triton: sixteen that load them take as long as compiling does, and a compiler that
crashes takes nothing with it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from rewriter.ops.triton.ahead import Target

_SECONDS_EACH = 120


class _Driver:
    """As much of a driver as compiling asks for."""

    def __init__(self, capability: int) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0


def compile_launches(target: Target) -> dict[str, Any]:
    """From here on this process compiles kernels for `target` in place of launching them.

    Returns the compiled kernels by hash, filled as they come.
    """
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from rewriter.ops.triton import device

    kernels: dict[str, Any] = {}
    run = JITFunction.run

    def compiling(self: Any, *args: Any, **kwargs: Any) -> Any:
        kernel = run(self, *args, **(kwargs | {"warmup": True}))
        kernels.setdefault(kernel.hash, kernel)
        return kernel

    JITFunction.run = compiling
    driver.set_active(_Driver(target.capability))
    device.assume(divmod(target.capability, 10), target.multiprocessors)
    return kernels


def argument(described: dict[str, Any]) -> Any:
    """A tensor on the CPU whose memory is never touched, or the value."""
    if "shape" not in described:
        return described["value"]
    dtype = getattr(torch, described["dtype"])
    shape, stride = described["shape"], described["stride"]
    extent = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) if 0 not in shape else 0
    start = described["offset"] // dtype.itemsize
    return torch.empty(extent + start, dtype=dtype).as_strided(shape, stride, start)


def main(target: Target) -> None:
    """Answers requests until there are no more."""
    compile_launches(target)
    # Every kernel is loaded before the first fork.
    import rewriter.ops  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        for compiled in _in_turn(request["tasks"], request["at_once"]):
            print("compiled" if compiled else "failed", flush=True)  # noqa: T201 - the answer to the process that asked


def _in_turn(tasks: Sequence[str], at_once: int) -> Iterator[bool]:
    """Whether each task compiled, in the order in which they end."""
    if not hasattr(os, "fork"):
        yield from map(_compiles, tasks)
        return
    waiting, running = list(reversed(tasks)), 0
    while waiting or running:
        while waiting and running < at_once:
            _fork(waiting.pop())
            running += 1
        _, status = os.wait()
        running -= 1
        yield status == 0


def _fork(task: str) -> None:
    if os.fork() == 0:
        # A compiler that never ends is ended by the system.
        signal.alarm(_SECONDS_EACH)
        compiled = False
        try:
            compiled = _compiles(task)
        finally:
            os._exit(0 if compiled else 1)


def _compiles(task: str) -> bool:
    from rewriter.ops import OPS

    given = json.loads(task)
    try:
        fn = OPS[given["op"]].providers[given["provider"]].fn
        fn(*map(argument, given["arguments"]), **given["config"])
    # It will fail where it is launched, and be said there.
    except Exception:
        return False
    return True


if __name__ == "__main__":
    main(Target(*map(int, sys.argv[1:3])))
