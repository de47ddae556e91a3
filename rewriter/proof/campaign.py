"""Proves many rules: plans the jobs, hands them to worker processes, and turns what happens to them into results."""

from __future__ import annotations

import contextlib
import datetime
import math
import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rewriter.proof.jobs import Job, Plan, Request, known, left, planned
from rewriter.proof.outcome import Example, Failure, Proof
from rewriter.proof.pool import JobError, Refused, Setup, Stopped, Worker
from rewriter.proof.results import Ceilings, Machine, Results, Score, Timed, proof_of, timed_of
from rewriter.proof.since import bases, changes, merged, remaining, still_true
from rewriter.proof.worker import CONTEXT, SHARE

# A rule that has stopped so many workers is not tried with further dtypes and providers.
_MOST_STOPS = 6
# Of the time that there is, what the proofs may take where something is timed too, and what one proof may take.
_PROOFS = 0.7
_ONE_PROOF = 0.25


class Progress:
    """Hears how a campaign goes; says nothing."""

    def begin(self, jobs: int, processes: int) -> None:
        """So many jobs by so many processes are to be done."""

    def since(self, text: str) -> None:
        """What is tried again since earlier results, and why, in a line."""

    def done(self, job: Job, outcome: str, seconds: float) -> None:
        """A job is done, with an outcome in a few words."""


class Stop:
    """Ends a campaign before it is done, called from any thread or signal handler; what it has found remains."""

    def __init__(self) -> None:
        self.reason = ""
        self._workers: Sequence[Worker] = ()

    def __call__(self, reason: str) -> None:
        """`reason` completes "not done: ..."; the first one holds."""
        self.reason = self.reason or reason
        for worker in self._workers:
            worker.kill()

    def watch(self, workers: Sequence[Worker]) -> None:
        """From here on these processes are ended, too."""
        self._workers = workers
        if self.reason:
            self(self.reason)


def run(request: Request, progress: Progress | None = None, stop: Stop | None = None) -> Results:
    """Proves what was asked for. What stops or hangs a worker is a finding about its rule, and the rest goes on.

    Raises Refused where no worker can start, and UnknownChoice.
    """
    return _Campaign(request, progress or Progress(), stop or Stop()).run()


def prove_one(worker: Worker, request: Request, job: Job) -> Results:
    """One proof by a worker that is there already. Raises Refused."""
    campaign = _Campaign(request, Progress(), Stop())
    campaign.rule(worker, [job], Stop())
    return campaign.results(worker.about(), Plan([[job]], [], []))


def run_example(setup: Setup, rule: str, provider: str, example: Example) -> Results:
    """One example of one rule, all checks on. Raises Refused and UnknownChoice."""
    with Worker(setup) as worker:
        about = worker.about()
        known("--rule", (rule,), [each["id"] for each in about["rules"]])
        providers = next(each["providers"] for each in about["rules"] if each["id"] == rule)
        known("--provider", (provider,), providers)
        job = Job(kind="example", rule=rule, dtype=example.dtype, provider=provider)
        asked = {"kind": "example", "rule": rule, "provider": provider, "example": str(example)}
        problems: tuple[str, ...] = ()
        proofs: tuple[Proof, ...] = ()
        try:
            proofs = (proof_of(worker.ask(asked)),)
        except Stopped as stopped:
            if stopped.outside:
                problems = (f"{job}: {stopped}",)
            else:
                proofs = (_stopped(job, setup.device, stopped),)
        except JobError as error:
            raise Refused(f"{job}: {error}") from error
    return _results(setup, about, proofs=proofs, problems=problems)


class _Campaign:
    def __init__(self, request: Request, progress: Progress, stop: Stop) -> None:
        self.request = request
        self.progress = progress
        self.stop = stop
        self.proofs: dict[Job, Proof] = {}
        self.scores: dict[Job, Score] = {}
        self.timings: dict[Job, Timed] = {}
        self.problems: dict[Job, str] = {}
        self.undone: dict[Job, str] = {}
        self.stops: dict[str, int] = {}
        self.ceilings: Ceilings | None = None
        self.changes = ""
        self.failure: BaseException | None = None
        self.lock = threading.Lock()
        self.start = time.monotonic()

    def run(self) -> Results:
        request = self.request
        with contextlib.ExitStack() as stack:
            worker = stack.enter_context(Worker(request.setup))
            self.stop.watch([worker])
            about = worker.about()
            plan = planned(request, about["rules"])
            kept = None
            if request.since is not None:
                machine, rules = Machine(**about["machine"]), bases(about["rules"], _now())
                kept = still_true(request.since, machine, rules)
                plan = remaining(plan, kept, request.examples)
                self.changes = changes(request.since, machine, rules, plan)
                self.progress.since(self.changes)
            count = request.jobs if about["memory"] is None else min(request.jobs, about["memory"] // (SHARE + CONTEXT))
            workers = [worker, *(stack.enter_context(Worker(request.setup)) for _ in range(1, count))]
            timings = [Job(kind="ceilings", rule="the card"), *plan.timings] if plan.timings else []
            self.progress.begin(sum(map(len, plan.first())) + len(timings), len(workers))
            self.serve(workers, plan.first(), _PROOFS if timings else 1.0)
            # Nothing else may run beside what is timed.
            for other in workers[1:]:
                other.close()
            if timings:
                if worker.killed:
                    worker = stack.enter_context(Worker(request.setup))
                self.serve([worker], [[job] for job in timings], 1.0)
        results = self.results(about, plan)
        return results if kept is None else merged(kept, results)

    def results(self, about: Mapping[str, Any], plan: Plan) -> Results:
        """What has become of the jobs."""
        jobs = [job for group in plan.proofs for job in group]
        order = {rule["id"]: place for place, rule in enumerate(about["rules"])}
        timings = sorted(plan.timings, key=lambda job: (order[job.rule], job.number))
        return _results(
            self.request.setup,
            about,
            proofs=tuple(self.proofs[job] for job in jobs if job in self.proofs),
            scores=tuple(self.scores[job] for job in jobs if job in self.scores),
            timings=tuple(self.timings[job] for job in timings if job in self.timings),
            ceilings=self.ceilings,
            problems=(*self.problems.values(), *left(self.undone)),
            since=self.changes,
        )

    def serve(self, workers: Sequence[Worker], groups: Sequence[list[Job]], share: float) -> None:
        """Has the workers do the jobs until the `share` of the time that there is has passed."""
        waiting: queue.SimpleQueue[list[Job]] = queue.SimpleQueue()
        for group in groups:
            waiting.put(group)
        end = Stop()
        end.watch(workers)
        self.stop.watch(workers)
        threads = [
            threading.Thread(target=self.work, args=(worker, waiting, end), daemon=True) for worker in workers[1:]
        ]
        with self.limited(end, share):
            for thread in threads:
                thread.start()
            self.work(workers[0], waiting, end)
            for thread in threads:
                thread.join()
        if self.failure is not None:
            raise self.failure

    @contextlib.contextmanager
    def limited(self, end: Stop, share: float) -> Iterator[None]:
        if self.request.within is None:
            yield
            return
        seconds = max(0.0, self.start + self.request.within * share - time.monotonic())
        timer = threading.Timer(seconds, end, [f"out of time after {time.monotonic() - self.start + seconds:.0f} s"])
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def work(self, worker: Worker, waiting: queue.SimpleQueue[list[Job]], end: Stop) -> None:
        try:
            while self.failure is None:
                try:
                    group = waiting.get_nowait()
                except queue.Empty:
                    return
                self.rule(worker, group, end)
        except BaseException as error:
            self.failure = error

    def rule(self, worker: Worker, jobs: Sequence[Job], end: Stop) -> None:
        for job in jobs:
            if self.failure is not None:
                return
            start = time.monotonic()
            try:
                outcome = self.tried(worker, job, jobs, end)
            except (Stopped, Refused) as error:
                over = self.stop.reason or end.reason
                if over:
                    self.undone[job] = over
                    continue
                if isinstance(error, Refused):
                    raise
                self.stops[job.rule] = self.stops.get(job.rule, 0) + 1
                outcome = self.stopped(job, error)
            except JobError as error:
                outcome = self.problems[job] = f"{job}: {error}"
            with self.lock:
                self.progress.done(job, outcome, time.monotonic() - start)

    def tried(self, worker: Worker, job: Job, jobs: Sequence[Job], end: Stop) -> str:
        """What has become of it, in words."""
        if self.stop.reason or end.reason:
            raise Stopped(self.stop.reason or end.reason, example=None, outside=True)
        if job.kind == "mutants" and any(not self.proofs[one].proved for one in jobs if one in self.proofs):
            return "not tried: of a rule that is wrong every mutant is wrong"
        stops = self.stops.get(job.rule, 0)
        if stops >= _MOST_STOPS:
            self.problems[job] = f"{job}: not tried, because {job.rule} has stopped {stops} processes already"
            return self.problems[job]
        return self.ask(worker, job)

    def ask(self, worker: Worker, job: Job) -> str:
        request = self.request
        if job.kind == "prove":
            seconds = None if request.within is None else request.within * _ONE_PROOF
            asked: dict[str, Any] = {"kind": "prove", "rule": job.rule, "dtype": job.dtype, "provider": job.provider}
            asked |= {"examples": request.examples, "seed": request.seed, "seconds": seconds}
            found = worker.ask(asked)
            proof = self.proofs[job] = proof_of(found)
            if found["cut"]:
                self.problems[job] = f"{job}: only {proof.examples} of {request.examples} examples in {seconds:.0f} s"
            return f"failed: {proof.failure.message}" if proof.failure else f"{proof.examples} examples"
        if job.kind == "mutants":
            found = worker.ask({"kind": "mutants", "rule": job.rule})
            score = self.scores[job] = Score(**{**found, "survivors": tuple(found["survivors"])})
            return f"{score.killed} of {score.total} killed"
        if job.kind == "ceilings":
            self.ceilings = Ceilings(**worker.ask({"kind": "ceilings"}))
            return f"{self.ceilings.bandwidth:.0f} GB/s"
        found = worker.ask({"kind": job.kind, "rule": job.rule, "number": job.number})
        if job.kind == "compile":
            return "compiled"
        timed = self.timings[job] = timed_of(found)
        return f"{timed.speedup:.2f} times as fast" if timed.speedup else timed.reason or "no provider ran"

    def stopped(self, job: Job, stopped: Stopped) -> str:
        if job.kind == "prove" and not stopped.outside:
            self.proofs[job] = _stopped(job, self.request.setup.device, stopped)
        elif job.kind != "compile":
            # What cannot be compiled will be named by the timing that needs it.
            self.problems[job] = f"{job}: {stopped}"
        return str(stopped)


def _stopped(job: Job, device: str, stopped: Stopped) -> Proof:
    example = None if stopped.example is None else Example.parse(stopped.example)
    return Proof(
        rule=job.rule,
        dtype=job.dtype,
        device=device,
        provider=job.provider,
        examples=0,
        unsupported=0,
        worst=math.inf,
        ratio=math.inf,
        failure=Failure(kind="crashes", message=str(stopped), example=example, operands=""),
    )


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def _results(setup: Setup, about: Mapping[str, Any], since: str = "", **found: Any) -> Results:
    notes = [f"the {name} providers are missing: {reason}" for name, reason in about["missing"].items()]
    date = _now()
    return Results(
        machine=Machine(**about["machine"]),
        date=date,
        sources=() if setup.sources == ("default",) else setup.sources,
        rules=bases(about["rules"], date),
        notes=(*notes, *([since] if since else [])),
        **found,
    )
