"""Compiles kernels before they are launched, many at a time, in processes that need no GPU.

Triton compiles when a kernel is first launched, one after the other, about a second each. Compiled ahead they lie in
its cache on disk, where the launch finds them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import queue
import sys
import threading
from collections.abc import Sequence
from typing import Any

import torch

from rewriter import children
from rewriter.ops.triton.workers import Workers, ask, workers

_log = logging.getLogger("rewriter")
_MOST_PROCESSES = 16


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """The GPU to compile for: compute capability as 10 * major + minor, and its multiprocessors."""

    capability: int
    multiprocessors: int


def task(op: str, provider: str, config: dict[str, Any], arguments: Sequence[Any]) -> str:
    """A call as text: of tensors only what a kernel is compiled for."""
    described = [_described(each) if isinstance(each, torch.Tensor) else {"value": each} for each in arguments]
    return json.dumps({"op": op, "provider": provider, "config": config, "arguments": described})


def start(target: Target) -> None:
    """Processes start, in the background, that `compile_ahead` will need soon."""
    _workers(target).start(_processes())


def compile_ahead(tasks: Sequence[str], target: Target, processes: int | None = None) -> int:
    """Compiles what the calls would launch. Returns how many compiled; what fails here will fail where it matters."""
    wanted = list(dict.fromkeys(tasks))
    count = min(processes or _processes(), len(wanted))
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    for each in wanted:
        waiting.put(each)
    done: list[bool] = []
    threads = [
        threading.Thread(target=_feed, args=(waiting, done, _workers(target)), daemon=True) for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if sum(done) < len(wanted):
        # Each takes about a second where it is launched, which nobody else explains.
        level = logging.INFO if any(done) else logging.WARNING
        _log.log(level, "compiled %d of %d kernels ahead; the others are compiled one by one", sum(done), len(wanted))
    return sum(done)


def _processes() -> int:
    return min(os.cpu_count() or 1, _MOST_PROCESSES)


def _workers(target: Target) -> Workers:
    environment = {name: value for name, value in children.environment().items() if name != "TRITON_INTERPRET"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = children.command("rewriter.ops.triton.ahead", str(target.capability), str(target.multiprocessors))
    return workers(command, environment)


def _feed(waiting: queue.SimpleQueue[str], done: list[bool], among: Workers) -> None:
    """Has one process compile one call after the other, until none is left or it does not answer."""
    try:
        with among.taken() as process, contextlib.suppress(queue.Empty):
            while answer := ask(process, waiting.get_nowait()):
                done.append(answer.strip() == "compiled")
            process.kill()
            process.wait()
    except OSError as error:
        _log.info("compiling ahead ended early: %s", error)


def _described(tensor: torch.Tensor) -> dict[str, Any]:
    return {
        "shape": list(tensor.shape),
        "stride": list(tensor.stride()),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "offset": tensor.data_ptr() % 16,
    }


def _argument(described: dict[str, Any]) -> Any:
    """A tensor on the CPU whose memory is never touched, or the value."""
    if "shape" not in described:
        return described["value"]
    dtype = getattr(torch, described["dtype"])
    shape, stride = described["shape"], described["stride"]
    extent = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) if 0 not in shape else 0
    start = described["offset"] // dtype.itemsize
    return torch.empty(extent + start, dtype=dtype).as_strided(shape, stride, start)


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


def main(target: Target) -> None:
    """Reads tasks from stdin, a line each, and answers each with "compiled" or what went wrong."""
    from rewriter.ops import OPS

    compile_launches(target)
    for line in sys.stdin:
        given = json.loads(line)
        fn = OPS[given["op"]].providers[given["provider"]].fn
        try:
            fn(*map(_argument, given["arguments"]), **given["config"])
            answer = "compiled"
        except Exception as error:
            answer = f"{type(error).__name__}: {error}".replace("\n", " ")
        print(answer, flush=True)  # noqa: T201 - the answer to the process that asked


if __name__ == "__main__":
    main(Target(*map(int, sys.argv[1:3])))
