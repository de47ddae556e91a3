"""Patterns with another constant, another op, exchanged operands, another operand, or a statement left out."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

from rewriter.language.conditions import TensorInput
from rewriter.language.rule import Call, Rule, Step
from rewriter.language.schemas import ResolveError, resolve
from rewriter.language.syntax import Argument, Literal, Place, Var, read_variables
from rewriter.ops import OPS
from rewriter.proof.mutants_constants import others
from rewriter.proof.mutants_program import (
    Mutant,
    constant_text,
    made_step,
    pruned,
    renamed,
    tensor_slots,
    with_operand,
    with_steps,
    with_targets,
)

# Ops of one family: each is taken for the others by a pattern that looks at too little.
_SIBLINGS = (
    ("relu", "sigmoid", "tanh", "silu", "gelu"),
    ("add", "sub", "mul", "div"),
    ("rsqrt", "sqrt", "reciprocal"),
    ("mean", "sum", "amax"),
    ("softmax", "log_softmax"),
)


def edits(rule: Rule) -> Iterator[Mutant]:
    """The programs with a changed pattern of a completed rule."""
    for index, step in enumerate(rule.match):
        yield from _constants(rule, index, step)
        yield from _ops(rule, index, step)
        yield from _exchanged(rule, index, step)
        yield from _operands(rule, index, step)
        yield from _absent(rule, index, step)
        yield from _given(rule, index, step)
        yield from _left_out(rule, index, step)


def _edit(rule: Rule, family: str, description: str, entry: Rule) -> Mutant:
    return Mutant(of="program", family=family, description=description, entry=pruned(entry, rule.outputs))


def _constants(rule: Rule, index: int, step: Step) -> Iterator[Mutant]:
    call = step.calls[0]
    for slot, operand in enumerate(call.operands):
        if not isinstance(operand, Literal):
            continue
        name = call.names[slot]
        for value in others(operand.value, name, call.types[slot]):
            changed = with_operand(step, slot, Literal(value))
            yield _edit(
                rule,
                "dim" if name.startswith("dim") else "constant",
                f"{name} of {call.op} is {constant_text(value)} instead of {constant_text(operand.value)}",
                with_steps(rule, index, changed),
            )


def _ops(rule: Rule, index: int, step: Step) -> Iterator[Mutant]:
    call = step.calls[0]
    for op in _siblings(call, step):
        changed = _with_op(step, op)
        if changed is not None:
            yield _edit(rule, "op", f"{op} instead of {call.op}", with_steps(rule, index, changed))


def _siblings(call: Call, step: Step) -> Iterator[str]:
    namespace, name = call.op.split("::")
    if namespace == "aten":
        members = next((group for group in _SIBLINGS if name in group), ())
        taken = {each.op for each in step.calls}
        yield from (f"aten::{other}" for other in members if f"aten::{other}" not in taken)
    elif namespace == "rewriter":
        signature = OPS[name].schema.partition("(")[2]
        yield from (
            f"rewriter::{o.name}" for o in OPS.values() if o.name != name and o.schema.endswith(f"({signature}")
        )


def _with_op(step: Step, op: str) -> Step | None:
    """The statement with another op on as many of its operands as that takes, or None."""
    call = step.calls[0]
    for count in range(len(call.operands), 0, -1):
        arguments = tuple(
            Argument(operand, call.names[slot] if slot >= call.positional else None, Place())
            for slot, operand in enumerate(call.operands[:count])
        )
        try:
            (found, *_) = resolve(dataclasses.replace(step.statement, ops=(op,), arguments=arguments))
        except ResolveError:
            continue
        return made_step(step.statement, found)
    return None


def _exchanged(rule: Rule, index: int, step: Step) -> Iterator[Mutant]:
    call = step.calls[0]
    for (one, left), (other, right) in itertools.combinations(tensor_slots(rule, step), 2):
        if left.name == right.name:
            continue
        changed = with_operand(with_operand(step, one, right), other, left)
        yield _edit(
            rule,
            "exchanged operands",
            f"{left.name} and {right.name} of {call.op} exchanged",
            with_steps(rule, index, changed),
        )
    for one, other in itertools.combinations(range(len(step.targets)), 2):
        names = list(step.targets)
        names[one], names[other] = names[other], names[one]
        changed = with_targets(step, names)
        description = f"results {step.targets[one]} and {step.targets[other]} of {call.op} exchanged"
        yield _edit(rule, "exchanged results", description, with_steps(rule, index, changed))


def _operands(rule: Rule, index: int, step: Step) -> Iterator[Mutant]:
    """Another tensor at the place of one: what the pattern has at hand there, and one that it does not have."""
    call = step.calls[0]
    known = [name for name, given in rule.inputs.items() if isinstance(given, TensorInput)]
    known += [name for earlier in rule.match[:index] for name in earlier.targets]
    starred = {var.name for each in rule.match for var in read_variables(each.statement) if var.starred}
    for slot, var in tensor_slots(rule, step):
        for name in known:
            if name != var.name and (name in starred) == var.starred:
                changed = with_operand(step, slot, dataclasses.replace(var, name=name))
                description = f"{call.op} reads {name} instead of {var.name} as {call.names[slot]}"
                yield _edit(rule, "another operand", description, with_steps(rule, index, changed))
        if var.name in rule.inputs and _reads(rule, var.name) > 1:
            other = f"another_{var.name}"
            changed = with_operand(step, slot, dataclasses.replace(var, name=other))
            entry = dataclasses.replace(rule, inputs={**rule.inputs, other: rule.inputs[var.name]})
            description = f"{call.op} reads another tensor than the {var.name} of the other statements"
            yield _edit(rule, "another operand", description, with_steps(entry, index, changed))


def _reads(rule: Rule, name: str) -> int:
    return sum(var.name == name for step in rule.match for var in read_variables(step.statement))


def _absent(rule: Rule, index: int, step: Step) -> Iterator[Mutant]:
    """None at the place of a tensor that the op does not need."""
    call = step.calls[0]
    for slot, var in tensor_slots(rule, step):
        if call.types[slot].optional and not var.optional:
            changed = with_operand(step, slot, Literal(None))
            description = f"{call.op} has no {call.names[slot]}"
            yield _edit(rule, "operand dropped", description, with_steps(rule, index, changed))


def _given(rule: Rule, index: int, step: Step) -> Iterator[Mutant]:
    """A tensor at the place of None; its shape is one of those that the rule has."""
    call = step.calls[0]
    shapes = {
        given.shape: given for given in rule.inputs.values() if isinstance(given, TensorInput) and not given.count
    }
    for slot, operand in enumerate(call.operands):
        kind = call.types[slot]
        if operand != Literal(None) or not (kind.optional and kind.name == "TensorType"):
            continue
        for given in shapes.values():
            entry = dataclasses.replace(rule, inputs={**rule.inputs, "added": given})
            changed = with_operand(step, slot, Var("added"))
            extents = ", ".join(map(str, given.shape))
            description = f"{call.op} has a {call.names[slot]} [{extents}]"
            yield _edit(rule, "operand added", description, with_steps(entry, index, changed))


def _left_out(rule: Rule, index: int, step: Step) -> Iterator[Mutant]:
    """The pattern without the statement: its operand stands for its result."""
    if len(rule.match) == 1 or step.statement.starred:
        return
    for var in dict.fromkeys(var for _, var in tensor_slots(rule, step)):
        entry = _without(rule, index, step, var.name)
        if entry is not None:
            description = f"no {step.calls[0].op}: {var.name} stands for {' and '.join(step.targets)}"
            yield _edit(rule, "statement left out", description, entry)


def _without(rule: Rule, index: int, step: Step, operand: str) -> Rule | None:
    rest = with_steps(rule, index)
    if not set(step.targets) & set(rule.outputs):
        names = dict.fromkeys(step.targets, operand)
        return dataclasses.replace(rest, match=tuple(renamed(each, names) for each in rest.match))
    makers = [number for number, each in enumerate(rest.match[:index]) if operand in each.targets]
    if not makers or len(step.targets) > 1:
        return None
    # The value that takes the place of a result takes its name too.
    names = {operand: step.targets[0]}
    maker = rest.match[makers[0]]
    maker = with_targets(maker, [names.get(name, name) for name in maker.targets])
    changed = with_steps(rest, makers[0], maker)
    return dataclasses.replace(changed, match=tuple(renamed(each, names) for each in changed.match))
