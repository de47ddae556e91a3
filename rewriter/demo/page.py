"""The demo's report as one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape
from pathlib import Path

from rewriter.demo.result import DemoResult, describe_speedup

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #62676e; --line: #d9dce0; --paper: #fff; --card: #f5f6f8;
  --good: #12693b; --bad: #a3290f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e9eb; --soft: #9ba0a8; --line: #383c42; --paper: #17181b;
  --card: #212328; --good: #6fce9a; --bad: #f09078; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 62rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.1rem; margin: 2.5rem 0 .75rem; }
p { margin: 0 0 .75rem; }
.soft { color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .75rem; margin: 1.5rem 0 0; }
.card { background: var(--card); border-radius: .5rem; padding: .9rem 1rem; }
.card b { display: block; font-size: 1.45rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: .85rem; }
figure { margin: 0 0 1.25rem; }
figure img { display: block; max-width: 100%; height: auto; border-radius: .35rem; border: 1px solid var(--line); }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .35rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .4rem .9rem .4rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-size: .85rem; font-weight: 500; color: var(--soft); }
td.number, th.number { text-align: right; width: 6rem; }
code { font: .92em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.optimised { color: var(--good); } .eager { color: var(--bad); }
"""


def render(result: DemoResult, captions: dict[str, str]) -> str:
    """The page. `captions` names the pictures to embed, in order, by their key in `result.files`."""
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(result.target)}: eager and optimised</title>",
            f"<style>{_STYLE}</style></head><body>",
            *_head(result),
            *_pictures(result, captions),
            *_matches(result),
            *_networks(result),
            *_method(result),
            "</body></html>",
            "",
        ]
    )


def _head(result: DemoResult) -> list[str]:
    cards = [
        (f"{result.speedup:.2f} times", "as fast as eager, per step"),
        (f"{result.eager.step_ms:.2f} ms", "per step, eager"),
        (f"{result.optimised.step_ms:.2f} ms", "per step, optimised"),
        (f"{result.max_difference:.1e}" if result.max_difference else "0", "largest pixel difference, scale 0 to 1"),
    ]
    where = f"{result.device}, {result.dtype}, {result.steps} steps, seed {result.seed}"
    return [
        f"<header><h1>{escape(result.target)}, optimised: {escape(describe_speedup(result.speedup))}</h1>",
        f'<p class="soft">{escape(where)}</p>',
        '<div class="cards">',
        *(f'<div class="card"><b>{escape(value)}</b><span>{escape(label)}</span></div>' for value, label in cards),
        "</div></header>",
    ]


def _pictures(result: DemoResult, captions: dict[str, str]) -> list[str]:
    lines = ["<h2>Pictures</h2>"]
    for name, caption in captions.items():
        source = base64.b64encode(Path(result.files[name]).read_bytes()).decode("ascii")
        lines.append(
            f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{source}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )
    return lines


def _matches(result: DemoResult) -> list[str]:
    if not result.matches:
        return ["<h2>Matches</h2>", "<p>No rule matched in this pipeline.</p>"]
    rows = (
        f'<tr><td><code>{escape(rule)}</code></td><td class="number">{count.matched}</td>'
        f'<td class="number">{count.kept}</td></tr>'
        for rule, count in result.matches.items()
    )
    return [
        "<h2>Matches</h2>",
        '<p class="soft">Found: places where the rule applies and rewriting is proved safe. Kept: those that were not '
        "slower on this machine.</p>",
        *_table('<th>Rule</th><th class="number">Found</th><th class="number">Kept</th>', rows),
    ]


def _networks(result: DemoResult) -> list[str]:
    rows = []
    for component in result.components:
        error = "" if component.error is None else f"{component.error:.1e}"
        status, reason = escape(component.status), escape(component.reason or "")
        rows.append(
            f'<tr><td><code>{escape(component.name)}</code></td><td class="{status}">{status}</td>'
            f'<td class="number">{error}</td><td>{reason}</td></tr>'
        )
    return [
        "<h2>Networks</h2>",
        *_table('<th>Network</th><th>Status</th><th class="number">Error</th><th>Reason</th>', rows),
    ]


def _method(result: DemoResult) -> list[str]:
    turns = "eager and optimised calls in turns" if result.interleaved else "first the eager calls, then the others"
    eager, optimised = result.eager, result.optimised
    versions = ", ".join(f"{escape(name)} {escape(version)}" for name, version in result.versions.items())
    return [
        "<h2>How it was measured</h2>",
        f"<p>Median of {result.rounds} timed calls each, after a warm-up; {turns}; the speed is the median of "
        f"the ratios of neighbouring calls. Per step: eager "
        f"{eager.step_ms_lowest:.2f} to {eager.step_ms_highest:.2f} ms, optimised {optimised.step_ms_lowest:.2f} to "
        f"{optimised.step_ms_highest:.2f} ms. Whole call: eager {eager.call_seconds:.2f} s, optimised "
        f"{optimised.call_seconds:.2f} s. The first optimised call, which compiles, took "
        f"{result.first_call_seconds:.1f} s.</p>",
        f"<p>Relative difference of the pictures (L2, before rounding to 8 bits): {result.relative_difference:.1e}. "
        "The error of a network is that of its first call against eager.</p>",
        f'<p class="soft">{versions}</p>',
    ]


def _table(head: str, rows: Iterable[str]) -> list[str]:
    return ['<div class="wide"><table>', f"<thead><tr>{head}</tr></thead><tbody>", *rows, "</tbody></table></div>"]
