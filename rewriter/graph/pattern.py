"""A rule's pattern as a plan: in which order to look at its statements, and from where each is reached."""

from __future__ import annotations

import dataclasses
import functools

from rewriter.graph.view import Node
from rewriter.language.aliasing import private_results, written_names
from rewriter.language.rule import Call, Rule, Step
from rewriter.language.scope import expressions
from rewriter.language.syntax import Literal, Operand, Var, read_variables

# Ops whose first two operands may be exchanged. `add` only where alpha is 1: it scales the second one.
COMMUTATIVE = frozenset(("aten::add", "aten::mul"))


@dataclasses.dataclass(frozen=True, slots=True)
class Move:
    """How to reach one statement: from a result of it (`by_result`), or else from a use of an operand it shares."""

    step: Step
    by_result: str | None = None
    by_operand: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Pattern:
    """A compiled rule.

    `producers`: the ops that may make an interior value. `results`: the outputs in the rule's order, also as a set.
    `reads`: the operands that the replacement reads. `sources`: those that are read before the graph runs, and
    `prepared`: what is made of them.
    `aliasing`: a result of the replacement may share memory with an operand. `fresh`: of
    those, the results that the matched op makes anew. `writes`: the replacement has in-place ops.
    `symbolic`: extents or integers count, in conditions or in the replacement.
    """

    rule: Rule
    root: Step
    moves: tuple[Move, ...]
    producers: dict[str, frozenset[str]]
    results: tuple[str, ...]
    outputs: frozenset[str]
    reads: frozenset[str]
    sources: frozenset[str]
    prepared: frozenset[str]
    aliasing: bool
    fresh: frozenset[str]
    writes: bool
    symbolic: bool

    @property
    def depth(self) -> int:
        return len(self.moves) + 1

    @property
    def root_ops(self) -> frozenset[str]:
        return frozenset(call.op for call in self.root.calls)

    @property
    def sideways(self) -> bool:
        """Whether a rewrite beside the root, and not only one before it, can make the pattern match."""
        return self.root.statement.starred or any(move.by_operand for move in self.moves)

    def may_start_at(self, node: Node) -> bool:
        """False where the operands' makers alone tell that the root is not here: a quick test for many rules."""
        return any(
            call.op == node.op
            and call.unpacks == node.unpacked
            and len(call.operands) == len(node.inputs)
            and self.makers_fit(call, node)
            for call in self.root.calls
        )

    def makers_fit(self, call: Call, node: Node) -> bool:
        makers = [value.producer.op if value.producer is not None else "" for value in node.inputs]
        swapped = [*makers[1::-1], *makers[2:]]
        return self.fit(call.operands, makers) or (
            may_commute(call.op, call.operands) and self.fit(call.operands, swapped)
        )

    def fit(self, operands: tuple[Operand, ...], makers: list[str]) -> bool:
        return all(
            maker in self.producers.get(operand.name, (maker,))
            for operand, maker in zip(operands, makers, strict=True)
            if isinstance(operand, Var)
        )


@functools.lru_cache(maxsize=1024)
def compile_pattern(rule: Rule) -> Pattern:
    """The plan for a rule. Statements whose result is already known come first: that is one look, not a search."""
    root = rule.root
    prepared = frozenset(target.name for statement in rule.prepare for target in statement.targets)
    bound = _names(root)
    waiting = list(rule.match[:-1])
    moves: list[Move] = []
    while waiting:
        move = _by_result(waiting, bound) or _by_operand(waiting, bound)
        if move is None:
            raise AssertionError(f"rule {rule.id}: a statement cannot be reached from the root")
        moves.append(move)
        waiting.remove(move.step)
        bound |= _names(move.step)
    return Pattern(
        rule=rule,
        root=root,
        moves=tuple(moves),
        producers={name: frozenset(call.op for call in step.calls) for step in rule.match for name in step.targets},
        results=rule.outputs,
        outputs=frozenset(rule.outputs),
        # A result's name in a replacement is the replacement's own.
        reads=frozenset(var.name for step in rule.replace for var in read_variables(step.statement))
        - {name for step in rule.match for name in step.targets},
        sources=frozenset(var.name for statement in rule.prepare for var in read_variables(statement)) - prepared,
        prepared=prepared,
        aliasing=not private_results(rule.replace).issuperset(rule.outputs),
        fresh=frozenset(
            name
            for step in rule.match
            for name in set(step.targets) & set(rule.outputs) - private_results(rule.replace)
            if not any(call.aliases for call in step.calls)
        ),
        writes=any(map(written_names, rule.replace)),
        symbolic=_is_symbolic(rule),
    )


def _is_symbolic(rule: Rule) -> bool:
    statements = [*(step.statement for step in rule.replace), *rule.prepare]
    return (
        bool(rule.require)
        or any(condition.shape is not None for condition in rule.where.values())
        or any(True for s in statements for argument in s.arguments for _ in expressions(argument.operand))
    )


def _names(step: Step) -> set[str]:
    return set(step.targets) | {var.name for var in read_variables(step.statement)}


def _by_result(waiting: list[Step], bound: set[str]) -> Move | None:
    for step in reversed(waiting):
        for name in step.targets:
            if name in bound:
                return Move(step, by_result=name)
    return None


def _by_operand(waiting: list[Step], bound: set[str]) -> Move | None:
    for step in reversed(waiting):
        shared = tuple(
            dict.fromkeys(var.name for var in read_variables(step.statement) if var.name in bound and not var.starred)
        )
        if shared:
            return Move(step, by_operand=shared)
    return None


def may_commute(op: str, operands: tuple[object, ...]) -> bool:
    """Whether the statement's first two operands may be exchanged."""
    if op not in COMMUTATIVE or len(operands) < 2:
        return False
    return len(operands) == 2 or (isinstance(operands[2], Literal) and operands[2].value == 1)
