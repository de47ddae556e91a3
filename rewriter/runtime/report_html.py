"""A report as one HTML file without scripts or anything to load."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rewriter.runtime.report import ComponentReport, Report

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8888881a; --good: #1a7f37; --bad: #b35900; --wait: #6e7781; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .8rem 0; }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; } .number { text-align: right; font-variant-numeric: tabular-nums; }
.optimised { color: var(--good); } .eager { color: var(--bad); } .pending { color: var(--wait); }
.reason, details { background: var(--soft); padding: .6rem .8rem; border-radius: .4rem; margin: .6rem 0; }
code { font: 13px/1.5 ui-monospace, monospace; overflow-wrap: anywhere; }
"""


def page(report: Report) -> str:
    """The whole page. Every text from outside is escaped."""
    from rewriter.runtime.report import cells

    heads = ("Network", "Status", "Rewrites kept", "Nodes", "Error", "Ready after", "Memory", "Calls", "Eager calls")
    rows = [(name, *cells(part)) for name, part in report.components.items()]
    sections = "".join(_section(name, part) for name, part in report.components.items())
    title = f"{report.target}: {len(report.components)} networks, {report.rules} rules"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{escape(report.target)}</h1>"
        f"<p>{len(report.components)} networks, {report.rules} rules. The error is the relative L2 error against "
        f"eager on a capture's first inputs.</p>"
        f"{_table(heads, rows, first_number=2, classed=1)}{sections}</body></html>\n"
    )


def _section(name: str, part: ComponentReport) -> str:
    from rewriter.runtime.report import times

    parts = [f"<h2>{escape(name)} <small>{escape(part.module)}</small></h2>"]
    if part.reason:
        parts.append(f'<p class="reason">Runs eagerly because {escape(part.reason)}</p>')
    if part.seconds:
        parts.append(f"<p>{escape(times(part))}</p>")
    if part.matches:
        ordered = sorted(part.matches.items(), key=lambda item: (-item[1].kept, -item[1].matched, item[0]))
        rows = [(rule, str(count.matched), str(count.kept)) for rule, count in ordered]
        parts.append(_table(("Rule", "Found", "Kept"), rows, first_number=1))
    if part.messages:
        items = "".join(f"<li>{escape(message)}</li>" for message in part.messages)
        parts.append(f"<details><summary>{len(part.messages)} messages</summary><ul>{items}</ul></details>")
    if part.refusals:
        table = _table(("Rule", "Node", "Reason"), part.refusals, first_number=3)
        parts.append(f"<details><summary>{len(part.refusals)} near misses</summary>{table}</details>")
    return "".join(parts)


def _table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], *, first_number: int, classed: int | None = None
) -> str:
    def cell(tag: str, index: int, text: str) -> str:
        kind = "number" if index >= first_number else text if tag == "td" and index == classed else ""
        return f'<{tag} class="{escape(kind)}">{escape(text)}</{tag}>'

    head = "".join(cell("th", index, text) for index, text in enumerate(heads))
    body = "".join(
        "<tr>" + "".join(cell("td", index, text) for index, text in enumerate(row)) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
