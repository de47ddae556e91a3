"""Makes the prepared weights that replacements read: one graph input per recipe, shared by all that ask for it."""

from __future__ import annotations

from typing import Any

from rewriter import torch_ir
from rewriter.graph.conditions import Judgement
from rewriter.graph.facts import DTYPES
from rewriter.graph.inference import Impossible, Inference
from rewriter.graph.match import Match
from rewriter.graph.prepare import Option, Prepared
from rewriter.graph.view import Value, View
from rewriter.language.preparation import PREPARATIONS, Preparation
from rewriter.language.syntax import Computed, Literal, Operand, Sequence, Statement, Var

# What a name stands for while a replacement is built; a tuple is a list constant from `extents`.
Operandlike = Value | list[Value] | str | tuple[int, ...] | None


class Recipes:
    """The prepared weights of one graph. `made`: each recipe with its input, in the order of the inputs."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.made: dict[Prepared, Value] = {}

    def prepare(self, match: Match, judgement: Judgement, inference: Inference) -> dict[str, Operandlike]:
        """The names that the replacement may read. Adds a graph input per new prepared weight. Raises Impossible."""
        names: dict[str, Operandlike] = dict(match.bound)
        for statement in match.pattern.rule.prepare:
            names[statement.targets[0].name] = self.preparation(statement, names, judgement, inference)
        return names

    def withdraw(self, count: int) -> None:
        """Takes back the prepared weights after the first `count`."""
        while len(self.made) > count:
            self.made.popitem()
            self.view.graph.eraseInput(len(self.view.inputs) + len(self.view.weights) + len(self.made))

    def preparation(
        self, statement: Statement, names: dict[str, Operandlike], judgement: Judgement, inference: Inference
    ) -> Operandlike:
        function = statement.ops[0].removeprefix("prepare::")
        kind = PREPARATIONS[function]
        sources = _sources(statement, names)
        if all(value.constant is None for value in sources):
            return None
        if kind.optional:
            sources = [value for value in sources if value.constant is not None]
        options = _options(statement, kind, judgement)
        if kind.static:
            return tuple(_extent(value, options["dim"]) for value in sources)
        for value in sources:
            if not value.is_weight:
                raise Impossible(f"{value.name} is not a weight")
        recipe = Prepared(
            function=function,
            sources=tuple(v.number if v.role == "weight" else len(self.view.weights) + v.number for v in sources),
            options=tuple(sorted(options.items())),
        )
        if recipe not in self.made:
            facts = inference.prepared(recipe, sources)
            value = Value(self.view.graph.addInput(), None, "prepared", len(self.made))
            assert facts.shape is not None
            assert facts.strides is not None
            source = sources[0].ir.type()
            if source.device() is not None:
                source = torch_ir.tensor_type(facts.shape, facts.strides, DTYPES[facts.dtype], source.device())
            value.ir.setType(source)
            value.facts = facts
            self.made[recipe] = value
        return self.made[recipe]


def computed(operand: Computed, judgement: Judgement) -> int:
    """The number that an expression gives. Raises Impossible if a symbol of it is unknown."""
    value = operand.expression.evaluate(judgement.symbols)
    if value is None:
        raise Impossible(f"{operand.expression} cannot be computed")
    judgement.read(operand.expression)
    return value


def _sources(statement: Statement, names: dict[str, Operandlike]) -> list[Value]:
    sources: list[Value] = []
    for argument in statement.arguments:
        if isinstance(argument.operand, Var):
            bound = names[argument.operand.name]
            sources += [v for v in (bound if isinstance(bound, list) else [bound]) if isinstance(v, Value)]
    return sources


def _options(statement: Statement, kind: Preparation, judgement: Judgement) -> dict[str, Any]:
    options: dict[str, Any] = {name: default for name, default in kind.options if default is not None}
    given = [argument for argument in statement.arguments if not isinstance(argument.operand, Var)]
    for index, argument in enumerate(given):
        options[argument.keyword or kind.options[index][0]] = _option(argument.operand, judgement)
    return options


def _option(operand: Operand, judgement: Judgement) -> Option:
    if isinstance(operand, Literal):
        return operand.value  # type: ignore[return-value]
    if isinstance(operand, Computed):
        return computed(operand, judgement)
    assert isinstance(operand, Sequence)
    return tuple(_option(item, judgement) for item in operand.items)  # type: ignore[misc]


def _extent(value: Value, dim: int) -> int:
    facts = value.facts
    if facts is None or facts.shape is None or not -facts.rank <= dim < facts.rank or not value.is_weight:
        raise Impossible(f"the extents of {value.name} are not those of a weight")
    return facts.shape[dim]
