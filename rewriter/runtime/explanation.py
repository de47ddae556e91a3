"""Where each rule fired in what was captured, and what kept the near misses from it."""

from __future__ import annotations

import dataclasses
from typing import Any

from rewriter.errors import RewriterError
from rewriter.runtime.component import Component
from rewriter.runtime.report_text import table, wrapped
from rewriter.runtime.session import components_of
from rewriter.runtime.verdicts import usable

_MOST_LINES = 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fired:
    """A rule's rewrite. `site`: the value that the pattern's root made; `scope`: the module that it stands in."""

    rule: str
    site: str
    scope: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class NearMiss:
    """A place where `depth` of a pattern's `total` statements matched before `reason` ended it at `node`."""

    rule: str
    node: str
    scope: str
    depth: int
    total: int
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComponentExplanation:
    """One network. `silent`: rules that matched nowhere, not even in part."""

    name: str
    fired: list[Fired]
    near_misses: list[NearMiss]
    silent: list[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explanation:
    """What every rule, or one, did in each network.

    `str()` gives text, near misses that got furthest first: of one rule each of them, of all rules each reason once.
    """

    rule: str | None
    components: dict[str, ComponentExplanation]

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        lines: list[str] = []
        for name, part in self.components.items():
            lines += [name, *_text(part, every=self.rule is not None), ""]
        return "\n".join(lines).rstrip()


def explain(target: object, rule: str | None = None) -> Explanation:
    """Applies the rules once more to what the target's networks have captured, and collects near misses.

    Every rewrite that is legal is listed, whether or not measuring kept it. `rule` restricts this to one rule's.
    Raises RewriterError if the target is not optimised, if no network has been captured yet, or for an unknown rule.
    """
    components = components_of(target)
    if rule is not None:
        known = [each.id for component in components.values() for each in component.options.rules]
        if rule not in known:
            rules = ", ".join(sorted(set(known)))
            raise RewriterError(f"the target is not optimised with a rule {rule!r}; its rules: {rules}")
    explained = {name: _explain(name, component, rule) for name, component in components.items() if component.programs}
    if not explained:
        reasons = "; ".join(f"{name}: {each.journal.reason or 'not called yet'}" for name, each in components.items())
        raise RewriterError(f"there is no captured graph to explain; call the target first ({reasons})")
    return Explanation(rule=rule, components=explained)


def _explain(name: str, component: Component, rule: str | None) -> ComponentExplanation:
    from rewriter.graph import engine

    program = component.latest or component.programs[-1]
    rules, _ = usable(component.options.rules, program.target)
    recording = program.recording
    result = engine.rewrite(recording.graph, rules, weights=len(recording.weights), explain=True, target=program.target)
    fired = [Fired(rule=done.rule, site=done.site, scope=done.scope) for done in result.rewrites]
    misses = [
        NearMiss(rule=r.rule, node=r.node, scope=r.scope, depth=r.depth, total=r.total, reason=r.reason)
        for r in result.refusals
    ]
    misses.sort(key=lambda miss: (miss.total - miss.depth, -miss.depth))
    heard = {item.rule for item in fired} | {miss.rule for miss in misses}
    return ComponentExplanation(
        name=name,
        fired=[item for item in fired if rule in (None, item.rule)],
        near_misses=[item for item in misses if rule in (None, item.rule)],
        silent=[each.id for each in rules if each.id not in heard and rule in (None, each.id)],
    )


def _text(part: ComponentExplanation, *, every: bool) -> list[str]:
    lines: list[str] = []
    for rule in dict.fromkeys(item.rule for item in part.fired):
        places = [item for item in part.fired if item.rule == rule]
        lines.append(f"  {rule} fired {len(places)} times")
        rows = [("SITE", "MODULE"), *((item.site, item.scope) for item in places)]
        lines += _shortened([f"    {line}" for line in table(rows)[1:]])
    for rule in dict.fromkeys(item.rule for item in part.near_misses):
        misses = [item for item in part.near_misses if item.rule == rule]
        lines.append(f"  {rule} nearly matched {len(misses)} times")
        lines += _shortened(_each(misses) if every else _by_reason(misses))
    if part.silent:
        lines += wrapped(f"matched nowhere: {', '.join(part.silent)}", indent=2)
    return lines or ["  no rule matched, not even in part"]


def _each(misses: list[NearMiss]) -> list[str]:
    return [line for miss in misses for line in wrapped(f"{_how_far(miss)} at {_place(miss)}", indent=4)]


def _by_reason(misses: list[NearMiss]) -> list[str]:
    """Furthest first as the misses are, then those with most places."""
    alike: dict[tuple[int, int, str], list[NearMiss]] = {}
    for miss in misses:
        alike.setdefault((miss.total - miss.depth, -miss.depth, miss.reason), []).append(miss)
    lines: list[str] = []
    for _, places in sorted(alike.items(), key=lambda item: (*item[0][:2], -len(item[1]))):
        first = f" in {len(places)} places, first" if len(places) > 1 else ""
        lines += wrapped(f"{_how_far(places[0])}{first} at {_place(places[0])}", indent=4)
    return lines


def _how_far(miss: NearMiss) -> str:
    return f"{miss.depth} of {miss.total} statements, then {miss.reason}"


def _place(miss: NearMiss) -> str:
    return f"{miss.node} in {miss.scope}" if miss.scope else miss.node


def _shortened(lines: list[str]) -> list[str]:
    if len(lines) <= _MOST_LINES:
        return lines
    return [*lines[:_MOST_LINES], f"    and {len(lines) - _MOST_LINES} more lines"]
