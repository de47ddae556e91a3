"""Mutants of a rule: programs that differ from its pattern in one thing, and the rule with such a pattern."""

from __future__ import annotations

import dataclasses

from rewriter.language.endless import matches_itself
from rewriter.language.rule import Rule
from rewriter.language.syntax import read_variables
from rewriter.proof import mutants_operands, mutants_statements, mutants_writes
from rewriter.proof.mutants_program import Mutant, complete

__all__ = ["Mutant", "mutants"]


def mutants(rule: Rule) -> list[Mutant]:
    """Every mutant of a rule, in an order that does not change; some turn out to be no program when they are run."""
    base = complete(rule)
    changed = list(mutants_statements.edits(base))
    of_rule = (_of_rule(rule, mutant) for mutant in changed)
    return [
        *changed,
        *mutants_writes.edits(base),
        *mutants_operands.mutants(base),
        *(mutant for mutant in of_rule if _loads(mutant.entry) and not _is_told(mutant)),
    ]


def _of_rule(rule: Rule, mutant: Mutant) -> Mutant:
    """The rule with this pattern: it draws its optional operands as before, and asks nothing of what it lacks."""
    inputs = {name: rule.inputs.get(name, given) for name, given in mutant.entry.inputs.items()}
    bound = _bound(mutant.entry)
    where = {
        name: condition
        for name, condition in rule.where.items()
        if name in bound and condition.dtype_equals in (None, *bound)
    }
    return dataclasses.replace(mutant, of="rule", entry=dataclasses.replace(mutant.entry, inputs=inputs, where=where))


def _is_told(mutant: Mutant) -> bool:
    """Whether another op is no change: the replacement is told which op it was."""
    return mutant.family == "op" and any(step.statement.choice is not None for step in mutant.entry.match)


def _bound(rule: Rule) -> frozenset[str]:
    """Every name of the pattern."""
    return rule.read | {
        name for step in rule.match for name in (*step.targets, step.statement.choice) if name is not None
    }


def _loads(rule: Rule) -> bool:
    """Whether the replacement could serve the pattern: what the loader refuses needs no proof."""
    made = {name for step in rule.match for name in step.targets}
    prepared = {target.name for statement in rule.prepare for target in statement.targets}
    replaced = {name for step in rule.replace for name in step.targets}
    wanted = {var.name for step in rule.replace for var in read_variables(step.statement)}
    wanted |= {var.name for statement in rule.prepare for var in read_variables(statement)}
    known = _bound(rule) - made | prepared | replaced
    return wanted <= known and set(rule.outputs) <= replaced and _is_connected(rule) and not matches_itself(rule)


def _is_connected(rule: Rule) -> bool:
    """Whether every statement has a name in common with others, the last one's included."""
    groups = [set(step.targets) | {var.name for var in read_variables(step.statement)} for step in rule.match]
    reached = groups.pop()
    while near := [group for group in groups if group & reached]:
        reached = reached.union(*near)
        groups = [group for group in groups if group not in near]
    return not groups
