"""What each rule is worth: the step with all rules against the step with all but one."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any

from rewriter.bench import timing
from rewriter.bench.modes import optimised
from rewriter.bench.runs import release
from rewriter.bench.step import Step
from rewriter.bench.tables import Rows
from rewriter.causes import described

if TYPE_CHECKING:
    from rewriter.language import RuleSet


@dataclasses.dataclass(frozen=True, kw_only=True)
class Worth:
    """One rule: how many of its rewrites were kept, seconds of the step with and without it, or why not known.

    `speedup` is the median, over the rounds, of the time without the rule over the time with it.
    """

    rule: str
    kept: int
    with_rule: float | None = None
    without: float | None = None
    speedup: float | None = None
    failure: str | None = None

    @property
    def seconds(self) -> float | None:
        """What the rule saves in each call; below zero where the step is faster without it."""
        if self.with_rule is None or self.speedup is None:
            return None
        return self.with_rule * (self.speedup - 1)


def ablate(
    step: Step,
    rules: RuleSet,
    *,
    seconds: float,
    only: Collection[str] = (),
    notice: Callable[[list[Worth], int], None] = lambda _found, _all: None,
) -> list[Worth]:
    """Leaves out one rule at a time, of `only` these or all with kept rewrites, for about `seconds` of timing in all.

    Both sides are timed in turn. Another rule may take the place of the one that is left out: what a rule is worth is
    what it adds to the others. Nothing is compared with eager here. `notice` hears of the results so far and how many
    there will be. The most valuable rule comes first.
    """
    from rewriter.language import RuleSet

    found: list[Worth] = []
    with optimised(step.twin(), rules, verify=False) as everything:
        timing.begin(lambda: everything.call, step.device)
        kept = _kept(everything.reports())
        if only:
            kept = {rule: kept.get(rule, 0) for rule in only}
        notice(found, len(kept))
        for rule, count in kept.items():
            if not count:
                found.append(Worth(rule=rule, kept=0, failure="none of its rewrites is kept"))
                notice(_sorted(found), len(kept))
                continue
            fewer = RuleSet(tuple(other for other in rules if other.id != rule))
            try:
                with optimised(step.twin(), fewer, verify=False) as rest:
                    timing.begin(lambda rest=rest: rest.call, step.device)  # type: ignore[misc]
                    times = timing.compare(
                        {"with": everything.call, "without": rest.call}, step.device, seconds=seconds / len(kept)
                    )
            except Exception as error:  # what goes wrong without one rule is a result of its own
                found.append(Worth(rule=rule, kept=count, failure=described(error)))
            else:
                found.append(
                    Worth(
                        rule=rule,
                        kept=count,
                        with_rule=times["with"].median,
                        without=times["without"].median,
                        speedup=1 / times["without"].speed,
                    )
                )
            release(step.device)
            notice(_sorted(found), len(kept))
    return _sorted(found)


def worth_rows(found: Iterable[Worth]) -> Rows:
    """A head and a row per rule."""
    rows: Rows = [("RULE", "KEPT", "WITHOUT", "WORTH", "OF THE STEP")]
    for worth in found:
        if worth.failure or worth.seconds is None or worth.without is None or worth.with_rule is None:
            rows.append((worth.rule, str(worth.kept), "failed", worth.failure or "", ""))
            continue
        rows.append(
            (
                worth.rule,
                str(worth.kept),
                f"{worth.without * 1e3:.3f} ms",
                f"{worth.seconds * 1e3:+.3f} ms",
                f"{worth.seconds / worth.with_rule:+.1%}",
            )
        )
    return rows


def _kept(reports: Iterable[dict[str, Any]]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for report in reports:
        for part in report["components"].values():
            counts.update({rule: count["kept"] for rule, count in part["matches"].items() if count["kept"]})
    return dict(counts)


def _sorted(found: Iterable[Worth]) -> list[Worth]:
    return sorted(found, key=lambda worth: -(worth.seconds if worth.seconds is not None else -float("inf")))
