"""Finds rules whose replacement is matched by their own pattern: they would fire for ever."""

from __future__ import annotations

import dataclasses

from rewriter.language.conditions import Condition
from rewriter.language.rule import Call, Rule, Step
from rewriter.language.syntax import Literal, Operand, Sequence, Skip, Var, read_variables

_COMMUTATIVE = frozenset(("aten::add", "aten::mul"))


def matches_itself(rule: Rule) -> bool:
    """Whether the pattern is certain to match inside the rule's own replacement.

    Certain: a condition of the pattern counts only where it is put to the very operand that it held for before.
    """
    if any(step.statement.starred for step in (*rule.match, *rule.replace)):
        return False
    return any(_Search(rule).matches(step) for step in rule.replace if step.calls)


@dataclasses.dataclass(slots=True)
class _State:
    """`bound`: what each name of the pattern stands for in the replacement; `steps`: which statement is which."""

    bound: dict[str, Operand]
    steps: list[tuple[Step, Step]]

    def copy(self) -> _State:
        return _State(dict(self.bound), list(self.steps))


class _Search:
    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.made = {name for step in rule.replace for name in step.targets}
        self.defined = {name for step in rule.match for name in step.targets}

    def matches(self, root: Step) -> bool:
        """Whether the pattern's last statement can be `root` of the replacement, and all others something near it."""
        states = self.step(self.rule.root, root, _State({}, []))
        for step in reversed(self.rule.match[:-1]):
            states = [
                after
                for state in states
                for candidate in self.rule.replace
                if all(candidate is not taken for _, taken in state.steps)
                for after in self.step(step, candidate, state)
            ]
        return any(self.holds(state) for state in states)

    def step(self, wanted: Step, found: Step, state: _State) -> list[_State]:
        states: list[_State] = []
        if len(wanted.targets) != len(found.targets):
            return states
        for call in wanted.calls:
            for other in found.calls:
                if (call.op, call.unpacks, len(call.operands)) != (other.op, other.unpacks, len(other.operands)):
                    continue
                for operands in _orders(call, other):
                    after = state.copy()
                    after.steps.append((wanted, found))
                    if wanted.statement.choice is not None:
                        after.bound[wanted.statement.choice] = Literal(call.op.split("::")[1])
                    fits = all(self.operand(*pair, after) for pair in zip(call.operands, operands, strict=True))
                    if fits and self.targets(wanted, found, after):
                        states.append(after)
        return states

    def targets(self, wanted: Step, found: Step, state: _State) -> bool:
        return all(
            self.variable(Var(name), Var(other), state)
            for name, other in zip(wanted.targets, found.targets, strict=True)
        )

    def operand(self, wanted: Operand, found: Operand, state: _State) -> bool:
        if isinstance(wanted, Skip):
            return True
        if isinstance(wanted, Var):
            return self.variable(wanted, found, state)
        if isinstance(wanted, Sequence):
            return (
                isinstance(found, Sequence)
                and len(wanted.items) == len(found.items)
                and all(self.operand(*pair, state) for pair in zip(wanted.items, found.items, strict=True))
            )
        return wanted == found or (isinstance(found, Var) and wanted == self.pinned(found.name))

    def pinned(self, name: str) -> Literal | None:
        values = self.rule.where.get(name, Condition()).values
        return Literal(values[0]) if values is not None and len(values) == 1 else None

    def variable(self, wanted: Var, found: Operand, state: _State) -> bool:
        if found == Literal(None) and not wanted.optional:
            return False
        # Whether an operand is optional or a name stands in one place or the other makes no difference here.
        plain = Var(found.name) if isinstance(found, Var) else found
        return state.bound.setdefault(wanted.name, plain) == plain

    def holds(self, state: _State) -> bool:
        """Whether conditions and single uses are certain to hold for this binding."""
        for name, condition in self.rule.where.items():
            bound = state.bound.get(name)
            if bound == Var(name):
                continue
            if not (isinstance(bound, Literal) and condition == Condition(values=condition.values)):
                return False
            if bound.value not in (condition.values or ()):
                return False
        read = {name for expression in self.rule.require for name in expression.names}
        if any(name in state.bound and state.bound[name] != Var(name) for name in read):
            return False
        return all(self.stays_inside(name, state) for name in self.defined - set(self.rule.outputs))

    def stays_inside(self, name: str, state: _State) -> bool:
        """Whether the interior value is made by the match and read by nothing else."""
        bound = state.bound[name]
        if not isinstance(bound, Var) or bound.name not in self.made or bound.name in self.rule.outputs:
            return False
        covered = [found for _, found in state.steps]
        return all(
            any(step is found for found in covered)
            for step in self.rule.replace
            if any(var.name == bound.name for var in read_variables(step.statement))
        )


def _orders(wanted: Call, found: Call) -> list[tuple[Operand, ...]]:
    """The ways to read the operands of a statement of the replacement."""
    orders = [found.operands]
    if found.op in _COMMUTATIVE and (len(found.operands) == 2 or found.operands[2:] == wanted.operands[2:]):
        orders.append((*found.operands[1::-1], *found.operands[2:]))
    return orders
