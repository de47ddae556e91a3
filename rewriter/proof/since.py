"""What earlier results still say, what is left to be tried beside it, and both together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from rewriter.proof.jobs import Job, Plan
from rewriter.proof.outcome import Proof
from rewriter.proof.results import FALLBACKS, Basis, Machine, Results, Score, Timed

_About = TypeVar("_About", Proof, Score, Timed)


def bases(rules: Sequence[Mapping[str, Any]], date: str) -> dict[str, Basis]:
    """What results of that date are of, by rule, for the rules as a worker describes them."""
    return {rule["id"]: Basis(digest=rule["digest"], code=rule["code"], date=date) for rule in rules}


def still_true(old: Results, machine: Machine, rules: Mapping[str, Basis]) -> Results:
    """The old results about these rules, less those of another machine, another rule of the name, or other code."""
    same = {
        rule: basis
        for rule, basis in old.rules.items()
        if old.machine == machine and rule in rules and basis.same(rules[rule])
    }
    return dataclasses.replace(
        old,
        rules=same,
        proofs=tuple(proof for proof in old.proofs if proof.rule in same),
        scores=tuple(score for score in old.scores if score.rule in same),
        timings=tuple(timed for timed in old.timings if timed.rule in same),
    )


def remaining(plan: Plan, kept: Results, examples: int) -> Plan:
    """The jobs of the plan that the results do not answer: by so many examples each, and the times at every site."""
    answered = set(_answered(kept, examples))
    sites = [timed.rule for timed in kept.timings]
    planned = [job.rule for job in plan.timings]
    timed = {rule for rule in planned if sites.count(rule) == planned.count(rule)}
    groups = [[job for job in group if job not in answered] for group in plan.proofs]
    return Plan(
        proofs=[group for group in groups if group],
        compilations=[job for job in plan.compilations if job.rule not in timed],
        timings=[job for job in plan.timings if job.rule not in timed],
    )


def _answered(kept: Results, examples: int) -> Iterator[Job]:
    for proof in kept.proofs:
        job = Job(kind="prove", rule=proof.rule, dtype=proof.dtype, provider=proof.provider)
        cut = any(problem.startswith(f"{job}: ") for problem in kept.problems)
        if not cut and (not proof.proved or proof.examples + proof.unsupported >= examples):
            yield job
    # Of a rule that is wrong no mutants are tried.
    for rule in {*(score.rule for score in kept.scores), *(proof.rule for proof in kept.failed)}:
        yield Job(kind="mutants", rule=rule)


def changes(old: Results, machine: Machine, rules: Mapping[str, Basis], plan: Plan) -> str:
    """In a line: which rules are proved anew since the old results, and why; the `plan` has what remains."""
    if old.machine != machine:
        why = ", ".join(_differences(old.machine, machine))
        return f"all is proved anew, because the verdict of {old.date} is of another machine: {why}"
    jobs = [job for group in (*plan.proofs, plan.timings) for job in group]
    reasons: dict[str, list[str]] = {}
    for rule in dict.fromkeys(job.rule for job in jobs):
        reasons.setdefault(_reason(old.rules.get(rule), rules[rule]), []).append(rule)
    if not reasons:
        return f"nothing has changed since {old.date}, so nothing is proved anew"
    named = "; ".join(f"{reason}: {', '.join(names)}" for reason, names in reasons.items())
    return f"proved anew since {old.date}, the rest is kept: {named}"


def _reason(old: Basis | None, new: Basis) -> str:
    if old is None:
        return "not in it"
    if old.digest != new.digest:
        return "another rule"
    return "not all done" if old.same(new) else "of other code"


def _differences(old: Machine, new: Machine) -> Iterator[str]:
    before, after = ({**one.versions, "device": one.device, "name": one.name, "sm": one.sm} for one in (old, new))
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name):
            yield f"{name} found {after.get(name, 'none')}, there {before.get(name, 'none')}"


def merged(old: Results, new: Results) -> Results:
    """The new results, and the old ones about what was not tried again. Nothing of another machine or code stays."""
    if old.machine != new.machine:
        return new
    # Rules of other files are not in the new results, and nothing is known against them.
    old = still_true(old, new.machine, {**old.rules, **new.rules})
    proved = {(proof.rule, proof.dtype, proof.provider) for proof in new.proofs}
    scored, timed = {score.rule for score in new.scores}, {one.rule for one in new.timings}
    proofs = [proof for proof in old.proofs if (proof.rule, proof.dtype, proof.provider) not in proved]
    scores = [score for score in old.scores if score.rule not in scored]
    timings = [one for one in old.timings if one.rule not in timed]
    rules = {**old.rules, **new.rules}
    about: tuple[Proof | Score | Timed, ...] = (*proofs, *scores, *timings)
    for rule in {each.rule for each in about}:
        rules[rule] = dataclasses.replace(rules[rule], date=min(rules[rule].date, old.rules[rule].date))
    order = [*new.rules, *old.rules]
    return dataclasses.replace(
        new,
        date=new.date if new.proofs or new.scores or new.timings else old.date,
        rules=rules,
        # A provider that was tried again does not come before the references, with which each rule begins.
        proofs=_ordered(sorted((*new.proofs, *proofs), key=lambda proof: proof.provider not in FALLBACKS), order),
        scores=_ordered((*new.scores, *scores), order),
        timings=_ordered((*new.timings, *timings), order),
        ceilings=new.ceilings or old.ceilings,
    )


def _ordered(found: Iterable[_About], rules: Sequence[str]) -> tuple[_About, ...]:
    """By the rules in their order; what is about one stays in its own."""
    place = {rule: rules.index(rule) for rule in rules}
    return tuple(sorted(found, key=lambda each: place.get(each.rule, len(place))))
