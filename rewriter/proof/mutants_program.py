"""What a mutant is, and changing one thing in the pattern of a rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from rewriter.language.conditions import TensorInput
from rewriter.language.rule import Call, Rule, Step
from rewriter.language.syntax import Argument, Literal, Operand, Place, Sequence, Statement, Target, Var, read_variables

Operands = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mutant:
    """One mutation of a rule.

    `of`: "program" where the rule meets a mutated program and must refuse, or be right for it; "rule" where the
    rule's own pattern is mutated, so that it fires on that pattern and the proof must fail.
    `entry`: the rule's entry with the mutated pattern, from which operands are drawn. `alter`: what is done to the
    drawn operands, which gives None where that is impossible.
    """

    of: str
    family: str
    description: str
    entry: Rule
    alter: Callable[[Operands], Operands | None] | None = None

    @property
    def pattern(self) -> str:
        """The mutated pattern as a rule file has it."""
        return text(self.entry.match)

    def __str__(self) -> str:
        pattern = "\n".join(f"    {line}" for line in self.pattern.splitlines())
        return f"{self.entry.id}, {self.family}: {self.description}\n{pattern}"


def complete(rule: Rule) -> Rule:
    """The rule with the first op of each statement, every default written out and no operand left out."""
    inputs = {
        name: dataclasses.replace(given, optional=False) if isinstance(given, TensorInput) else given
        for name, given in rule.inputs.items()
    }
    steps = tuple(made_step(step.statement, step.calls[0]) for step in rule.match)
    return dataclasses.replace(rule, match=steps, inputs=inputs)


def made_step(statement: Statement, call: Call) -> Step:
    """The statement with this call as its only meaning."""
    arguments = tuple(
        Argument(operand, call.names[slot] if slot >= call.positional else None, Place())
        for slot, operand in enumerate(call.operands)
    )
    return Step(dataclasses.replace(statement, ops=(call.op,), arguments=arguments), (call,))


def with_operand(step: Step, slot: int, operand: Operand) -> Step:
    """The statement with another operand."""
    call = step.calls[0]
    operands = (*call.operands[:slot], operand, *call.operands[slot + 1 :])
    return made_step(step.statement, dataclasses.replace(call, operands=operands))


def with_targets(step: Step, names: Iterable[str]) -> Step:
    """The statement with other names for its results."""
    targets = tuple(
        Target(name, target.starred, target.place) for name, target in zip(names, step.statement.targets, strict=True)
    )
    return Step(dataclasses.replace(step.statement, targets=targets), step.calls)


def renamed(step: Step, names: dict[str, str]) -> Step:
    """The statement with other names for what it reads."""

    def rename(operand: Operand) -> Operand:
        if isinstance(operand, Var):
            return dataclasses.replace(operand, name=names.get(operand.name, operand.name))
        if isinstance(operand, Sequence):
            return Sequence(tuple(map(rename, operand.items)))
        return operand

    call = step.calls[0]
    return made_step(step.statement, dataclasses.replace(call, operands=tuple(map(rename, call.operands))))


def with_steps(rule: Rule, index: int, *steps: Step, count: int = 1) -> Rule:
    """The rule with `steps` in place of `count` of its statements from `index` on."""
    return dataclasses.replace(rule, match=(*rule.match[:index], *steps, *rule.match[index + count :]))


def is_tensor(rule: Rule, name: str) -> bool:
    """Whether a name of the pattern stands for a tensor, or for one tensor per sibling."""
    return isinstance(rule.inputs.get(name), TensorInput) or any(name in step.targets for step in rule.match)


def tensor_slots(rule: Rule, step: Step) -> list[tuple[int, Var]]:
    """The operands of a statement that are tensors by name, with their positions."""
    return [
        (slot, operand)
        for slot, operand in enumerate(step.calls[0].operands)
        if isinstance(operand, Var) and is_tensor(rule, operand.name)
    ]


def pruned(rule: Rule, outputs: Iterable[str]) -> Rule:
    """The rule without the statements that none of its outputs needs."""
    wanted = set(outputs)
    kept: list[Step] = []
    for step in reversed(rule.match):
        if wanted & set(step.targets):
            wanted |= {var.name for var in read_variables(step.statement)}
            kept.insert(0, step)
    return dataclasses.replace(rule, match=tuple(kept))


def text(steps: Iterable[Step]) -> str:
    """Statements as a rule file has them, with every default written out."""
    return "\n".join(_statement(step) for step in steps)


def constant_text(value: object) -> str:
    """A constant as a rule file has it."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(constant_text, value))}]"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _statement(step: Step) -> str:
    targets = ", ".join(target.name + "*" * target.starred for target in step.statement.targets)
    return f"{targets} = {step.calls[0].op}({', '.join(_arguments(step.calls[0]))})"


def _arguments(call: Call) -> Iterator[str]:
    for slot, operand in enumerate(call.operands):
        yield (f"{call.names[slot]}=" if slot >= call.positional else "") + operand_text(operand)


def operand_text(operand: Operand) -> str:
    """An operand as a rule file has it."""
    if isinstance(operand, Var):
        return operand.name + "?" * operand.optional + "*" * operand.starred
    if isinstance(operand, Sequence):
        return f"[{', '.join(map(operand_text, operand.items))}]"
    return constant_text(operand.value) if isinstance(operand, Literal) else "_"
