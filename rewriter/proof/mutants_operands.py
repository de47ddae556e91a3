"""The pattern as it is on operands that its entry does not draw: other constants, dtypes, ranks, shapes, or none."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch

from rewriter.graph.facts import DTYPES
from rewriter.language.conditions import TensorInput
from rewriter.language.expressions import Expression
from rewriter.language.kinds import Kind
from rewriter.language.rule import Rule
from rewriter.language.syntax import Constant, Var
from rewriter.proof.mutants_constants import others
from rewriter.proof.mutants_program import Mutant, Operands, constant_text

# What takes the place of a tensor; None where that is impossible.
Change = Callable[[torch.Tensor], torch.Tensor | None]

_DTYPES = ("f64", "f32", "f16", "bf16", "i64")


def mutants(rule: Rule) -> Iterator[Mutant]:
    """The mutants of a completed rule that differ from its own examples in their operands alone."""
    tensors = [name for name, given in rule.inputs.items() if isinstance(given, TensorInput)]
    yield from _constants(rule)
    for dtype in _DTYPES:
        yield _mutant(rule, "dtype", f"all tensors are {dtype}", _each(tensors, _as(dtype)))
        for name in tensors:
            yield _mutant(rule, "dtype", f"{name} is {dtype}", _each([name], _as(dtype)))
    for change, words in ((_more, "one dimension more"), (_fewer, "one dimension fewer")):
        for name in tensors:
            yield _mutant(rule, "rank", f"{name} has {words}", _each([name], change))
        yield _mutant(rule, "rank", f"all tensors have {words}", _each(tensors, change))
        peers = _peers(rule)
        yield _mutant(rule, "rank", f"{', '.join(peers)} have {words}", _each(peers, change))
    for name in tensors:
        yield from _shapes(rule, name)
        yield _mutant(rule, "operand dropped", f"{name} is None", _dropped(name))
        yield _mutant(rule, "single sibling", f"one {name} alone", _first_alone)
    if any(condition.weight for condition in rule.where.values()) or rule.prepare:
        where = {name: dataclasses.replace(c, weight=None) for name, c in rule.where.items()}
        loose = dataclasses.replace(rule, where=where, prepare=())
        yield _mutant(loose, "no weight", "the weights are operands like others", None)


def _mutant(rule: Rule, family: str, description: str, alter: Callable[[Operands], Operands | None] | None) -> Mutant:
    return Mutant(of="program", family=family, description=description, entry=rule, alter=alter)


def _each(names: list[str], change: Change) -> Callable[[Operands], Operands | None]:
    """Changes the named operands; of siblings the first."""

    def alter(operands: Operands) -> Operands | None:
        changed = dict(operands)
        for name in names:
            value = operands[name]
            old = value[0] if isinstance(value, list) else value
            new = change(old) if isinstance(old, torch.Tensor) else None
            if new is None:
                return None
            changed[name] = [new, *value[1:]] if isinstance(value, list) else new
        return changed

    return alter


def _as(dtype: str) -> Change:
    kind = DTYPES[dtype]

    def change(x: torch.Tensor) -> torch.Tensor | None:
        if x.dtype == kind:
            return None
        # torch has no `nan_to_num` of eight bits.
        readable = x.to(torch.float16) if x.dtype == torch.float8_e4m3fn else x
        return readable.nan_to_num().to(kind)

    return change


def _more(x: torch.Tensor) -> torch.Tensor:
    return x.unsqueeze(0)


def _fewer(x: torch.Tensor) -> torch.Tensor | None:
    return x[0] if x.dim() and x.shape[0] else None


def _peers(rule: Rule) -> list[str]:
    """The tensors of as many dimensions as the first one: most likely the activations."""
    ranks = {name: len(given.shape) for name, given in rule.inputs.items() if isinstance(given, TensorInput)}
    first = next(iter(ranks.values()))
    return [name for name, rank in ranks.items() if rank == first]


def _shapes(rule: Rule, name: str) -> Iterator[Mutant]:
    given = rule.inputs[name]
    assert isinstance(given, TensorInput)
    for dim in range(len(given.shape)):
        for words, change in (("1", _one(dim)), ("one less", _less(dim)), ("doubled", _doubled(dim))):
            description = f"dimension {dim} of {name} is {words}"
            yield _mutant(rule, "shape", description, _each([name], change))


def _one(dim: int) -> Change:
    return lambda x: x.narrow(dim, 0, 1) if x.shape[dim] > 1 else None


def _less(dim: int) -> Change:
    return lambda x: x.narrow(dim, 0, x.shape[dim] - 1) if x.shape[dim] > 1 else None


def _doubled(dim: int) -> Change:
    return lambda x: torch.cat((x, x), dim)


def _dropped(name: str) -> Callable[[Operands], Operands | None]:
    def alter(operands: Operands) -> Operands | None:
        value = operands[name]
        return {**operands, name: [None] * len(value) if isinstance(value, list) else None}

    return alter


def _first_alone(operands: Operands) -> Operands | None:
    if not any(isinstance(value, list) and value and isinstance(value[0], torch.Tensor) for value in operands.values()):
        return None
    return {
        name: value[:1]
        if isinstance(value, list) and value and (value[0] is None or isinstance(value[0], torch.Tensor))
        else value
        for name, value in operands.items()
    }


def _constants(rule: Rule) -> Iterator[Mutant]:
    """Each constant that the pattern leaves free, at values beside those of the entry."""
    for name, given in rule.inputs.items():
        place = _argument(rule, name)
        if isinstance(given, TensorInput) or place is None:
            continue
        argument, kind = place
        first = given.choices[0]
        base = _plain(first)
        for value in others(base, argument, kind) if base is not _UNKNOWN else ():
            description = f"{name} is {constant_text(value)}"
            yield _mutant(rule, "free constant", description, _set(name, value))
        if base is _UNKNOWN:
            yield _mutant(rule, "free constant", f"{name} is one more", _counted(name, 1))
            yield _mutant(rule, "free constant", f"{name} is 1", _set(name, 1))


_UNKNOWN = object()


def _plain(choice: Any) -> Any:
    """A choice of the entry, or _UNKNOWN where it depends on the drawn extents."""
    if isinstance(choice, Expression):
        return _UNKNOWN
    if isinstance(choice, tuple) and any(_plain(item) is _UNKNOWN for item in choice):
        return _UNKNOWN
    return choice


def _argument(rule: Rule, name: str) -> tuple[str, Kind] | None:
    """The schema's name and type for what an operand is read as."""
    for step in rule.match:
        call = step.calls[0]
        for slot, operand in enumerate(call.operands):
            if isinstance(operand, Var) and operand.name == name:
                return call.names[slot], call.types[slot]
    return None


def _set(name: str, value: Constant) -> Callable[[Operands], Operands | None]:
    plain = list(value) if isinstance(value, tuple) else value
    return lambda operands: None if operands[name] == plain else {**operands, name: plain}


def _counted(name: str, by: int) -> Callable[[Operands], Operands | None]:
    def alter(operands: Operands) -> Operands | None:
        value = operands[name]
        return {**operands, name: value + by} if isinstance(value, int) else None

    return alter
