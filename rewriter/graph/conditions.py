"""Decides whether a complete binding satisfies a rule's `where`, `require`, `device` and `gpu`."""

from __future__ import annotations

import dataclasses

from rewriter.graph.facts import DTYPE_CODES
from rewriter.graph.match import Match, same_constant
from rewriter.graph.view import NotConstant, Value
from rewriter.language.conditions import Condition
from rewriter.language.expressions import Expression
from rewriter.language.rule import Rule


@dataclasses.dataclass(slots=True)
class Judgement:
    """`symbols`: the extents that conditions bound. `specialised`: one of them was read from an activation."""

    symbols: dict[str, int] = dataclasses.field(default_factory=dict)
    # Symbols known from weights and constants alone hold for every shape of the inputs.
    stable: set[str] = dataclasses.field(default_factory=set)
    specialised: bool = False

    def read(self, expression: Expression) -> None:
        """Notes that the result depends on the expression."""
        if not expression.names <= self.stable:
            self.specialised = True


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """The machine that the graph is for. `sm`: compute capability such as 90, or None without a GPU."""

    device: str
    sm: int | None = None


def elsewhere(rule: Rule, target: Target) -> str | None:
    """Why the rule is for other machines, or None."""
    if rule.devices and target.device not in rule.devices:
        return f"for {' and '.join(rule.devices)} only"
    if rule.sm is not None and (target.sm is None or not rule.sm.holds(target.sm)):
        return f"needs a GPU of compute capability {rule.sm}, found {target.sm}"
    return None


def judge(match: Match, target: Target) -> Judgement | str:
    """What the conditions found out, or the reason why one does not hold."""
    rule = match.pattern.rule
    reason = elsewhere(rule, target)
    if reason is not None:
        return reason
    for name, condition in rule.where.items():
        bound = match.bound[name]
        if isinstance(bound, str):
            if condition.values is not None and bound not in condition.values:
                return f"{name} is {bound}"
            continue
        if condition.count is not None and not condition.count.holds(len(bound) if isinstance(bound, list) else 1):
            return f"{name} stands for {len(bound) if isinstance(bound, list) else 1} values, wanted {condition.count}"
        for value in bound if isinstance(bound, list) else [bound]:
            reason = _value(name, condition, value, match)
            if reason is not None:
                return reason
    judgement = _Solver(rule, match).solve() if match.pattern.symbolic else Judgement()
    if isinstance(judgement, Judgement) and any(_reads_strides(name, match) for name in rule.where):
        judgement.specialised = True
    return judgement


def _reads_strides(name: str, match: Match) -> bool:
    """Whether the operand's recorded memory format decided, which another call may not have."""
    rule = match.pattern.rule
    return (
        rule.where[name].format is not None
        and name not in rule.rechecked
        and any(value.constant is not None and not value.is_weight for value in match.values(name))
    )


def _value(name: str, condition: Condition, value: Value, match: Match) -> str | None:
    constant = value.constant
    if condition.present is not None and condition.present != (constant is not None):
        return f"{name} is {'None' if constant is None else 'given'}"
    if condition.values is not None and not any(same_constant(wanted, constant) for wanted in condition.values):
        return f"{name} is {_shown(constant)}"
    if condition.const and isinstance(constant, NotConstant):
        return f"{name} is not known before the graph runs"
    for bound, is_minimum in ((condition.minimum, True), (condition.maximum, False)):
        if bound is None:
            continue
        if not isinstance(constant, int | float) or (constant < bound if is_minimum else constant > bound):
            return f"{name} is {_shown(constant)}, wanted at {'least' if is_minimum else 'most'} {bound}"
    if condition.weight is not None and constant is not None and condition.weight != value.is_weight:
        return f"{name} is {'' if value.is_weight else 'not '}a weight"
    if condition.uses is not None and not condition.uses.holds(len(value.uses)):
        return f"{name} has {len(value.uses)} uses"
    return _tensor(name, condition, value, match) if constant is not None else None


def _tensor(name: str, condition: Condition, value: Value, match: Match) -> str | None:
    if not (condition.dtype or condition.rank or condition.device or condition.format or condition.dtype_equals):
        return None
    facts = value.facts
    if facts is None:
        return f"nothing is known about {name}"
    if condition.dtype and facts.dtype not in condition.dtype:
        return f"{name} is {facts.dtype}"
    if condition.rank and facts.rank not in condition.rank:
        return f"{name} has rank {facts.rank}"
    if condition.device and facts.device not in condition.device:
        return f"{name} is on {facts.device}"
    if condition.format == "not channels_last":
        if facts.format == "channels_last":
            return f"{name} is channels_last"
    elif condition.format and facts.format != condition.format:
        return f"{name} is not {condition.format}"
    if condition.dtype_equals:
        code = match.value(condition.dtype_equals).constant
        if code is None or code != DTYPE_CODES.get(facts.dtype):
            return f"{name} is {facts.dtype}, not the dtype of {condition.dtype_equals}"
    return None


def _shown(constant: object) -> str:
    return "not constant" if isinstance(constant, NotConstant) else repr(constant)


class _Solver:
    """Binds the symbols of `where` shapes and checks that all of them, and `require`, agree."""

    def __init__(self, rule: Rule, match: Match) -> None:
        self.rule = rule
        self.match = match
        self.result = Judgement()
        self.stable = self.result.stable

    def solve(self) -> Judgement | str:
        equations: list[tuple[str, Expression, int, bool]] = []
        for name, condition in self.rule.where.items():
            if condition.shape is None:
                continue
            for value in self.match.values(name):
                if value.constant is None:
                    continue
                facts = value.facts
                if facts is None or facts.shape is None:
                    return f"the shape of {name} is not known"
                pairs = condition.shape.aligned(facts.rank)
                if pairs is None:
                    return f"{name} has rank {facts.rank}"
                equations += [(name, expression, facts.shape[dim], value.is_weight) for expression, dim in pairs]
        self.integers()
        for name, expression, extent, stable in sorted(equations, key=_plain_weights_first):
            reason = self.equation(name, expression, extent, stable)
            if reason is not None:
                return reason
        for expression in self.rule.require:
            holds = expression.evaluate(self.result.symbols)
            if not holds:
                return f"{expression} does not hold" if holds == 0 else f"{expression} cannot be decided"
            self.result.read(expression)
        return self.result

    def integers(self) -> None:
        for name, bound in self.match.bound.items():
            constant = bound.constant if isinstance(bound, Value) else None
            if isinstance(constant, int) and not isinstance(constant, bool):
                self.result.symbols[name] = constant
                self.stable.add(name)

    def equation(self, name: str, expression: Expression, extent: int, stable: bool) -> str | None:
        symbols = self.result.symbols
        if expression.text in expression.names and expression.text not in symbols:
            symbols[expression.text] = extent
            if stable:
                self.stable.add(expression.text)
            return None
        wanted = expression.evaluate(symbols)
        if wanted != extent:
            return f"{name} has {extent} where {expression} is {'unknown' if wanted is None else wanted}"
        known = stable or (expression.names and expression.names <= self.stable)
        if not known and name not in self.rule.rechecked:
            self.result.specialised = True
        return None


def _plain_weights_first(equation: tuple[str, Expression, int, bool]) -> tuple[bool, bool]:
    _, expression, _, stable = equation
    return expression.text not in expression.names, not stable
