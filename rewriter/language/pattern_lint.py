"""Checks a rule's pattern: names with one meaning, statements that hang together, repetition that can be matched."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewriter.language.names import listing, nearest
from rewriter.language.rule import Rule, Step
from rewriter.language.scope import Scope, has_skip
from rewriter.language.syntax import Argument, Sequence, Skip, Target, Var, read_variables, variables

if TYPE_CHECKING:
    from rewriter.language.document import RuleReader


def check_pattern(rule: Rule, reader: RuleReader) -> Scope:
    """The names that the pattern binds. Raises RuleError."""
    return _PatternChecker(rule, reader).check()


class _PatternChecker:
    def __init__(self, rule: Rule, reader: RuleReader) -> None:
        self.rule = rule
        self.reader = reader
        self.scope = Scope()
        self.starred: dict[str, bool] = {}

    def check(self) -> Scope:
        for step in self.rule.match:
            self.step(step)
        self.scope.symbols = {
            name
            for condition in self.rule.where.values()
            if condition.shape is not None
            for extent in condition.shape.extents
            for name in extent.names
        }
        self.connected()
        self.escapes()
        self.related()
        return self.scope

    def step(self, step: Step) -> None:
        statement = step.statement
        if not step.calls:
            self.reader.fail("match: a statement needs an op", self.reader.place("match", statement.place))
        for argument in statement.arguments:
            for var in variables(argument.operand):
                self.variable(var, argument, statement.starred)
        self.skipped(step)
        if statement.starred:
            self.repetition(step)
        for target in statement.targets:
            self.target(target)
        self.choice(step)

    def variable(self, var: Var, argument: Argument, repeated: bool) -> None:
        scope = self.scope
        place = self.reader.place("match", argument.place)
        if self.starred.setdefault(var.name, var.starred) != var.starred or (var.starred and not repeated):
            self.reader.fail(
                "match: a repeated operand needs its * everywhere, its statement's result included",
                place,
                found=var.name,
            )
        if var.name in scope.choices:
            self.reader.fail("match: a name has two meanings", place, found=var.name)
        if var.name in scope.defined:
            if var.starred:
                self.reader.fail(
                    "match: what comes after repeated siblings cannot be matched",
                    place,
                    found=f"{var.name}*",
                    expected="repeated results that no other statement of the pattern reads",
                )
            if var.optional:
                self.reader.fail(
                    "match: a result of another statement cannot be absent",
                    place,
                    found=f"{var.name}?",
                    expected=var.name,
                )
            return
        known = scope.operands.get(var.name)
        optional = var.optional or bool(known and known.optional)
        scope.operands[var.name] = Var(var.name, optional, var.starred)

    def skipped(self, step: Step) -> None:
        statement = step.statement
        for argument in statement.arguments:
            if isinstance(argument.operand, Sequence) and has_skip(argument.operand):
                self.reader.fail(
                    "match: _ stands for a whole operand, not for an element of a list",
                    self.reader.place("match", argument.place),
                )
        for call in step.calls:
            for name, operand in zip(call.names, call.operands, strict=True):
                if not isinstance(operand, Skip):
                    continue
                self.scope.skipped.add(name)
                if name not in self.rule.ignore:
                    self.reader.fail(
                        "match: _ is allowed only where `ignore` gives the reason",
                        self.reader.place("match", statement.place),
                        found=f"_ for {name}",
                        expected=f"ignore: {{{name}: why it does not matter}}",
                    )

    def repetition(self, step: Step) -> None:
        """Siblings are found through an operand that they share."""
        statement = step.statement
        if len(statement.targets) > 1:
            self.reader.fail(
                "match: a repeated statement has one result",
                self.reader.place("match", statement.targets[1].place),
                found=f"{len(statement.targets)} names",
            )
        shared = [var for var in read_variables(statement) if not var.starred]
        if not shared:
            self.reader.fail(
                "match: repeated siblings need an operand that they share",
                self.reader.place("match", statement.place),
                expected="an operand without *",
            )

    def target(self, target: Target) -> None:
        name, scope = target.name, self.scope
        place = self.reader.place("match", target.place)
        if name in scope.defined:
            self.reader.fail("match: a name is given to two results", place, found=name)
        if name in scope.operands:
            self.reader.fail("match: a name is used before the statement that makes it", place, found=name)
        if name in scope.choices:
            self.reader.fail("match: a name has two meanings", place, found=name)
        self.starred[name] = target.starred
        scope.defined.add(name)

    def choice(self, step: Step) -> None:
        statement, scope = step.statement, self.scope
        place = self.reader.place("match", statement.place)
        if statement.choice is not None:
            if statement.choice in scope.defined | scope.operands.keys() | scope.choices:
                self.reader.fail("match: a name has two meanings", place, found=statement.choice)
            scope.choices.add(statement.choice)
        elif len(statement.ops) > 1:
            self.reader.fail(
                "match: alternatives need a name, or the replacement cannot tell them apart",
                place,
                expected="... as act",
            )

    def escapes(self) -> None:
        interior = self.scope.defined - set(self.rule.root.targets)
        for index, name in enumerate(self.rule.may_escape):
            if name not in interior:
                item = self.reader.found["may_escape"]
                position = item.value[index].position if isinstance(item.value, list) else item.position
                self.reader.fail(
                    "may_escape names no interior value",
                    position,
                    found=name,
                    expected=f"one of {listing(interior)}" if interior else "a pattern of several statements",
                    suggestion=nearest(name, interior),
                )

    def connected(self) -> None:
        """Every statement must be reachable from the last one, or matching would be a search over all pairs."""
        groups = [set(step.targets) | {var.name for var in read_variables(step.statement)} for step in self.rule.match]
        reached = groups[-1]
        pending = list(range(len(groups) - 1))
        while True:
            near = [index for index in pending if groups[index] & reached]
            if not near:
                break
            for index in near:
                reached = reached | groups[index]
                pending.remove(index)
        for index in pending:
            self.unrelated(self.rule.match[index])

    def related(self) -> None:
        """A statement that nobody reads needs an operand in common with the others."""
        unread = set(self.rule.outputs) - set(self.rule.root.targets) - set(self.rule.may_escape)
        for step in self.rule.match[:-1]:
            if not step.statement.starred and unread.issuperset(step.targets) and not self.shares_operand(step):
                self.unrelated(step)

    def shares_operand(self, step: Step) -> bool:
        mine = {var.name for var in read_variables(step.statement)}
        return any(
            mine & {var.name for var in read_variables(other.statement)}
            for other in self.rule.match
            if other is not step
        )

    def unrelated(self, step: Step) -> None:
        self.reader.fail(
            "match: a statement that the rest of the pattern has nothing to do with",
            self.reader.place("match", step.statement.place),
        )
