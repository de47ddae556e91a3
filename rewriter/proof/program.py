"""A rule's pattern as a program: run op by op as the reference, and captured as a module for the engine."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from rewriter import torch_ir
from rewriter.graph.canonical import canonicalise
from rewriter.graph.facts import DTYPE_CODES, DTYPES
from rewriter.language.rule import Call, Rule, Step
from rewriter.language.syntax import Literal, Operand, Sequence, Var
from rewriter.proof.fences import restore, snapshot
from rewriter.proof.sample import Sample, weights_of

_FLOATING = tuple(code for name, code in DTYPE_CODES.items() if DTYPES[name].is_floating_point)


class PatternModule(torch.nn.Module):
    """Runs the pattern of a rule on tensors. Operands that must be weights are parameters, the others arguments."""

    def __init__(self, rule: Rule, sample: Sample, *, choice: int = 0) -> None:
        super().__init__()
        self.rule = rule
        self.choice = choice
        self.operands = dict(sample.operands)
        self.arguments: list[tuple[str, int | None]] = []
        weights = weights_of(rule)
        for name, position, tensor in _tensors(sample.operands):
            if name in weights:
                self.register_parameter(f"{name}_{position or 0}", torch.nn.Parameter(tensor, requires_grad=False))
            else:
                self.arguments.append((name, position))

    def example(self) -> list[torch.Tensor]:
        """The tensors to call the module with."""
        return [
            self.operands[name] if position is None else self.operands[name][position]
            for name, position in self.arguments
        ]

    def forward(self, *tensors: torch.Tensor, names: dict[str, Any] | None = None) -> tuple[torch.Tensor, ...]:
        """The pattern's outputs, inverted. `names`: a dict to leave every value in, by its name."""
        names = {} if names is None else names
        names.update({name: list(v) if isinstance(v, list) else v for name, v in self.operands.items()})
        for name, parameter in self.named_parameters():
            operand, number = name.rsplit("_", 1)
            if isinstance(names[operand], list):
                names[operand][int(number)] = parameter
            else:
                names[operand] = parameter
        for (name, position), tensor in zip(self.arguments, tensors, strict=True):
            if position is None:
                names[name] = tensor
            else:
                names[name][position] = tensor
        for step in self.rule.match:
            run_step(step, names, self.choice)
        found = [names[name] for name in self.rule.outputs]
        # A rule that makes a new tensor an alias of an input may not do so with what the graph returns, so that the
        # results are read once more, as in a network.
        return tuple(map(inverted, flat(found)))


def inverted(x: torch.Tensor) -> torch.Tensor:
    """A new tensor that holds what x holds, by one op that loses nothing."""
    if x.dtype == torch.float8_e4m3fn:
        return x.to(torch.float32)
    return torch.logical_not(x) if x.dtype == torch.bool else torch.neg(x)


# Kinds of the nodes that `inverted` records.
INVERSIONS = ("aten::neg", "aten::logical_not", "aten::to")


def run_step(step: Step, names: dict[str, Any], choice: int = 0, *, wide: str | None = None) -> None:
    """Computes one statement and binds its results. `choice`: which of its alternative ops.

    `wide`: a dtype that stands for every floating dtype that the statement names.
    """
    call = step.calls[choice % len(step.calls)]
    if step.statement.choice is not None:
        names[step.statement.choice] = call.op.split("::")[1]
    if step.statement.starred and not call.unpacks:
        count = max(len(value) for value in (names[v.name] for v in _starred(call)))
        names[step.targets[0]] = [_call(call, names, position, wide) for position in range(count)]
        return
    result = _call(call, names, None, wide)
    results = list(result) if call.unpacks or len(step.targets) > 1 else [result]
    if step.statement.starred:
        names[step.targets[0]] = results
    else:
        names.update(zip(step.targets, results, strict=True))


def capture(module: PatternModule) -> tuple[torch_ir.Graph, list[torch.Tensor]]:
    """The canonical graph of the pattern and the weights that it reads; what the pattern writes to stays as it was."""
    tensors = [*module.example(), *module.parameters()]
    before = snapshot(tensors)
    graph, weights = torch_ir.trace(module, module.example())
    restore(tensors, before)
    canonicalise(graph)
    return graph, weights


def flat(values: Iterable[Any]) -> Iterator[Any]:
    """Every value; those of repeated siblings one by one."""
    for value in values:
        yield from value if isinstance(value, list) else (value,)


def _tensors(operands: dict[str, Any]) -> Iterator[tuple[str, int | None, torch.Tensor]]:
    for name, value in operands.items():
        if isinstance(value, torch.Tensor):
            yield name, None, value
        elif isinstance(value, list):
            for position, item in enumerate(value):
                if isinstance(item, torch.Tensor):
                    yield name, position, item


def _starred(call: Call) -> list[Var]:
    return [operand for operand in call.operands if isinstance(operand, Var) and operand.starred]


def _call(call: Call, names: dict[str, Any], position: int | None, wide: str | None) -> Any:
    op, by_keyword = _resolved(call.op, call.names)
    positional, keywords = [], {}
    for name, operand in zip(call.names, call.operands, strict=True):
        value = _value(operand, names, position)
        if wide is not None and name == "dtype" and value in _FLOATING:
            # Every op of torch that takes a dtype calls it so, and takes its number.
            value = DTYPE_CODES[wide]
        if name in by_keyword:
            keywords[name] = value
        else:
            positional.append(value)
    return op(*positional, **keywords)


@functools.cache
def _resolved(called: str, names: tuple[str, ...]) -> tuple[Any, frozenset[str]]:
    """An op and which of its arguments are given by their names. Schemas are slow to read."""
    namespace, name = called.split("::")
    op = getattr(getattr(torch.ops, namespace), name)
    # Overloads with the same argument names differ in types only, which torch resolves from the values.
    arguments = next(
        overload._schema.arguments
        for overload in (getattr(op, each) for each in op.overloads())
        if tuple(argument.name for argument in overload._schema.arguments) == names
    )
    return op, frozenset(argument.name for argument in arguments if argument.kwarg_only)


def _value(operand: Operand, names: dict[str, Any], position: int | None) -> Any:
    if isinstance(operand, Literal):
        return list(operand.value) if isinstance(operand.value, tuple) else operand.value
    if isinstance(operand, Sequence):
        return [_value(item, names, position) for item in operand.items]
    if isinstance(operand, Var):
        value = names[operand.name]
        return value[position] if operand.starred and position is not None else value
    raise LookupError("an operand without a value in the pattern")
