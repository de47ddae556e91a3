"""Proves many rules: plans the jobs, hands them to worker processes, and turns what happens to them into results."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import difflib
import math
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rewriter.errors import RewriterError
from rewriter.proof.outcome import Example, Failure, Proof
from rewriter.proof.pool import JobError, Refused, Setup, Stopped, Worker
from rewriter.proof.results import Ceilings, Machine, Results, Score, Timed, proof_of, timed_of

# A rule that has stopped so many workers is not tried with further dtypes and providers.
_MOST_STOPS = 6


class UnknownChoice(RewriterError, ValueError):
    """A rule, dtype or provider that was asked for and is not there."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to prove. Empty `rules`, `dtypes`, `providers`: all that there are. `seed`: None repeats the same examples.

    `jobs`: worker processes at once. What is timed is in the setup.
    """

    setup: Setup
    rules: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    examples: int = 50
    seed: int | None = None
    mutants: bool = True
    jobs: int = 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One question to a worker: a proof of a rule in a dtype by a provider, its mutants, or its time at one site."""

    kind: str
    rule: str
    dtype: str = ""
    provider: str = ""
    number: int = 0

    def __str__(self) -> str:
        return " ".join(filter(None, (self.rule, self.dtype, self.provider, self.kind if self.kind != "prove" else "")))


Progress = Callable[[Job, int, int], None]


def run(request: Request, progress: Progress = lambda *_: None) -> Results:
    """Proves what was asked for. What stops or hangs a worker is a finding about its rule, and the rest goes on.

    `progress(job, done, total)` is told of each job that is done. Raises Refused where no worker can start, and
    UnknownChoice.
    """
    return _Campaign(request, progress).run()


def prove_one(worker: Worker, request: Request, job: Job) -> Results:
    """One proof by a worker that is there already. Raises Refused."""
    campaign = _Campaign(request, lambda *_: None)
    campaign.rule(worker, [job])
    return campaign.results(worker.about(), [job])


def run_example(setup: Setup, rule: str, provider: str, example: Example) -> Results:
    """One example of one rule, all checks on. Raises Refused and UnknownChoice."""
    with Worker(setup) as worker:
        about = worker.about()
        _known("--rule", (rule,), [each["id"] for each in about["rules"]])
        providers = next(each["providers"] for each in about["rules"] if each["id"] == rule)
        _known("--provider", (provider,), providers)
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
    def __init__(self, request: Request, progress: Progress) -> None:
        self.request = request
        self.progress = progress
        self.proofs: dict[Job, Proof] = {}
        self.scores: dict[Job, Score] = {}
        self.timings: dict[Job, Timed] = {}
        self.problems: dict[Job, str] = {}
        self.ceilings: Ceilings | None = None
        self.failure: BaseException | None = None
        self.lock = threading.Lock()
        self.done = self.total = 0

    def run(self) -> Results:
        with contextlib.ExitStack() as stack:
            workers = [stack.enter_context(Worker(self.request.setup)) for _ in range(max(1, self.request.jobs))]
            about = workers[0].about()
            groups = self.plan(about["rules"])
            timings = [[job for job in group if job.kind == "time"] for group in groups]
            proofs = [[job for job in group if job.kind != "time"] for group in groups]
            jobs = [job for group in (*proofs, *timings) for job in group]
            self.total = len(jobs)
            self.serve(workers, proofs)
            # Nothing else may run beside what is timed.
            for worker in workers[1:]:
                worker.close()
            self.serve(workers[:1], timings)
            if self.request.setup.shapes:
                self.measure_ceilings(workers[0])
        return self.results(about, jobs)

    def results(self, about: Mapping[str, Any], jobs: Sequence[Job]) -> Results:
        """What has become of the jobs."""
        return _results(
            self.request.setup,
            about,
            proofs=tuple(self.proofs[job] for job in jobs if job in self.proofs),
            scores=tuple(self.scores[job] for job in jobs if job in self.scores),
            timings=tuple(self.timings[job] for job in jobs if job in self.timings),
            ceilings=self.ceilings,
            problems=tuple(self.problems[job] for job in jobs if job in self.problems),
        )

    def plan(self, rules: Sequence[Mapping[str, Any]]) -> list[list[Job]]:
        """The jobs, those of one rule together."""
        request = self.request
        _known("--rule", request.rules, [rule["id"] for rule in rules])
        chosen = [rule for rule in rules if not request.rules or rule["id"] in request.rules]
        _known("--dtype", request.dtypes, [dtype for rule in chosen for dtype in rule["dtypes"]])
        _known("--provider", request.providers, [name for rule in chosen for name in rule["providers"]])
        return [group for rule in chosen if (group := list(self.jobs_of(rule)))]

    def jobs_of(self, rule: Mapping[str, Any]) -> Iterator[Job]:
        request = self.request
        for provider in rule["providers"]:
            for dtype in rule["dtypes"]:
                if provider in (request.providers or (provider,)) and dtype in (request.dtypes or (dtype,)):
                    yield Job(kind="prove", rule=rule["id"], dtype=dtype, provider=provider)
        if rule["providers"] and request.mutants:
            yield Job(kind="mutants", rule=rule["id"])
        if rule["providers"]:
            yield from (Job(kind="time", rule=rule["id"], number=number) for number in range(rule["sites"]))

    def serve(self, workers: Sequence[Worker], groups: Sequence[list[Job]]) -> None:
        waiting: queue.SimpleQueue[list[Job]] = queue.SimpleQueue()
        for group in groups:
            waiting.put(group)
        threads = [threading.Thread(target=self.work, args=(worker, waiting), daemon=True) for worker in workers[1:]]
        for thread in threads:
            thread.start()
        self.work(workers[0], waiting)
        for thread in threads:
            thread.join()
        if self.failure is not None:
            raise self.failure

    def work(self, worker: Worker, waiting: queue.SimpleQueue[list[Job]]) -> None:
        try:
            while self.failure is None:
                try:
                    group = waiting.get_nowait()
                except queue.Empty:
                    return
                self.rule(worker, group)
        except BaseException as error:
            self.failure = error

    def rule(self, worker: Worker, jobs: Sequence[Job]) -> None:
        stops = 0
        for job in jobs:
            if self.failure is not None:
                return
            if job.kind == "mutants" and any(not self.proofs[one].proved for one in jobs if one in self.proofs):
                # Of a rule that is wrong every mutant is wrong.
                pass
            elif stops >= _MOST_STOPS:
                self.problems[job] = f"{job}: not tried, because {job.rule} has stopped {stops} processes already"
            else:
                try:
                    self.ask(worker, job)
                except Stopped as stopped:
                    stops += 1
                    self.stopped(job, stopped)
                except JobError as error:
                    self.problems[job] = f"{job}: {error}"
            with self.lock:
                self.done += 1
                self.progress(job, self.done, self.total)

    def ask(self, worker: Worker, job: Job) -> None:
        request = self.request
        if job.kind == "prove":
            asked: dict[str, Any] = {"kind": "prove", "rule": job.rule, "dtype": job.dtype, "provider": job.provider}
            self.proofs[job] = proof_of(worker.ask(asked | {"examples": request.examples, "seed": request.seed}))
        elif job.kind == "mutants":
            found = worker.ask({"kind": "mutants", "rule": job.rule})
            self.scores[job] = Score(**{**found, "survivors": tuple(found["survivors"])})
        else:
            self.timings[job] = timed_of(worker.ask({"kind": "time", "rule": job.rule, "number": job.number}))

    def stopped(self, job: Job, stopped: Stopped) -> None:
        if job.kind == "prove" and not stopped.outside:
            self.proofs[job] = _stopped(job, self.request.setup.device, stopped)
        else:
            self.problems[job] = f"{job}: {stopped}"

    def measure_ceilings(self, worker: Worker) -> None:
        job = Job(kind="ceilings", rule="the card")
        try:
            self.ceilings = Ceilings(**worker.ask({"kind": "ceilings"}))
        except (Stopped, JobError) as error:
            self.problems[job] = f"{job}: {error}"


def _known(option: str, asked: Sequence[str], there: Sequence[str]) -> None:
    for name in asked:
        if name not in there:
            near = difflib.get_close_matches(name, there, n=1)
            known = sorted(set(there))
            what = (
                f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known[:12])}" if known else "none"
            )
            raise UnknownChoice(f"{option}: found {name!r}, which nothing here has; {what}")


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


def _results(setup: Setup, about: Mapping[str, Any], **found: Any) -> Results:
    notes = tuple(f"the {name} providers are missing: {reason}" for name, reason in about["missing"].items())
    return Results(
        machine=Machine(**about["machine"]),
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        sources=() if setup.sources == ("default",) else setup.sources,
        rules={rule["id"]: rule["digest"] for rule in about["rules"]},
        notes=notes,
        **found,
    )
