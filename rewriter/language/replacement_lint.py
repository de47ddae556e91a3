"""Checks a rule's preparation and replacement: every name bound, every output defined, no operand dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewriter.language.aliasing import private_results, written_names
from rewriter.language.names import listing, nearest
from rewriter.language.preparation import PREPARATIONS, Preparation
from rewriter.language.rule import Rule, Step
from rewriter.language.scope import Scope, expressions, has_skip
from rewriter.language.syntax import (
    Argument,
    Computed,
    Literal,
    Operand,
    Sequence,
    Statement,
    Target,
    Var,
    read_variables,
    variables,
)

if TYPE_CHECKING:
    from rewriter.language.document import RuleReader


def check_preparation(rule: Rule, reader: RuleReader, scope: Scope) -> set[str]:
    """The names that `prepare` makes. Raises RuleError."""
    return _PreparationChecker(rule, reader, scope).check()


def check_replacement(rule: Rule, reader: RuleReader, scope: Scope, prepared: set[str]) -> None:
    """Raises RuleError."""
    _ReplacementChecker(rule, reader, scope, prepared).check()
    _check_dropped(rule, reader, scope)


class _PreparationChecker:
    def __init__(self, rule: Rule, reader: RuleReader, scope: Scope) -> None:
        self.rule = rule
        self.reader = reader
        self.scope = scope
        # Names made so far, with the kind of function that made each.
        self.made: dict[str, Preparation] = {}

    def check(self) -> set[str]:
        for statement in self.rule.prepare:
            self.statement(statement)
        return set(self.made)

    def statement(self, statement: Statement) -> None:
        place = self.reader.place("prepare", statement.place)
        function = statement.ops[0].removeprefix("prepare::") if statement.ops else ""
        if function not in PREPARATIONS:
            self.reader.fail(
                "prepare: unknown function",
                place,
                found=function or "no function",
                expected=f"one of {listing(PREPARATIONS)}",
                suggestion=nearest(function, PREPARATIONS),
            )
        if len(statement.targets) != 1 or statement.starred or statement.choice:
            self.reader.fail("prepare: a statement has one result", place)
        kind = PREPARATIONS[function]
        self.weights(statement, function, kind)
        self.options(statement, function, kind)
        name = statement.targets[0].name
        if name in self.made or name in self.scope.operands or name in self.scope.defined | self.scope.choices:
            self.reader.fail("prepare: a name is given twice", place, found=name)
        self.made[name] = kind

    def weights(self, statement: Statement, function: str, kind: Preparation) -> None:
        valid = [*self.scope.operands, *(name for name, maker in self.made.items() if not maker.static)]
        count = 0
        for argument in statement.arguments:
            if not isinstance(argument.operand, Var):
                continue
            count += 1
            var, place = argument.operand, self.reader.place("prepare", argument.place)
            if var.name not in valid:
                self.reader.fail(
                    "prepare: unknown weight",
                    place,
                    found=var.name,
                    expected=f"one of {listing(valid)}",
                    suggestion=nearest(var.name, valid),
                )
            if argument.keyword is not None:
                self.reader.fail("prepare: weights are positional", place, found=argument.keyword)
            starred = var.name in self.scope.operands and self.scope.operands[var.name].starred
            if starred != var.starred:
                self.reader.fail(
                    "prepare: a repeated operand needs its *, a single one none",
                    place,
                    found=f"{var.name}{'*' * var.starred}",
                    expected=f"{var.name}{'*' * starred}",
                )
            if starred and not kind.many:
                count += 1
        if not count or (count > 1 and not kind.many):
            self.reader.fail(
                f"prepare: {function} takes {'at least one weight' if kind.many else 'one weight'}",
                self.reader.place("prepare", statement.place),
                found=f"{count} weights" if count else "none",
            )

    def options(self, statement: Statement, function: str, kind: Preparation) -> None:
        names = [name for name, _ in kind.options]
        given: set[str] = set()
        for index, argument in enumerate(a for a in statement.arguments if not isinstance(a.operand, Var)):
            name = argument.keyword or (names[index] if index < len(names) else "")
            place = self.reader.place("prepare", argument.place)
            if name not in names or name in given:
                self.reader.fail(
                    f"prepare: {function} has no such option",
                    place,
                    found=argument.keyword or "one more",
                    expected=listing(names) or "no option",
                )
            wanted = "a list of integers" if name == "shape" else "an integer"
            if not (_is_integers(argument.operand) if name == "shape" else _is_integer(argument.operand)):
                self.reader.fail(f"prepare: {name} must be {wanted}", place)
            for expression in expressions(argument.operand):
                self.scope.check_symbols(expression, self.reader, "prepare", place)
            given.add(name)
        missing = [name for name, default in kind.options if default is None and name not in given]
        if missing:
            place = self.reader.place("prepare", statement.place)
            self.reader.fail(f"prepare: {function} lacks {', '.join(missing)}", place)


def _is_integer(operand: Operand) -> bool:
    return isinstance(operand, Computed) or (isinstance(operand, Literal) and type(operand.value) is int)


def _is_integers(operand: Operand) -> bool:
    if isinstance(operand, Literal):
        return isinstance(operand.value, tuple) and all(type(item) is int for item in operand.value)
    return isinstance(operand, Sequence) and all(map(_is_integer, operand.items))


class _ReplacementChecker:
    def __init__(self, rule: Rule, reader: RuleReader, scope: Scope, prepared: set[str]) -> None:
        self.rule = rule
        self.reader = reader
        self.scope = scope
        self.readable = set(scope.operands) | prepared | scope.choices
        self.made: set[str] = set()

    def check(self) -> None:
        for step in self.rule.replace:
            for argument in step.statement.arguments:
                self.argument(argument)
            self.writes(step)
            if len(step.statement.ops) > 1 or step.statement.choice is not None:
                place = self.reader.place("replace", step.statement.place)
                self.reader.fail("replace: one op, not alternatives", place)
            for target in step.statement.targets:
                self.target(target)
        missing = [name for name in self.rule.outputs if name not in self.made]
        if missing:
            self.reader.fail(
                "replace does not define an output of the pattern",
                self.reader.found["replace"].position,
                found=f"definitions of {listing(self.made)}",
                expected=", ".join(missing),
            )

    def argument(self, argument: Argument) -> None:
        place = self.reader.place("replace", argument.place)
        for var in variables(argument.operand):
            if var.name not in self.readable:
                self.reader.fail(
                    "replace: a name that nothing binds",
                    place,
                    found=var.name,
                    expected=f"one of {listing(self.readable)}",
                    suggestion=nearest(var.name, self.readable),
                )
            known = self.scope.operands.get(var.name)
            if var.starred or (known is not None and known.starred):
                self.reader.fail(
                    "replace: a repeated operand can be read by `prepare` only", place, found=f"{var.name}*"
                )
        for expression in expressions(argument.operand):
            self.scope.check_symbols(expression, self.reader, "replace", place)
        if has_skip(argument.operand):
            self.reader.fail("replace: _ has no value", place)

    def writes(self, step: Step) -> None:
        for name in sorted(written_names(step) - private_results(self.rule.replace)):
            self.reader.fail(
                "replace: an in-place op changes a value that may be read elsewhere",
                self.reader.place("replace", step.statement.place),
                found=name,
                expected="a value that the replacement itself has made",
            )

    def target(self, target: Target) -> None:
        place = self.reader.place("replace", target.place)
        if target.name in self.made or target.name in self.readable:
            self.reader.fail("replace: a name is given twice", place, found=target.name)
        stars = {each.name: each.starred for step in self.rule.match for each in step.statement.targets}
        if stars.get(target.name, False) != target.starred:
            self.reader.fail(
                "replace: a repeated output needs its *, a single one none",
                place,
                found=f"{target.name}{'*' * target.starred}",
                expected=f"{target.name}{'*' * (not target.starred)}",
            )
        self.made.add(target.name)
        self.readable.add(target.name)


def _check_dropped(rule: Rule, reader: RuleReader, scope: Scope) -> None:
    """An operand that the pattern accepts in any form and the replacement forgets is how peers miscompile."""
    used = {var.name for step in rule.replace for var in read_variables(step.statement)}
    used |= {var.name for statement in rule.prepare for var in read_variables(statement)}
    used |= {
        name
        for statement in (*(step.statement for step in rule.replace), *rule.prepare)
        for argument in statement.arguments
        for expression in expressions(argument.operand)
        for name in expression.names
    }
    used |= set(rule.ignore)
    used |= {condition.dtype_equals for condition in rule.where.values() if condition.dtype_equals is not None}
    used |= {name for name, condition in rule.where.items() if condition.pins}
    for name in [*scope.operands, *sorted(scope.choices)]:
        if name not in used:
            reader.fail(
                "replace drops an operand that the pattern binds",
                reader.found["replace"].position,
                found=name,
                expected=f"{name} in the replacement, one value for it in `where`, or a reason in `ignore`",
            )
