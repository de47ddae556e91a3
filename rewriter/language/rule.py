"""A rule and a set of rules."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Collection, Iterator, Mapping

from rewriter.errors import Position
from rewriter.language.conditions import PHASES, Comparison, Condition, DimRange, Input
from rewriter.language.expressions import Expression
from rewriter.language.kinds import Kind
from rewriter.language.syntax import Operand, Statement, read_variables

# How many rules a set names when it is printed.
_SHOWN = 3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A statement's operands in the order of one schema of one op.

    `names`, `types`, `positional`, `returns`: the schema's arguments, how many of them need no name, and its results.
    `unpacks`: the targets are the elements of the list that the op returns. `written`: the operands that the op
    changes. `aliases`: the operands that a result may share memory with.
    """

    op: str
    operands: tuple[Operand, ...]
    names: tuple[str, ...]
    types: tuple[Kind, ...]
    positional: int
    returns: tuple[Kind, ...]
    unpacks: bool
    written: tuple[int, ...]
    aliases: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """A statement resolved against the registered ops: every way to spell it in a graph.

    In a replacement these are the overloads that may fit; the operands' types decide.
    """

    statement: Statement
    calls: tuple[Call, ...]
    targets: tuple[str, ...] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(target.name for target in self.statement.targets))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Rule:
    """One rewrite: pattern, conditions, replacement and how to test it. Immutable; made by `load_rules`.

    `read`: the names that the pattern's statements read. `outputs`: the values that live on after the match, in the
    pattern's order; the replacement defines each.
    """

    id: str
    pack: str
    summary: str
    doc: str
    phase: str
    benefit: int
    match: tuple[Step, ...]
    replace: tuple[Step, ...]
    prepare: tuple[Statement, ...]
    where: Mapping[str, Condition]
    require: tuple[Expression, ...]
    sm: Comparison | None
    devices: tuple[str, ...]
    ignore: Mapping[str, str]
    rechecked: Mapping[str, str]
    may_escape: tuple[str, ...]
    inputs: Mapping[str, Input]
    dims: Mapping[str, DimRange]
    tolerance: float
    loses: Mapping[str, str]
    saves: str
    position: Position
    match_text: str
    replace_text: str
    prepare_text: str
    digest: str
    read: frozenset[str] = dataclasses.field(init=False)
    outputs: tuple[str, ...] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        read = frozenset(var.name for step in self.match for var in read_variables(step.statement))
        names = (name for step in self.match for name in step.targets)
        object.__setattr__(self, "read", read)
        object.__setattr__(
            self, "outputs", tuple(name for name in names if name not in read or name in self.may_escape)
        )

    def __repr__(self) -> str:
        return f"<Rule {self.id} ({self.position})>"

    @property
    def root(self) -> Step:
        """The last statement of the pattern: what the engine looks for first."""
        return self.match[-1]


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class RuleSet:
    """Rules in the order in which they are tried: by phase, then benefit, then the order of the files."""

    rules: tuple[Rule, ...]

    @classmethod
    def ordered(cls, rules: tuple[Rule, ...]) -> RuleSet:
        return cls(tuple(sorted(rules, key=lambda rule: (PHASES.index(rule.phase), -rule.benefit))))

    def without(self, ids: Collection[str]) -> RuleSet:
        """These rules but for some."""
        return RuleSet(tuple(rule for rule in self.rules if rule.id not in ids))

    @property
    def digest(self) -> str:
        """A hash of everything that decides what the rules do."""
        return _digest(self.rules)

    def __repr__(self) -> str:
        ids = [rule.id for rule in self.rules]
        shown = ", ".join([*ids[:_SHOWN], "..."] if len(ids) > _SHOWN else ids)
        return f"<RuleSet {self.digest} of {len(ids)} rules: {shown}>"

    def __deepcopy__(self, _: object) -> RuleSet:
        # Nothing in it can change.
        return self

    def __iter__(self) -> Iterator[Rule]:
        return iter(self.rules)

    def __len__(self) -> int:
        return len(self.rules)

    def __getitem__(self, rule_id: str) -> Rule:
        for rule in self.rules:
            if rule.id == rule_id:
                return rule
        raise KeyError(rule_id)

    def __contains__(self, rule_id: object) -> bool:
        return any(rule.id == rule_id for rule in self.rules)


@functools.lru_cache(maxsize=64)
def _digest(rules: tuple[Rule, ...]) -> str:
    return hashlib.sha256("\n".join(rule.digest for rule in rules).encode()).hexdigest()[:16]
