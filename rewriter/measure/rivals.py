"""Rules that ask for the same nodes: where two of them pay, the faster one is kept."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rewriter.graph.conditions import elsewhere
from rewriter.graph.engine import Blocked, Rewrite, Rewritten
from rewriter.graph.view import Node, View
from rewriter.language.rule import Rule
from rewriter.measure.grouping import regions
from rewriter.measure.region import Pair, Unmeasurable, cut

if TYPE_CHECKING:
    from rewriter.measure.regions import Prepare, Regions

_log = logging.getLogger("rewriter")


@dataclasses.dataclass(frozen=True, slots=True)
class _Contest:
    """A region as a rule and as its rivals have made it; `mine` are the rule's rewrites there."""

    pair: Pair
    name: str
    mine: list[Rewrite]


def settle(measured: Regions, result: Rewritten, blocked: Blocked, prepare: Prepare) -> Rewritten:
    """`result`, in which rules have made way for their rivals where those are faster.

    A rule that is tried before another takes nodes that this would have matched. Each is measured against what was
    there before, so that the first is kept even where the second would save more. `blocked` is what `result` was made
    with. `prepare` is given what will be timed of another form.
    """
    for rule in measured.rules:
        if not any(each.id in rule.rivals and elsewhere(each, measured.target) is None for each in measured.rules):
            continue
        fired = [done for done in result.rewrites if done.rule == rule.id]
        if not fired:
            continue
        other = measured.rewritten(blocked | _origins(fired))
        contests = list(_contests(measured, result, other, rule))
        if not contests:
            continue
        prepare(_unknown(measured, contests))
        lost = [done for contest in contests if _rival_wins(measured, contest) for done in contest.mine]
        _log.info("measuring: %d of %d rewrites by %s make way for a rival", len(lost), len(fired), rule.id)
        for done in other.rewrites:
            measured.seen.setdefault((done.rule, done.origins), done)
        if lost:
            blocked |= _origins(lost)
            result = measured.rewritten(blocked)
    return result


def _contests(measured: Regions, result: Rewritten, other: Rewritten, rule: Rule) -> Iterator[_Contest]:
    by_rule = {(done.rule, done.origins) for done in result.rewrites if done.rule == rule.id}
    by_rival = {(done.rule, done.origins) for done in other.rewrites if done.rule in rule.rivals}
    nodes = [_by_origin(side.view) for side in (result, other)]
    for origins, members in regions([*result.rewrites, *other.rewrites]):
        mine, theirs = ([done for done in members if (done.rule, done.origins) in side] for side in (by_rule, by_rival))
        if not mine or not theirs:
            continue
        name = " or ".join(dict.fromkeys(done.rule for done in (*mine, *theirs)))
        before, after = (list({id(n): n for o in origins for n in side.get(o, ())}.values()) for side in nodes)
        try:
            # Each form has prepared weights of its own, numbered anew: plans are not shared, weights are drawn.
            yield _Contest(Pair(cut(before, {}, measured.weights), cut(after, {}, measured.weights)), name, mine)
        except Unmeasurable as error:
            measured.not_timed(name, error, mine[0].site)


def _unknown(measured: Regions, contests: Sequence[_Contest]) -> Iterator[Callable[[], Any]]:
    pairs = {contest.pair.key: contest.pair for contest in contests}
    for key, pair in pairs.items():
        if measured.cache.get(key) is None:
            yield pair.after.call({}, ())


def _rival_wins(measured: Regions, contest: _Contest) -> bool:
    try:
        timing = measured.timed(contest.pair, contest.name, ())
    except (Unmeasurable, RuntimeError) as error:
        measured.not_timed(contest.name, error, contest.mine[0].site)
        return False
    return timing.after < timing.before


def _by_origin(view: View) -> dict[int, list[Node]]:
    found: dict[int, list[Node]] = {}
    for node in view.alive():
        for origin in node.origins:
            found.setdefault(origin, []).append(node)
    return found


def _origins(rewrites: Sequence[Rewrite]) -> Blocked:
    return frozenset((done.rule, origin) for done in rewrites for origin in done.origins)
