"""What `rewriter test` shows while it runs, and how it is ended early without losing what it found."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from rewriter.cli.output import progress
from rewriter.proof.campaign import Progress, Stop
from rewriter.proof.jobs import Job


@contextlib.contextmanager
def shown() -> Iterator[Progress]:
    """A bar in a terminal; elsewhere a line on stderr for each job that is done."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    with progress("proving") as bar:
        yield _Bar(bar)


class _Bar(Progress):
    def __init__(self, bar: Any) -> None:
        self.bar = bar

    def begin(self, jobs: int, processes: int) -> None:  # noqa: ARG002
        self.bar.total = jobs

    def since(self, text: str) -> None:
        self.bar.write(text, file=sys.stderr)

    def done(self, job: Job, outcome: str, seconds: float) -> None:  # noqa: ARG002
        self.bar.set_postfix_str(str(job), refresh=False)
        self.bar.update()


class _Lines(Progress):
    def __init__(self) -> None:
        self.start = time.monotonic()
        self.jobs = self.count = 0
        self.say("starting a process for the proofs")

    def begin(self, jobs: int, processes: int) -> None:
        self.jobs = jobs
        self.say(f"{jobs} jobs for {processes} {'process' if processes == 1 else 'processes'}")

    def since(self, text: str) -> None:
        self.say(text)

    def done(self, job: Job, outcome: str, seconds: float) -> None:
        self.count += 1
        self.say(f"{self.count}/{self.jobs} {job}: {outcome} ({seconds:.1f} s)")

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.start:6.1f} s  {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def interruptible(stop: Stop) -> Iterator[None]:
    """SIGINT and SIGTERM call `stop`; a second one does what it did before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, _: object) -> None:
        signal.signal(number, before[signal.Signals(number)])
        stop(f"ended by {signal.Signals(number).name}")

    for each in before:
        signal.signal(each, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
