"""Patterns with a further reader or a write in between: the surroundings that a match must not have."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from rewriter.language.conditions import Condition, Input, TensorInput
from rewriter.language.rule import Rule, Step
from rewriter.language.schemas import resolve
from rewriter.language.syntax import Argument, Literal, Operand, Place, Statement, Target, Var, read_variables
from rewriter.proof.mutants_program import Mutant, made_step, renamed, with_steps


def edits(rule: Rule) -> Iterator[Mutant]:
    """The programs around a completed rule's pattern."""
    yield from _second_uses(rule)
    yield from _writes(rule, -1)
    for index, step in enumerate(rule.match):
        if step.statement.starred and not step.calls[0].unpacks:
            yield from _writes_between_siblings(rule, index, step)
        else:
            yield from _writes(rule, index)


def _second_uses(rule: Rule) -> Iterator[Mutant]:
    for step in rule.match:
        for name in step.targets:
            if name not in rule.outputs:
                entry = dataclasses.replace(rule, may_escape=(*rule.may_escape, name))
                yield Mutant(of="program", family="second use", description=f"{name} is also used outside", entry=entry)


def _writes(rule: Rule, index: int) -> Iterator[Mutant]:
    """A write after the statement at `index`, to everything that is there by then; at the start where it is -1."""
    inputs = _operands(rule)
    made = [name for step in rule.match[: index + 1] for name in step.targets]
    place = f"after {rule.match[index].calls[0].op}" if index >= 0 else "before all"
    for name in (*inputs, *made):
        for way, steps in (("", _write(name)), (" through a view", _write_to_view(name))):
            entry = with_steps(rule, index + 1, *steps, count=0)
            yield _write_mutant(entry, f"a write to {name}{way} {place}", name if name in inputs else None)


def _write_mutant(entry: Rule, description: str, written: str | None) -> Mutant:
    """An operand that is written to is read once more at the end; a value from inside would have a second use."""
    if written is not None:
        entry = dataclasses.replace(entry, match=(*entry.match, _step("after", "aten::neg", Var(written))))
    return Mutant(of="program", family="write", description=description, entry=entry)


def _operands(rule: Rule) -> list[str]:
    """The tensors of the rule, siblings' own left out."""
    starred = {var.name for step in rule.match for var in read_variables(step.statement) if var.starred}
    return [name for name, given in rule.inputs.items() if isinstance(given, TensorInput) and name not in starred]


def _write(name: str) -> tuple[Step, ...]:
    return (_step("written", "aten::add_", Var(name), Literal(1)),)


def _write_to_view(name: str) -> tuple[Step, ...]:
    return (_step("view", "aten::select", Var(name), Literal(0), Literal(0)), *_write("view"))


def _step(target: str, op: str, *operands: Operand) -> Step:
    arguments = tuple(Argument(operand, None, Place()) for operand in operands)
    statement = Statement((Target(target, False, Place()),), (op,), arguments, None, Place())
    return made_step(statement, resolve(statement)[0])


def _writes_between_siblings(rule: Rule, index: int, step: Step) -> Iterator[Mutant]:
    """Two siblings by name, with a write to a shared operand after the first."""
    names = {var.name for var in read_variables(step.statement) if var.starred}
    siblings = []
    for number in range(2):
        own = {name: f"{name}_{number}" for name in names}
        target = dataclasses.replace(step.statement.targets[0], name=f"{step.targets[0]}_{number}", starred=False)
        statement = dataclasses.replace(step.statement, targets=(target,))
        siblings.append(_single(renamed(made_step(statement, step.calls[0]), own)))
    entry = dataclasses.replace(with_steps(rule, index, *siblings), inputs=_inputs(rule, names))
    # The parameters are those that the rule's conditions and preparations ask for.
    prepared = {var.name for statement in rule.prepare for var in read_variables(statement)} & names
    where = {f"{name}_{number}": Condition(weight=True) for name in prepared for number in range(2)}
    entry = dataclasses.replace(entry, where=where, prepare=())
    for name in _operands(rule):
        written = with_steps(entry, index + 1, *_write(name), count=0)
        yield _write_mutant(written, f"a write to {name} between the siblings", name)


def _single(step: Step) -> Step:
    """The statement without stars."""
    call = step.calls[0]
    operands = tuple(
        dataclasses.replace(operand, starred=False) if isinstance(operand, Var) else operand
        for operand in call.operands
    )
    return made_step(step.statement, dataclasses.replace(call, operands=operands))


def _inputs(rule: Rule, names: set[str]) -> dict[str, Input]:
    found: dict[str, Input] = {}
    for name, given in rule.inputs.items():
        if name in names and isinstance(given, TensorInput):
            single = dataclasses.replace(given, count=None)
            found.update({f"{name}_{number}": single for number in range(2)})
        else:
            found[name] = given
    return found
