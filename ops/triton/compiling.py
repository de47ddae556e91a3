"""A process that compiles kernels, without a GPU.

    python -m rewriter.ops.triton.compiling CAPABILITY MULTIPROCESSORS

Each line of its input is a task as `ahead.task` writes it; the answer is "compiled", or what went wrong.
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

import torch

from rewriter.ops.triton.ahead import Target


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
        if kernel.hash not in kernels:
            kernels[kernel.hash] = kernel
            _build_launcher(kernel)
        return kernel

    JITFunction.run = compiling
    driver.set_active(_Driver(target.capability))
    device.assume(divmod(target.capability, 10), target.multiprocessors)
    return kernels


def _build_launcher(kernel: Any) -> None:
    """Triton 3.6 launches each signature of arguments by a function of its own in C, which the first launch would wait
    for; others have one for all, and nothing to build."""
    with contextlib.suppress(Exception):
        from triton.backends.nvidia.driver import CudaLauncher

        CudaLauncher(kernel.src, kernel.metadata)


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
    """Answers each line of stdin with one."""
    from rewriter.ops import OPS

    compile_launches(target)
    for line in sys.stdin:
        given = json.loads(line)
        try:
            fn = OPS[given["op"]].providers[given["provider"]].fn
            fn(*map(argument, given["arguments"]), **given["config"])
            answer = "compiled"
        # It will fail where it is launched, and be said there.
        except Exception as error:
            answer = f"{type(error).__name__}: {error}".replace("\n", " ")
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Target(*map(int, sys.argv[1:3])))
