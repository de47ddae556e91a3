"""Compiles kernels before they are launched, many at a time, in a process that needs no GPU.

Triton compiles when a kernel is first launched, one after the other, about a second each. Compiled ahead they lie in
its cache on disk, where the launch finds them. The process is `rewriter.ops.triton.compiling`; it is kept for a minute
after its last answer, since it takes seconds to start.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import json
import logging
import os
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from rewriter import children

_log = logging.getLogger("rewriter")
_MOST_AT_ONCE = 16
_IDLE_SECONDS = 60
# A process that says nothing for so long is given up.
_TIMEOUT = 180


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
    """The process that `compile_ahead` will need soon starts in the background."""
    with contextlib.suppress(OSError):
        _compiler(target).start()


def compile_ahead(tasks: Sequence[str], target: Target, processes: int | None = None) -> int:
    """Compiles what the calls would launch, `processes` of them at a time (default: one for each of 16 cores).

    Returns how many compiled; what fails here will fail where it matters.
    """
    wanted = list(dict.fromkeys(tasks))
    at_once = processes or min(os.cpu_count() or 1, _MOST_AT_ONCE)
    try:
        done = _compiler(target).compile(wanted, at_once)
    except OSError as error:
        _log.info("compiling ahead ended early: %s", error)
        done = 0
    if done < len(wanted):
        # Each takes about a second where it is launched, which nobody else explains.
        level = logging.INFO if done else logging.WARNING
        _log.log(level, "compiled %d of %d kernels ahead; the others are compiled one by one", done, len(wanted))
    return done


class _Compiler:
    """A process that compiles for one target, in one environment."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._command, self._environment = list(command), dict(environment)
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.RLock()
        self._idle: threading.Timer | None = None

    def start(self) -> None:
        """Raises OSError where no process can be started."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self.end()
                pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
                self._process = subprocess.Popen(self._command, text=True, env=self._environment, **pipes)  # type: ignore[call-overload]
            self._end_later()

    def compile(self, tasks: Sequence[str], at_once: int) -> int:
        """How many of the tasks compiled. Raises OSError where the process dies before it was asked."""
        with self._lock:
            self.start()
            process, done = self._process, 0
            assert process is not None
            assert process.stdin is not None
            assert process.stdout is not None
            finished = False
            try:
                process.stdin.write(json.dumps({"tasks": list(tasks), "at_once": at_once}) + "\n")
                process.stdin.flush()
                for _ in tasks:
                    alarm = threading.Timer(_TIMEOUT, process.kill)
                    alarm.start()
                    try:
                        answer = process.stdout.readline()
                    finally:
                        alarm.cancel()
                    if not answer:
                        break
                    done += answer.strip() == "compiled"
                else:
                    finished = True
            finally:
                # One that still has answers to give would give them to the next who asks.
                if not finished:
                    self.end()
            self._end_later()
            return done

    def end(self) -> None:
        """Ends the process, if there is one."""
        with self._lock:
            process, self._process = self._process, None
            if process is not None:
                process.kill()
                # What was not read any more cannot be written at its end.
                with contextlib.suppress(OSError), process:
                    pass

    def _end_later(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = threading.Timer(_IDLE_SECONDS, self.end)
        self._idle.daemon = True
        self._idle.start()


_COMPILERS: dict[tuple[tuple[str, ...], tuple[tuple[str, str], ...]], _Compiler] = {}


def _compiler(target: Target) -> _Compiler:
    environment = {name: value for name, value in children.environment().items() if name != "TRITON_INTERPRET"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = children.command("rewriter.ops.triton.compiling", str(target.capability), str(target.multiprocessors))
    key = tuple(command), tuple(sorted(environment.items()))
    return _COMPILERS.setdefault(key, _Compiler(command, environment))


@atexit.register
def _end_all() -> None:
    for each in _COMPILERS.values():
        each.end()


def _described(tensor: torch.Tensor) -> dict[str, Any]:
    return {
        "shape": list(tensor.shape),
        "stride": list(tensor.stride()),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "offset": tensor.data_ptr() % 16,
    }
