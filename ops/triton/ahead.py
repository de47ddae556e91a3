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
import pathlib
import queue
import threading
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch

from rewriter import children
from rewriter.ops.triton.workers import Workers, ask, workers

_log = logging.getLogger("rewriter")
_MOST_PROCESSES = 16
# A process with torch and Triton takes half of this.
_BYTES_EACH = 2**30
_MEMORY = pathlib.Path("/proc/meminfo")
# What comes first.
_URGENT, _USUAL, _END = range(3)
_Waiting: TypeAlias = "queue.PriorityQueue[tuple[int, int, str]]"


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
    """Processes that will be needed soon start in the background."""
    _workers(target).start(_processes())


def warm(target: Target) -> bool:
    """Whether processes wait that have compiled before."""
    return _workers(target).warm


class Compilation:
    """Compiles what calls would launch while more of them are added.

    `processes`: at most (default: one for each of 16 cores). `fewest`: of different calls, before any process is asked.
    """

    def __init__(self, target: Target, processes: int | None = None, fewest: int = 1) -> None:
        self.tasks: dict[str, None] = {}
        self._target, self._fewest = target, fewest
        self._processes = processes or _processes()
        # A rank, a number and a task each, of which the lowest comes first; no task is the end.
        self._waiting: _Waiting = queue.PriorityQueue()
        self._urgent: list[str] = []
        self._threads: list[threading.Thread] = []
        self._progress = _Progress()

    def add(self, task: str, *, urgent: bool = False) -> None:
        """A call as `task` describes it, each once; urgent ones come before others that wait."""
        if task in self.tasks:
            return
        self.tasks[task] = None
        if urgent:
            self._urgent.append(task)
        self._waiting.put((_URGENT if urgent else _USUAL, len(self.tasks), task))
        while self._fewest <= len(self.tasks) > len(self._threads) < self._processes:
            feeding = (self._waiting, self._progress, _workers(self._target))
            self._threads.append(threading.Thread(target=_feed, args=feeding, daemon=True))
            self._progress.begun()
            self._threads[-1].start()

    def wait_for_urgent(self) -> None:
        """Waits for the urgent calls, or until no process is left."""
        self._progress.wait_for(self._urgent)

    def wait(self) -> int:
        """How many compiled, when all are done; what fails here will fail where it matters."""
        for number, _ in enumerate(self._threads):
            self._waiting.put((_END, number, ""))
        for thread in self._threads:
            thread.join()
        done, wanted = self._progress.compiled(), len(self.tasks)
        if self._threads and done < wanted:
            # Each takes about a second where it is launched, which nobody else explains.
            level = logging.INFO if done else logging.WARNING
            _log.log(level, "compiled %d of %d kernels ahead; the others are compiled one by one", done, wanted)
        return done


def _processes() -> int:
    """One for each core that this process may use, as far as memory allows."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, _free_memory() // _BYTES_EACH, _MOST_PROCESSES))


def _free_memory() -> int:
    """Bytes of the host's memory that can be had, as Linux tells; elsewhere enough."""
    with contextlib.suppress(OSError, ValueError):
        for line in _MEMORY.read_text().splitlines():
            name, _, rest = line.partition(":")
            if name == "MemAvailable":
                return int(rest.split()[0]) * 1024
    return _MOST_PROCESSES * _BYTES_EACH


def _workers(target: Target) -> Workers:
    environment = {name: value for name, value in children.environment().items() if name != "TRITON_INTERPRET"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = children.command("rewriter.ops.triton.compiling", str(target.capability), str(target.multiprocessors))
    return workers(command, environment)


class _Progress:
    """Which calls are done, and how many threads go on."""

    def __init__(self) -> None:
        self._done: dict[str, bool] = {}
        self._threads = 0
        self._changed = threading.Condition()

    def begun(self) -> None:
        with self._changed:
            self._threads += 1

    def ended(self) -> None:
        with self._changed:
            self._threads -= 1
            self._changed.notify_all()

    def done(self, task: str, compiled: bool) -> None:
        with self._changed:
            self._done[task] = compiled
            self._changed.notify_all()

    def compiled(self) -> int:
        return sum(self._done.values())

    def wait_for(self, tasks: Sequence[str]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._threads or all(task in self._done for task in tasks))


def _feed(waiting: _Waiting, progress: _Progress, among: Workers) -> None:
    """Has one process compile one call after the other, until the end or until it does not answer."""
    try:
        with among.taken() as process:
            while task := waiting.get()[-1]:
                answer = ask(process, task)
                if not answer:
                    process.kill()
                    process.wait()
                    return
                progress.done(task, answer.strip() == "compiled")
    except OSError as error:
        _log.info("compiling ahead ended early: %s", error)
    finally:
        progress.ended()


def _described(tensor: torch.Tensor) -> dict[str, Any]:
    return {
        "shape": list(tensor.shape),
        "stride": list(tensor.stride()),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "offset": tensor.data_ptr() % 16,
    }
