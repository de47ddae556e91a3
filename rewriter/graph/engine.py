"""Applies rules to a graph: phase by phase, each node once per change around it, within a bound."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable

from rewriter import collector, torch_ir
from rewriter.errors import RewriterError
from rewriter.graph.conditions import Judgement, Target, judge
from rewriter.graph.inference import Impossible
from rewriter.graph.match import Match, Refusal
from rewriter.graph.matcher import Matcher
from rewriter.graph.pattern import Pattern, compile_pattern
from rewriter.graph.prepare import Prepared
from rewriter.graph.replace import Replacer
from rewriter.graph.safety import Safety
from rewriter.graph.view import Node, View
from rewriter.graph.worklist import Change, Index, Tier
from rewriter.language.conditions import PHASES
from rewriter.language.rule import RuleSet

# A rule and an original node, by position, that it may not cover.
Blocked = frozenset[tuple[str, int]]

# Rewrites per node of the graph before a rule set counts as endless.
_BOUND = 4


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

    def then(self, later: Rewritten) -> Rewritten:
        """`later`, made from this one's graph, as one rewriting of what this was made from."""
        return dataclasses.replace(
            later,
            rewrites=self.rewrites + later.rewrites,
            prepared=self.prepared + later.prepared,
            specialised=self.specialised or later.specialised,
            nodes_before=self.nodes_before,
        )


def rewrite(
    graph: torch_ir.Graph,
    rules: RuleSet,
    *,
    weights: int,
    explain: bool = False,
    blocked: Blocked = frozenset(),
    phases: tuple[str, ...] = PHASES,
    target: Target | None = None,
    observe: Callable[[Match], None] = lambda _: None,
) -> Rewritten:
    """Applies `rules` to a copy of a canonical graph whose last `weights` inputs are weights.

    `blocked`: pairs of a rule and an original node (by position) that it may not cover. `explain`: also collect near
    misses. `observe` is shown each match right before it is replaced.
    Raises EndlessRules if the rules do not come to an end.
    """
    with collector.paused():
        return _Engine(graph.copy(), rules, weights, explain, blocked, phases, target, observe).run()


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
        observe: Callable[[Match], None],
    ) -> None:
        self.view = View(graph, weights)
        self.rules = rules
        self.explain = explain
        self.blocked = blocked
        self.phases = phases
        self.target = target or Target(_device(self.view))
        self.observe = observe
        self.safety = Safety(self.view)
        self.replacer = Replacer(self.view, functional=not self.safety.writes)
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
        self.view.record_facts()
        # The mirror goes on pointing into its own graph, so torch's passes clean a copy.
        graph = self.view.graph.copy()
        torch_ir.clean(graph)
        return Rewritten(
            graph=graph,
            rewrites=tuple(self.rewrites),
            refusals=tuple(self.refusals),
            prepared=tuple(self.replacer.recipes.made),
            specialised=self.specialised,
            nodes_before=self.nodes_before,
            nodes_after=sum(1 for _ in graph.nodes()),
            view=self.view,
        )

    def phase(self, phase: str, patterns: list[Pattern]) -> None:
        benefits = sorted({pattern.rule.benefit for pattern in patterns}, reverse=True)
        tiers = [Tier([each for each in patterns if each.rule.benefit == benefit]) for benefit in benefits]
        again = True
        while again:
            for each in tiers:
                each.start(self.view)
            # A rule of more benefit goes first everywhere, not only where both match at one node.
            while tier := next((each for each in tiers if each.pending), None):
                node = tier.next()
                changed = self.visit(node, tier.index, phase) if node.alive else None
                if changed is not None:
                    for each in tiers:
                        each.look_again(changed)
            again = not all(tier.near.complete for tier in tiers)

    def visit(self, node: Node, index: Index, phase: str) -> Change | None:
        """Applies the first rule that fits, or none."""
        for pattern in index.patterns(node, everything=self.explain):
            changed = self.attempt(pattern, node, phase)
            if changed is not None:
                return changed
        return None

    def attempt(self, pattern: Pattern, node: Node, phase: str) -> Change | None:
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
        self.observe(match)
        try:
            made = self.replacer.replace(match, judgement, place)
        except Impossible as reason:
            if self.explain:
                matcher.refuse(str(reason), node, len(pattern.rule.match))
                self.refusals.append(matcher.refusal())
            return None
        self.safety.made(match, made)
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
        return Change(made, operands)

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


def _scope(node: Node) -> str:
    """New nodes have no scope of their own: that of the nearest operand's maker stands in."""
    for value in node.inputs:
        if value.producer is not None and value.producer.rule is None and value.producer.scope:
            return value.producer.scope
    return ""
