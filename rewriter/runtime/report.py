"""What became of each network: as data, as text and as a page."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

import torch

from rewriter.runtime.component import Component
from rewriter.runtime.networks import compiled, component_of, find_networks
from rewriter.runtime.report_html import page
from rewriter.runtime.report_text import table, wrapped
from rewriter.runtime.session import components_of

_HEADS: tuple[str, ...] = (
    "NETWORK",
    "STATUS",
    "REWRITES",
    "NODES",
    "ERROR",
    "READY",
    "MEMORY",
    "CALLS",
    "EAGER",
)

Status = Literal["optimised", "pending", "eager"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RuleCount:
    """How often a rule matched legally, and how many of these rewrites are in the graph that runs."""

    matched: int
    kept: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComponentReport:
    """One network.

    status: "optimised" (runs a rewritten graph), "pending" (not called yet) or "eager"; reason: why eager.
    matches, nodes_before, nodes_after, seconds: of the latest capture. refusals: near misses as (rule, node, reason).
    error: largest relative L2 error against eager on a capture's first inputs, None if not compared.
    memory: bytes of prepared weights, and of base weights beside those with adapters in them.
    captures: traces made so far, `calls` and `eager_calls`: calls so far.
    """

    name: str
    module: str
    status: Status
    reason: str | None
    matches: dict[str, RuleCount]
    refusals: list[tuple[str, str, str]]
    nodes_before: int
    nodes_after: int
    error: float | None
    seconds: dict[str, float]
    memory: int
    captures: int
    calls: int
    eager_calls: int
    messages: list[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """The state of an optimised target at one moment; `str()` gives a table."""

    target: str
    rules: int
    components: dict[str, ComponentReport]

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers."""
        return dataclasses.asdict(self)

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Writes a page that needs nothing beside it."""
        pathlib.Path(path).write_text(page(self), encoding="utf-8")

    def __str__(self) -> str:
        count = Counter(part.status for part in self.components.values())
        states = ", ".join(f"{count[status]} {status}" for status in ("optimised", "eager", "pending") if count[status])
        lines = [f"{self.target}: {states} ({self.rules} rules)", ""]
        rows = [_HEADS]
        for name, part in self.components.items():
            rows.append((name, *cells(part)))
        lines += table(rows, right=frozenset({2, 3, 4, 5, 6, 7, 8}))
        for name, part in self.components.items():
            lines += _details(name, part)
        return "\n".join(lines)


def cells(part: ComponentReport) -> tuple[str, ...]:
    """The short facts of a network, as they stand in a row."""
    kept = sum(count.kept for count in part.matches.values())
    matched = sum(count.matched for count in part.matches.values())
    done = part.status == "optimised"
    return (
        part.status,
        f"{kept} of {matched}" if done else "",
        f"{part.nodes_before} > {part.nodes_after}" if done else "",
        f"{part.error:.1e}" if part.error is not None else "",
        f"{sum(part.seconds.values()):.1f} s" if part.seconds else "",
        f"{part.memory / 2**20:.1f} MiB" if part.memory else "",
        str(part.calls),
        str(part.eager_calls),
    )


def times(part: ComponentReport) -> str:
    """Where the time until ready went."""
    return ", ".join(f"{phase} {seconds:.2f} s" for phase, seconds in part.seconds.items())


def _details(name: str, part: ComponentReport) -> list[str]:
    lines = ["", f"{name} ({part.module})"]
    if part.reason:
        lines += wrapped(f"eager because {part.reason}", indent=2)
    if part.seconds:
        lines.append(f"  {times(part)}")
    if part.matches:
        rows = [("RULE", "FOUND", "KEPT")]
        ordered = sorted(part.matches.items(), key=lambda item: (-item[1].kept, -item[1].matched, item[0]))
        rows += [(rule, str(count.matched), str(count.kept)) for rule, count in ordered]
        lines += [f"  {line}" for line in table(rows, right=frozenset({1, 2}))]
    for message in part.messages:
        lines += wrapped(message, indent=2, first="- ")
    return lines if len(lines) > 2 else []


def report(target: object) -> Report:
    """What became of each network of an optimised pipeline or module.

    Raises RewriterError if it is not optimised and TypeError for another kind of object.
    """
    components = components_of(target)
    rules = next(iter(components.values())).options.rules
    networks = find_networks(target)
    return Report(
        target=type(target).__name__,
        rules=len(rules),
        components={
            **{name: _component_report(name, component, networks.get(name)) for name, component in components.items()},
            **{name: _stranger(name, module) for name, module in networks.items() if _is_stranger(module, components)},
        },
    )


def _is_stranger(module: torch.nn.Module, components: Mapping[str, Component]) -> bool:
    """Whether the target has got this network since it was optimised."""
    known = any(component.module is module for component in components.values())
    return not known and compiled(module) is None and component_of(module) is None


def _stranger(name: str, module: torch.nn.Module) -> ComponentReport:
    reason = "it came here after rewriter.optimize; call rewriter.optimize once more"
    return ComponentReport(
        name=name,
        module=type(module).__name__,
        status="eager",
        reason=reason,
        matches={},
        refusals=[],
        nodes_before=0,
        nodes_after=0,
        error=None,
        seconds={},
        memory=0,
        captures=0,
        calls=0,
        eager_calls=0,
        messages=[],
    )


def _component_report(name: str, component: Component, present: torch.nn.Module | None) -> ComponentReport:
    """`present`: the network of that name now, which may be a wrapper around the one that was optimised."""
    programs, journal = component.programs, component.journal
    latest = component.latest or (programs[-1] if programs else None)
    done = latest.rewritten if latest is not None else None
    rewrites = done.rewrites if done is not None else ()
    matched, kept = Counter(rule for rule, _ in rewrites), Counter(rule for rule, kept in rewrites if kept)
    errors = [program.error for program in programs if program.error is not None]
    module = component.module
    bypassed = next((reason for each in (present, module) if each is not None and (reason := compiled(each))), None)
    reason = bypassed or journal.reason
    status: Status = "eager" if reason else "optimised" if programs else "pending"
    return ComponentReport(
        name=name,
        module=type(module).__name__,
        status=status,
        reason=reason,
        matches={rule: RuleCount(matched=matched[rule], kept=kept[rule]) for rule in matched},
        refusals=list(done.refusals) if done is not None else [],
        nodes_before=done.nodes_before if done is not None else 0,
        nodes_after=done.nodes_after if done is not None else 0,
        error=max(errors) if errors else None,
        seconds=dict(latest.seconds) if latest is not None else {},
        memory=component.memory(),
        captures=journal.captures,
        calls=journal.calls,
        eager_calls=journal.eager_calls,
        messages=[*journal.messages, *(latest.messages if latest is not None else ())],
    )
