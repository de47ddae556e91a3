"""Rules that cannot live together: one id twice, or a rule that an earlier one always shadows."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from rewriter.errors import RuleError
from rewriter.language.conditions import Condition
from rewriter.language.rule import Rule, RuleSet
from rewriter.language.syntax import Operand, Sequence, Var, read_variables


def check_set(rules: RuleSet) -> None:
    """Raises RuleError for two rules with one id, or a rule that can never fire because of an earlier one."""
    seen: dict[str, Rule] = {}
    patterns: dict[tuple[object, ...], list[tuple[Rule, dict[str, int]]]] = {}
    for rule in rules:
        if rule.id in seen:
            raise RuleError(
                "two rules with one id",
                position=rule.position,
                rule=rule.id,
                found=f"first at {seen[rule.id].position}",
                expected="an id of its own for each rule",
            )
        seen[rule.id] = rule
        form, numbers = _normal_form(rule)
        for earlier, other_numbers in patterns.setdefault(form, []):
            if _covers(earlier, other_numbers, rule, numbers):
                raise RuleError(
                    f"never reached: {earlier.id} ({earlier.position}) matches the same pattern first",
                    position=rule.position,
                    rule=rule.id,
                    expected="another pattern, a stricter earlier rule, or a higher benefit",
                )
        patterns[form].append((rule, numbers))


def _normal_form(rule: Rule) -> tuple[tuple[object, ...], dict[str, int]]:
    """The pattern with its names replaced by numbers, so that equal patterns compare equal; and the numbers."""
    numbers: dict[str, int] = {}

    def number(name: str) -> int:
        return numbers.setdefault(name, len(numbers))

    def form(operand: Operand) -> object:
        if isinstance(operand, Var):
            return ("var", number(operand.name), operand.starred)
        if isinstance(operand, Sequence):
            return ("list", *(form(item) for item in operand.items))
        return repr(operand)

    parts: list[object] = [rule.phase]
    for step in rule.match:
        parts.extend((call.op, call.unpacks, *map(form, call.operands)) for call in step.calls)
        parts.append(tuple(number(name) for name in step.targets))
        if step.statement.choice is not None:
            number(step.statement.choice)
    parts.append(tuple(sorted(numbers[name] for name in rule.may_escape)))
    return tuple(parts), numbers


def _covers(earlier: Rule, names: dict[str, int], later: Rule, later_names: dict[str, int]) -> bool:
    """Whether every match of `later` is one of `earlier`, as far as the rules themselves tell."""
    by_number = {number: name for name, number in later_names.items()}
    twin = {name: by_number[number] for name, number in names.items()}
    if not _optional(later) <= {twin[name] for name in _optional(earlier)}:
        return False
    # A preparation refuses what is no weight.
    if earlier.prepare and earlier.prepare_text != later.prepare_text:
        return False
    conditions = all(
        _implies(later.where.get(twin[name], Condition()), condition, twin) for name, condition in earlier.where.items()
    )
    required = all(
        expression in later.require and all(twin.get(name, name) == name for name in expression.names)
        for expression in earlier.require
    )
    return conditions and required and _subset(later.devices, earlier.devices) and earlier.sm in (None, later.sm)


def _optional(rule: Rule) -> set[str]:
    return {var.name for step in rule.match for var in read_variables(step.statement) if var.optional}


def _subset(asked: Iterable[object], wanted: Collection[object]) -> bool:
    """Whether what the narrower list allows is in the wider one; an empty list allows everything."""
    asked = list(asked)
    return not wanted or (bool(asked) and all(value in wanted for value in asked))


def _implies(asked: Condition, wanted: Condition, twin: dict[str, str]) -> bool:
    """Whether an operand that satisfies `asked` satisfies `wanted`; `twin` translates names of the latter's rule."""
    dtype_equals = wanted.dtype_equals and twin.get(wanted.dtype_equals)
    return (
        all(_subset(getattr(asked, key), getattr(wanted, key)) for key in ("dtype", "rank", "device"))
        and (wanted.values is None or (asked.values is not None and _subset(asked.values, wanted.values)))
        and (wanted.minimum is None or (asked.minimum is not None and asked.minimum >= wanted.minimum))
        and (wanted.maximum is None or (asked.maximum is not None and asked.maximum <= wanted.maximum))
        and (asked.const or not wanted.const)
        and dtype_equals in (None, asked.dtype_equals)
        and all(
            getattr(wanted, key) in (None, getattr(asked, key))
            for key in ("shape", "weight", "format", "count", "uses", "present")
        )
    )
