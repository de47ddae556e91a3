"""Leaves out the rules and the providers that failed their proof on the machine that a graph is for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rewriter.graph.conditions import Target
    from rewriter.language import RuleSet


def usable(rules: RuleSet, target: Target) -> tuple[RuleSet, tuple[str, ...]]:
    """The rules without those that failed, and what the report says about it. Providers that failed serve no op."""
    from rewriter.language import RuleSet
    from rewriter.ops import dispatch
    from rewriter.proof import verdict

    if target.device not in ("cpu", "cuda"):
        return rules, ()
    found = verdict.excluded(target.device, rules)
    left_out = [
        f"left out: {reason}; `rewriter test --device {target.device} --rule {rule}` proves it anew"
        for rule, reason in found.rules.items()
    ]
    dispatch.exclude(found.providers)
    left_out += [f"not used: {reason}" for reason in found.providers.values()]
    kept = RuleSet(tuple(rule for rule in rules if rule.id not in found.rules))
    return (kept if left_out else rules), (*left_out, *found.ignored)
