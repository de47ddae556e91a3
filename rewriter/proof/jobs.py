"""What a campaign of proofs is asked for, and the jobs that this makes."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rewriter.errors import RewriterError
from rewriter.proof.pool import Setup
from rewriter.proof.results import Results


class UnknownChoice(RewriterError, ValueError):
    """A rule, dtype or provider that was asked for and is not there."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to prove. Empty `rules`, `dtypes`, `providers`: all that there are. `seed`: None repeats the same examples.

    `jobs`: worker processes at once, or fewer where a GPU has no memory for so many. What is timed is in the setup.
    `within`: seconds after which what is not done is left; None for as long as it takes.
    `since`: earlier results; what they still say about the same rule, code and machine is kept and not tried again.
    """

    setup: Setup
    rules: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    examples: int = 50
    seed: int | None = None
    mutants: bool = True
    jobs: int = 1
    within: float | None = None
    since: Results | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One question to a worker: a proof of a rule in a dtype by a provider, its mutants, or its time at one site."""

    kind: str
    rule: str
    dtype: str = ""
    provider: str = ""
    number: int = 0

    def __str__(self) -> str:
        kind = "" if self.kind == "prove" else f"{self.kind} {self.number}" if self.kind in _SITED else self.kind
        return " ".join(filter(None, (self.rule, self.dtype, self.provider, kind)))


# Jobs that are named one by one where they were not done.
_NAMED = 8
# Kinds of jobs about a rule's site of that number.
_SITED = ("compile", "time")


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """The jobs in the order of the results. `proofs`: by groups that one worker does in turn; `compilations` of what
    `timings` runs, job by job the same sites."""

    proofs: list[list[Job]]
    compilations: list[Job]
    timings: list[Job]

    def first(self) -> list[list[Job]]:
        """What many workers can do at once, in the order in which it is begun: what takes longest comes first."""
        groups = sorted(self.proofs, key=lambda group: not any("triton" in job.provider for job in group))
        return [*groups, *([job] for job in self.compilations)]


def planned(request: Request, rules: Sequence[Mapping[str, Any]]) -> Plan:
    """The jobs for the rules as a worker describes them. Raises UnknownChoice."""
    known("--rule", request.rules, [rule["id"] for rule in rules])
    chosen = [rule for rule in rules if not request.rules or rule["id"] in request.rules]
    known("--dtype", request.dtypes, [dtype for rule in chosen for dtype in rule["dtypes"]])
    known("--provider", request.providers, [name for rule in chosen for name in rule["providers"]])
    proofs: list[list[Job]] = []
    sites: list[tuple[int, Job]] = []
    for rule in chosen:
        group = list(_proofs(request, rule))
        # Whether mutants are tried depends on the rule's proofs; otherwise each can go to another worker.
        proofs += [group] if request.mutants else [[job] for job in group]
        if rule["providers"]:
            heaviest = sorted(range(len(rule["sites"])), key=lambda number: -rule["sites"][number])
            sites += [
                (place, Job(kind="time", rule=rule["id"], number=number)) for place, number in enumerate(heaviest)
            ]
    # The heaviest sites of all rules come before any rule's next ones.
    timings = [job for _, job in sorted(sites, key=lambda each: each[0])]
    return Plan(
        proofs=[group for group in proofs if group],
        compilations=[dataclasses.replace(job, kind="compile") for job in timings],
        timings=timings,
    )


def _proofs(request: Request, rule: Mapping[str, Any]) -> Iterator[Job]:
    for provider in rule["providers"]:
        for dtype in rule["dtypes"]:
            if provider in (request.providers or (provider,)) and dtype in (request.dtypes or (dtype,)):
                yield Job(kind="prove", rule=rule["id"], dtype=dtype, provider=provider)
    if rule["providers"] and request.mutants:
        yield Job(kind="mutants", rule=rule["id"])


def known(option: str, asked: Sequence[str], there: Sequence[str]) -> None:
    """Raises UnknownChoice where something is asked for that is not there."""
    for name in asked:
        if name not in there:
            near = difflib.get_close_matches(name, there, n=1)
            names = sorted(set(there))
            what = (
                f"did you mean {near[0]}?" if near else f"expected one of {', '.join(names[:12])}" if names else "none"
            )
            raise UnknownChoice(f"{option}: found {name!r}, which nothing here has; {what}")


def left(undone: Mapping[Job, str]) -> Iterator[str]:
    """The jobs that were not done, by the reason, in a line each."""
    for reason in dict.fromkeys(undone.values()):
        jobs = [str(job) for job, other in undone.items() if other == reason and job.kind != "compile"]
        more = f" and {len(jobs) - _NAMED} more" if len(jobs) > _NAMED else ""
        if jobs:
            yield f"{len(jobs)} not done, {reason}: {', '.join(jobs[:_NAMED])}{more}"
