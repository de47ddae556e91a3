"""Processes that compile kernels beside a caller, kept for a minute after their last answer: each takes seconds to
start."""

from __future__ import annotations

import atexit
import contextlib
import logging
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from rewriter import children

_log = logging.getLogger("rewriter")
_IDLE_SECONDS = 60
# One that says nothing for so long is given up.
_TIMEOUT = 120

Process: TypeAlias = "subprocess.Popen[str]"


class Workers:
    """Processes of one command and environment, which answer each line of their input with one."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._command, self._environment = list(command), dict(environment)
        self._idle: list[Process] = []
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        # Whether one of those that wait has answered before.
        self.warm = False

    def start(self, count: int) -> None:
        """So many wait for work from here on, or fewer where the system starts no more."""
        try:
            while len(self._idle) < count:
                process = self._new()
                with self._lock:
                    self._idle.append(process)
        except OSError as error:
            _log.info("processes that compile cannot be started: %s", error)
        self._end_later()

    @contextlib.contextmanager
    def taken(self) -> Iterator[Process]:
        """A process for the caller alone. Raises OSError where none can be started."""
        process = self._waiting() or self._new()
        try:
            yield process
        except BaseException:
            _end(process)
            raise
        if process.poll() is None:
            with self._lock:
                self._idle.append(process)
                self.warm = True
        else:
            _end(process)
        self._end_later()

    def end(self) -> None:
        """Ends those that wait."""
        with self._lock:
            idle, self._idle, self.warm = self._idle, [], False
        for process in idle:
            _end(process)

    def _waiting(self) -> Process | None:
        """One of those that wait and are still alive."""
        with self._lock:
            while self._idle:
                process = self._idle.pop()
                if process.poll() is None:
                    return process
                _end(process)
        return None

    def _new(self) -> Process:
        process = subprocess.Popen(
            self._command,
            text=True,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        children.yields(process.pid)
        return process

    def _end_later(self) -> None:
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = threading.Timer(_IDLE_SECONDS, self.end)
            self._timer.daemon = True
            self._timer.start()


def ask(process: Process, line: str) -> str:
    """The answer to a line; nothing from a process that died, or was too slow and is ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    alarm = threading.Timer(_TIMEOUT, process.kill)
    alarm.start()
    try:
        process.stdin.write(line + "\n")
        process.stdin.flush()
        return process.stdout.readline()
    except OSError:
        return ""
    finally:
        alarm.cancel()


_EVERY: dict[tuple[tuple[str, ...], tuple[tuple[str, str], ...]], Workers] = {}


def workers(command: Sequence[str], environment: Mapping[str, str]) -> Workers:
    """Those that run this command in this environment."""
    key = tuple(command), tuple(sorted(environment.items()))
    return _EVERY.setdefault(key, Workers(command, environment))


@atexit.register
def end_all() -> None:
    """Ends every process that waits for work."""
    for each in _EVERY.values():
        each.end()
    _EVERY.clear()


def _end(process: Process) -> None:
    process.kill()
    # What was not read any more cannot be written at its end.
    with contextlib.suppress(OSError), process:
        pass
