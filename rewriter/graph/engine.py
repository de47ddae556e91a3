"""Applies rules to a graph: phase by phase, each node once per change around it, within a bound."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import gc
from collections.abc import Iterable, Iterator

from rewriter import torch_ir
from rewriter.errors import RewriterError
from rewriter.graph.conditions import Judgement, Target, judge
from rewriter.graph.matcher import Match, Matcher, Refusal
from rewriter.graph.pattern import Pattern, compile_pattern
from rewriter.graph.prepare import Prepared
from rewriter.graph.replace import Impossible, Replacer
from rewriter.graph.safety import Safety
from rewriter.graph.view import Node, Value, View
from rewriter.language.conditions import PHASES
from rewriter.language.rule import RuleSet

# A rule and an original node, by position, that it may not cover.
Blocked = frozenset[tuple[str, int]]

# Rewrites per node of the graph before a rule set counts as endless.
_BOUND = 4
# Beyond so many readers of a value, a change near it is not followed to each of them.
_MANY_READERS = 32


class EndlessRules(RewriterError):
    """Rules that still fire after many more rewrites than the graph has nodes; the message names them."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rewrite:
    """One rewrite. `site`: the value that the pattern's root made; `origins`: the original nodes it stems from."""

    rule: str
    site: str
    scope: str
    phase: str
    origins: frozenset[int]
    kept: bool = True


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rewritten:
    """A rewritten graph. Its inputs are the activations, the weights, and one input per prepared weight."""

    graph: torch_ir.Graph
    rewrites: tuple[Rewrite, ...]
    refusals: tuple[Refusal, ...]
    prepared: tuple[Prepared, ...]
    specialised: bool
    nodes_before: int
    nodes_after: int
    view: View = dataclasses.field(repr=False, compare=False)


def rewrite(
    graph: torch_ir.Graph,
    rules: RuleSet,
    *,
    weights: int,
    explain: bool = False,
    blocked: Blocked = frozenset(),
    phases: tuple[str, ...] = PHASES,
    target: Target | None = None,
) -> Rewritten:
    """Applies `rules` to a copy of a canonical graph whose last `weights` inputs are weights.

    `blocked`: pairs of a rule and an original node (by position) that it may not cover. `explain`: also collect near misses.
    Raises EndlessRules if the rules do not come to an end.
    """
    with _paused_collector():
        return _Engine(graph.copy(), rules, weights, explain, blocked, phases, target).run()


@contextlib.contextmanager
def _paused_collector() -> Iterator[None]:
    """A mirror of a large graph is many small objects at once, which would make the collector walk everything alive."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Engine:
    def __init__(
        self,
        graph: torch_ir.Graph,
        rules: RuleSet,
        weights: int,
        explain: bool,
        blocked: Blocked,
        phases: tuple[str, ...],
        target: Target | None,
    ) -> None:
        self.view = View(graph, weights)
        self.rules = rules
        self.explain = explain
        self.blocked = blocked
        self.phases = phases
        self.target = target or Target(_device(self.view))
        self.safety = Safety(self.view)
        self.replacer = Replacer(self.view)
        self.rewrites: list[Rewrite] = []
        self.refusals: list[Refusal] = []
        self.fired: collections.Counter[str] = collections.Counter()
        self.specialised = False
        self.nodes_before = sum(1 + node.unpacked for node in self.view.nodes)
        self.limit = _BOUND * self.nodes_before + 100

    def run(self) -> Rewritten:
        for phase in self.phases:
            patterns = [compile_pattern(rule) for rule in self.rules if rule.phase == phase]
            if patterns:
                self.phase(phase, patterns)
        self.view.sweep()
        # The mirror goes on pointing into its own graph, so torch's passes clean a copy.
        graph = self.view.graph.copy()
        torch_ir.clean(graph)
        return Rewritten(
            graph=graph,
            rewrites=tuple(self.rewrites),
            refusals=tuple(self.refusals),
            prepared=tuple(self.replacer.prepared),
            specialised=self.specialised,
            nodes_before=self.nodes_before,
            nodes_after=sum(1 for _ in graph.nodes()),
            view=self.view,
        )

    def phase(self, phase: str, patterns: list[Pattern]) -> None:
        index = _Index(patterns)
        near = _Neighbourhood(patterns)
        again = True
        while again:
            roots = (node for op in index.ops for node in self.view.by_op.get(op, ()) if node.alive)
            pending = collections.deque(sorted(roots, key=_order))
            waiting = set(pending)
            near.complete = True
            while pending:
                node = pending.popleft()
                waiting.discard(node)
                changed = self.visit(node, index, phase) if node.alive else None
                if changed is not None:
                    fresh = [node for node in near.readers(changed) if node.op in index.ops and node not in waiting]
                    pending.extend(fresh)
                    waiting.update(fresh)
            again = not near.complete

    def visit(self, node: Node, index: _Index, phase: str) -> _Change | None:
        """Applies the first rule that fits, or none."""
        for pattern in index.patterns(node, everything=self.explain):
            changed = self.attempt(pattern, node, phase)
            if changed is not None:
                return changed
        return None

    def attempt(self, pattern: Pattern, node: Node, phase: str) -> _Change | None:
        accepted: list[tuple[Judgement, Node]] = []

        def check(match: Match) -> str | None:
            if self.blocked and self.is_blocked(pattern.rule.id, match):
                return "it was measured here and does not pay"
            judgement = judge(match, self.target)
            if isinstance(judgement, str):
                return judgement
            place = self.safety.place(match)
            if isinstance(place, str):
                return place
            accepted.append((judgement, place))
            return None

        matcher = Matcher(pattern, node, check)
        match = matcher.run()
        if match is None:
            if self.explain:
                self.refusals.append(matcher.refusal())
            return None
        judgement, place = accepted[-1]
        site, scope = node.outputs[0].name, node.scope or _scope(node)
        operands = [value for covered in match.nodes for value in covered.inputs]
        try:
            made = self.replacer.replace(match, judgement, place)
        except Impossible as reason:
            if self.explain:
                matcher.refuse(str(reason), node, len(pattern.rule.match))
                self.refusals.append(matcher.refusal())
            return None
        self.count(pattern)
        self.specialised |= judgement.specialised
        self.rewrites.append(
            Rewrite(
                rule=pattern.rule.id,
                site=site,
                scope=scope,
                phase=phase,
                origins=frozenset().union(*(covered.origins for covered in match.nodes)),
            )
        )
        return _Change(made, operands)

    def is_blocked(self, rule: str, match: Match) -> bool:
        return any((rule, origin) in self.blocked for covered in match.nodes for origin in covered.origins)

    def count(self, pattern: Pattern) -> None:
        self.fired[pattern.rule.id] += 1
        if self.fired.total() > self.limit:
            busiest = ", ".join(f"{rule} ({count} times)" for rule, count in self.fired.most_common(3))
            raise EndlessRules(
                f"the rules do not come to an end: {self.limit} rewrites of a graph of {self.nodes_before} nodes, "
                f"most by {busiest}. A replacement must not contain what another rule's pattern makes of it."
            )


def _device(view: View) -> str:
    """The device of most of the graph's tensors: that of its first weight, or else of its first input."""
    for value in (*view.weights, *view.inputs):
        facts = value.facts
        if facts is not None:
            return facts.device
    return "cpu"


def _order(node: Node) -> float:
    return node.order


def _scope(node: Node) -> str:
    """New nodes have no scope of their own: that of the nearest operand's maker stands in."""
    for value in node.inputs:
        if value.producer is not None and value.producer.rule is None and value.producer.scope:
            return value.producer.scope
    return ""


class _Index:
    """The patterns of a phase by root op, and by the ops that make the root's operands."""

    def __init__(self, patterns: list[Pattern]) -> None:
        self.ops: dict[str, list[Pattern]] = {}
        for pattern in patterns:
            for op in sorted(pattern.root_ops):
                self.ops.setdefault(op, []).append(pattern)
        self.known: dict[tuple[object, ...], list[Pattern]] = {}

    def patterns(self, node: Node, *, everything: bool) -> list[Pattern]:
        """Those that may match at the node; with `everything` also those that its operands' makers rule out."""
        if everything:
            return self.ops[node.op]
        makers = [value.producer.op if value.producer is not None else "" for value in node.inputs]
        key = (node.op, node.unpacked, *makers)
        if key not in self.known:
            self.known[key] = [pattern for pattern in self.ops[node.op] if pattern.may_start_at(node)]
        return self.known[key]


@dataclasses.dataclass(frozen=True, slots=True)
class _Change:
    """The nodes that a rewrite made, and the values that now have fewer readers."""

    made: list[Node]
    operands: list[Value]


class _Neighbourhood:
    """Finds the nodes where a change may have made a pattern match.

    `complete`: no value with very many readers was passed over; otherwise the phase looks at every node again.
    """

    def __init__(self, patterns: list[Pattern]) -> None:
        self.reach = max(pattern.depth for pattern in patterns)
        self.sideways = any(pattern.sideways for pattern in patterns)
        self.complete = True

    def readers(self, change: _Change) -> list[Node]:
        values = [value for node in change.made for value in node.outputs]
        if self.sideways or not change.made:
            values += [value for node in change.made for value in node.inputs] + change.operands
        else:
            values += [value for value in change.operands if value.producer is not None]
        found: dict[Node, None] = {}
        front = self.few(dict.fromkeys(values))
        for _ in range(self.reach):
            nodes = dict.fromkeys(user for value in front for user, _ in value.uses if user not in found)
            found.update(nodes)
            front = self.few(value for node in nodes for value in node.outputs)
            if not front:
                break
        return list(found)

    def few(self, values: Iterable[Value]) -> list[Value]:
        kept: list[Value] = []
        for value in values:
            if len(value.uses) <= _MANY_READERS:
                kept.append(value)
            else:
                self.complete = False
        return kept
