"""What a rule must mean beyond being well-formed: every name bound, nothing dropped, nothing that can never fire."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rewriter.language.conditions import ScalarInput, TensorInput
from rewriter.language.endless import matches_itself
from rewriter.language.expressions import Expression
from rewriter.language.names import listing, nearest
from rewriter.language.pattern_lint import check_pattern
from rewriter.language.replacement_lint import check_preparation, check_replacement
from rewriter.language.rule import Rule
from rewriter.language.scope import Scope

if TYPE_CHECKING:
    from rewriter.language.document import RuleReader


def check_rule(rule: Rule, reader: RuleReader) -> None:
    """Raises RuleError for the first thing that is wrong with the rule by itself."""
    scope = check_pattern(rule, reader)
    _check_conditions(rule, reader, scope)
    prepared = check_preparation(rule, reader, scope)
    check_replacement(rule, reader, scope, prepared)
    _check_inputs(rule, reader, scope)
    if matches_itself(rule):
        reader.fail(
            "the replacement contains what the pattern matches, so the rule would never come to an end",
            reader.found["replace"].position,
            expected="a replacement that the pattern does not match, or a condition that rules it out",
        )


def _check_conditions(rule: Rule, reader: RuleReader, scope: Scope) -> None:
    names = scope.defined | set(scope.operands) | scope.choices
    for name, condition in rule.where.items():
        _known(reader, name, names, "where")
        asked = set(reader.mapping(reader.section("where")[name], "where"))
        if name in scope.choices and asked - {"value"}:
            reader.fail(
                "where: the name of an alternative has a value and nothing else",
                reader.key_place("where", name),
                found=listing(asked),
                expected="value",
            )
        if condition.dtype_equals is not None and condition.dtype_equals not in scope.operands:
            reader.fail(
                "dtype_equals names no operand",
                reader.key_place("where", name),
                found=condition.dtype_equals,
                expected=f"one of {listing(scope.operands)}",
                suggestion=nearest(condition.dtype_equals, scope.operands),
            )
    _check_solvable(rule, reader, scope)
    for name in rule.ignore:
        _known(reader, name, set(scope.operands) | scope.skipped | scope.choices, "ignore")
    for name in rule.rechecked:
        shaped = {name for name, condition in rule.where.items() if condition.shape is not None or condition.format}
        _known(reader, name, shaped, "rechecked", "nothing with a shape or format in `where`")
    interior = {target for step in rule.match for target in step.targets} - {*rule.outputs}
    for name in rule.loses:
        _known(reader, name, set(scope.operands) | interior, "loses")
    for index, expression in enumerate(rule.require):
        scope.check_symbols(
            expression, reader, "require", reader.items(reader.found["require"], "require")[index].position
        )


def _check_solvable(rule: Rule, reader: RuleReader, scope: Scope) -> None:
    """Shapes are compared, never solved: every symbol has to stand alone somewhere, or be an operand's number."""
    shapes = {name: condition.shape for name, condition in rule.where.items() if condition.shape is not None}
    alone = {extent.text for shape in shapes.values() for extent in shape.extents if extent.text in extent.names}
    for name, shape in shapes.items():
        for extent in shape.extents:
            for symbol in sorted(extent.names - alone - set(scope.operands)):
                reader.fail(
                    "where: no shape gives this symbol a value",
                    reader.key_place("where", name),
                    found=f"{symbol} in {extent}",
                    expected=f"a shape with {symbol} alone",
                )


def _known(reader: RuleReader, name: str, valid: set[str], section: str, what: str = "nothing in the pattern") -> None:
    if name not in valid:
        reader.fail(
            f"{section} names {what}",
            reader.key_place(section, name),
            found=name,
            expected=f"one of {listing(valid)}",
            suggestion=nearest(name, valid),
        )


def _check_inputs(rule: Rule, reader: RuleReader, scope: Scope) -> None:
    """A rule without inputs for each operand cannot be tested."""
    for name in rule.inputs:
        _known(reader, name, set(scope.operands), "inputs")
    missing = [name for name in scope.operands if name not in rule.inputs]
    if missing:
        reader.fail(
            "inputs lacks an operand, so that no test can be made",
            reader.found["inputs"].position,
            found=listing(rule.inputs) or "none",
            expected=", ".join(missing),
        )
    for name, given in rule.inputs.items():
        expressions: Iterable[Expression] = given.shape if isinstance(given, TensorInput) else _choices(given)
        for expression in expressions:
            for symbol in sorted(expression.names - set(rule.dims)):
                reader.fail(
                    "inputs: a symbol without a range in dims",
                    reader.key_place("inputs", name),
                    found=symbol,
                    expected=f"one of {listing(rule.dims)}" if rule.dims else f"{symbol} in dims",
                    suggestion=nearest(symbol, rule.dims),
                )


def _choices(given: ScalarInput) -> Iterable[Expression]:
    for choice in given.choices:
        for part in choice if isinstance(choice, tuple) else (choice,):
            if isinstance(part, Expression):
                yield part
