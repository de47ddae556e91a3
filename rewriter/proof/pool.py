"""The parent's side of the worker process: starts it, asks it, and finds out how it ended."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import queue
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping
from typing import Any

from rewriter import children
from rewriter.errors import RewriterError
from rewriter.proof.worker import DEAD_CONTEXT

# Start-up: importing torch, compiling csrc with nvcc where that has not been done yet.
_STARTUP_SECONDS = 1800.0
_TAIL = 6
# Sent by the kernel when memory runs out, or by somebody: no fault of what was running.
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a worker is started with. `silence`: seconds without a word from it after which it counts as hanging.
    `shapes`: of each rule and model at most so many can be timed, the largest first.
    """

    sources: tuple[str, ...]
    device: str = "cpu"
    imports: tuple[str, ...] = ()
    shapes: int = 0
    silence: float = 120.0


class Refused(RewriterError):
    """A worker that cannot start with this setup: bad rules, a module that cannot be imported, no GPU."""


class Stopped(Exception):
    """A worker that ended or hung during a job. `example`: what ran last. `outside`: whether others ended it."""

    def __init__(self, message: str, *, example: str | None, outside: bool) -> None:
        super().__init__(message)
        self.example = example
        self.outside = outside


class JobError(Exception):
    """An exception in the worker that is none of the rule's making; the worker lives on."""


class Worker:
    """One worker process at a time: started on first use, and again after it has stopped."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.starts = 0
        self._killed = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._events: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._stderr: Any = None
        self._about: dict[str, Any] = {}

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def about(self) -> dict[str, Any]:
        """What the worker says of itself when it starts: machine, rules, missing providers. Raises Refused."""
        self._start()
        return self._about

    def ask(self, job: Mapping[str, Any], listen: Callable[[dict[str, Any]], None] = lambda _: None) -> Any:
        """The result of a job; `listen` hears of each example. Raises Stopped or JobError."""
        self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        example: str | None = None
        while True:
            event = self._next(self.setup.silence, example)
            kind = event["event"]
            if kind == "example":
                example = event["example"]
                listen(event)
            elif kind == "result":
                return event["value"]
            elif kind == "error":
                raise JobError(event["message"])
            elif kind == "dead":
                self.close()
                raise Stopped(f"the CUDA context died: {event['message']}", example=example, outside=False)

    @property
    def killed(self) -> bool:
        """Whether `kill` was called."""
        return self._killed.is_set()

    def kill(self) -> None:
        """Ends the process for good, from another thread or a signal handler: who waits for it gets Stopped."""
        self._killed.set()
        process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """Ends the process, whatever it does."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        try:
            process.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if self._stderr is not None:
            self._stderr.close()
            self._stderr = None

    def _start(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        if self.killed:
            raise Refused("the process for the proofs was ended")
        self.starts += 1
        self._events = queue.SimpleQueue()
        self._stderr = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - lives as long
        # Triton reads it when it is imported: on a CPU its kernels run in its interpreter.
        environment = {**children.environment(), "TRITON_INTERPRET": "1" if self.setup.device == "cpu" else "0"}
        # Examples are small, and another worker is glad of the other cores.
        environment.setdefault("OMP_NUM_THREADS", "1")
        process = subprocess.Popen(
            children.command("rewriter.proof.worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            encoding="utf-8",
            env=environment,
        )
        self._process = process
        if self._killed.is_set():
            process.kill()
        threading.Thread(target=_read, args=(process, self._events), daemon=True).start()
        assert process.stdin is not None
        setup = {name: getattr(self.setup, name) for name in ("sources", "device", "imports", "shapes")}
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(setup) + "\n")
            process.stdin.flush()
        try:
            event = self._next(_STARTUP_SECONDS, None)
        except Stopped as stopped:
            raise Refused(f"the process for the proofs does not start: {stopped}") from stopped
        if event["event"] == "refused":
            self.close()
            raise Refused(event["message"])
        self._about = event

    def _next(self, seconds: float, example: str | None) -> dict[str, Any]:
        try:
            event = self._events.get(timeout=seconds)
        except queue.Empty:
            self.close()
            raise Stopped(f"no answer within {seconds:g} s, so it was ended", example=example, outside=False) from None
        if event is None:
            raise self._ended(example)
        return event

    def _ended(self, example: str | None) -> Stopped:
        assert self._process is not None
        status = self._process.wait()
        words = self._last_words()
        self.close()
        outside = -status in _FROM_OUTSIDE
        if status == DEAD_CONTEXT:
            how = "the CUDA context died"
        elif status < 0:
            how = f"the process ended with {signal.Signals(-status).name}"
            how += ": memory ran out, or somebody ended it" if outside else ""
        else:
            how = f"the process ended with status {status}"
        return Stopped(
            how + (f"; it said last: {words}" if words and not outside else ""), example=example, outside=outside
        )

    def _last_words(self) -> str:
        """The innermost place in the code, and what was said last on stderr."""
        if self._stderr is None:
            return ""
        self._stderr.seek(0)
        lines = [line.strip() for line in self._stderr.read().splitlines() if line.strip()]
        fatal = next((index for index, line in enumerate(lines) if line.startswith("Fatal Python error")), None)
        if fatal is None:
            return " | ".join(lines[-_TAIL:])
        places = [line for line in lines[fatal:] if line.startswith("File ")]
        return " ".join([lines[fatal], *(places[:1])])


def _read(process: subprocess.Popen[str], events: queue.SimpleQueue[dict[str, Any] | None]) -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            try:
                events.put(json.loads(line))
            except ValueError:
                break
    events.put(None)
