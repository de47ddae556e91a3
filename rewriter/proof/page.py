"""The results of proofs as one HTML file that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from rewriter.proof import plots
from rewriter.proof.outcome import Proof
from rewriter.proof.results import Results, Timed
from rewriter.proof.summary import achieved, cell, dates, dtypes, headline, refusals, rows

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #62676e; --line: #d9dce0; --paper: #fff; --card: #f5f6f8;
  --good: #12693b; --good-tint: #d9f0e2; --warm-tint: #f7efcf; --bad: #a3290f; --bad-tint: #f8dcd5; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e9eb; --soft: #9ba0a8; --line: #383c42; --paper: #17181b;
  --card: #212328; --good: #6fce9a; --good-tint: #17402a; --warm-tint: #46401c; --bad: #f09078; --bad-tint: #55231a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 66rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.1rem; margin: 2.5rem 0 .75rem; }
p { margin: 0 0 .75rem; }
.soft { color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { text-align: left; padding: .3rem .8rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-size: .85rem; font-weight: 500; color: var(--soft); white-space: nowrap; }
th:first-child, td:first-child { padding-left: 0; }
td.number, th.number { text-align: right; white-space: nowrap; }
td.proved { text-align: right; background: var(--good-tint); color: var(--good); }
td.close { text-align: right; background: var(--warm-tint); }
td.failed { text-align: right; background: var(--bad-tint); color: var(--bad); font-weight: 600; }
td.refused { text-align: right; color: var(--soft); }
code, pre { font: .92em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
pre { background: var(--card); padding: .75rem 1rem; border-radius: .4rem; overflow-x: auto; margin: 0 0 .75rem; }
.failure { background: var(--card); border-left: 3px solid var(--bad); border-radius: .2rem; padding: .7rem 1rem;
  margin: 0 0 .75rem; }
.failure p { margin: 0 0 .35rem; }
svg { display: block; max-width: 100%; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: var(--ink); }
svg .grid { stroke: var(--line); } svg .axis { stroke: var(--ink); }
svg .roof { fill: none; stroke: var(--soft); stroke-width: 1.5; stroke-dasharray: 6 3; }
svg .good { fill: var(--good); } svg .bad { fill: var(--bad); }
svg .was { fill: var(--paper); stroke: var(--soft); stroke-width: 1.5; }
svg .move { stroke: var(--soft); } svg .mark { stroke: var(--ink); stroke-width: 2; }
"""
# Nearer to the limit than this, a proof is coloured as a warning.
_CLOSE = 0.7


def page(results: Results) -> str:
    """The whole page. Every text from outside is escaped."""
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(headline(results))}</title>",
            f"<style>{_STYLE}</style></head><body>",
            f"<h1>{escape(headline(results))}</h1>",
            f'<p class="soft">{escape(_where(results))}</p>',
            *_proofs(results),
            *_failures(results),
            *_listed("Never taken", refusals(results)),
            *_survivors(results),
            *_speed(results),
            *_listed("Not done", results.problems),
            *_listed("Notes", results.notes),
            "</body></html>",
            "",
        ]
    )


def _where(results: Results) -> str:
    machine = results.machine
    parts = [f"{name} {version}" for name, version in machine.versions.items()]
    return ", ".join([*([f"sm_{machine.sm}"] if machine.sm is not None else []), *parts, results.date])


def _proofs(results: Results) -> list[str]:
    columns = dtypes(results)
    scores = {score.rule: f"{score.killed} of {score.total}" for score in results.scores}
    since = dates(results)
    heads = ["Rule", "Provider", *columns, *(["Mutants killed"] if scores else []), *(["Since"] if since else [])]
    body, before = [], ""
    for rule, provider, proofs in rows(results):
        first, before = rule != before, rule
        cells = [f"<td><code>{escape(rule)}</code></td>" if first else "<td></td>", f"<td>{escape(provider)}</td>"]
        cells += [_proof(proofs.get(dtype)) for dtype in columns]
        if scores:
            cells.append(f'<td class="number">{escape(scores.get(rule, "")) if first else ""}</td>')
        if since:
            cells.append(f'<td class="number">{escape(since.get(rule, "")) if first else ""}</td>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    examples = sum(proof.examples for proof in results.proofs)
    return [
        "<h2>Proofs</h2>",
        f'<p class="soft">The largest error in {examples} examples against the float64 result, as a share of what is '
        "allowed: the rule's tolerance times the error of the unfused ops, and a floor.</p>",
        *_table(heads, body, first_number=2),
    ]


def _proof(proof: Proof | None) -> str:
    text = cell(proof)
    if proof is None or not text:
        return "<td></td>"
    kind = text if text in ("failed", "refused") else "close" if proof.worst > _CLOSE else "proved"
    hint = f"{proof.examples} examples, {proof.unsupported} refused"
    hint += f", mostly: {proof.refusal}" if proof.refusal else ""
    return f'<td class="{kind}" title="{escape(hint)}">{escape(text)}</td>'


def _failures(results: Results) -> list[str]:
    parts = ["<h2>Failures</h2>"] if results.failed else []
    for proof in results.failed:
        failure = proof.failure
        assert failure is not None
        parts.append(
            f'<div class="failure"><p><code>{escape(proof.rule)}</code>, {escape(proof.dtype)}, '
            f"{escape(proof.provider)}: <b>{escape(failure.kind)}</b></p><p>{escape(failure.message)}</p>"
            + (f'<p class="soft">{escape(failure.operands)}</p>' if failure.operands else "")
            + f"<p><code>{escape(results.command(proof))}</code></p></div>"
        )
    return parts


def _survivors(results: Results) -> list[str]:
    if not results.survivors:
        return []
    return ["<h2>Mutants that survived</h2>", *(f"<pre>{escape(text)}</pre>" for text in results.survivors)]


def _speed(results: Results) -> list[str]:
    if not results.timings:
        return []
    parts = [
        "<h2>Speed</h2>",
        '<p class="soft">The pattern\'s own ops over the fastest provider of the replacement, at operands that the '
        "models have. Medians over replays of CUDA graphs, with inputs in turn that do not fit the cache together.</p>",
        plots.speedups(results.timings),
    ]
    ceilings = results.ceilings
    if ceilings is not None:
        parts += [
            "<h2>Roofline</h2>",
            '<p class="soft">Hollow: unfused, filled: fused. The roof is what a large copy and a large product reached '
            "on this card.</p>",
            plots.roofline(results.timings, ceilings),
            "<h2>Bandwidth</h2>",
            '<p class="soft">Rules without products: bytes that must move, over the time. The mark is the unfused '
            "ops.</p>",
            plots.bandwidths(results.timings, ceilings),
        ]
    heads = [
        *("Rule", "Model", "Shapes", "dtype", "Provider", "Count", "Unfused &micro;s", "Fused &micro;s", "Times"),
        *("GB/s", "TFLOP/s", "Of ceiling"),
    ]
    body = [line for timed in results.timings for line in _timed(timed, results)]
    return [*parts, "<h2>Times</h2>", *_table(heads, body, first_number=5)]


def _timed(timed: Timed, results: Results) -> list[str]:
    """A line for each provider, the fastest with the rates."""
    lines = []
    for one in timed.fused:
        fastest = one is timed.best
        fused = f"{one.time.median:.1f} <small>({one.time.low:.1f} to {one.time.high:.1f})</small>" if one.time else ""
        unfused = timed.unfused
        before = f"{unfused.median:.1f} <small>({unfused.low:.1f} to {unfused.high:.1f})</small>" if unfused else ""
        times = f"{unfused.median / one.time.median:.2f}" if unfused and one.time else ""
        rates = achieved(timed, results.ceilings) if fastest else ("", "", "")
        name = f"{one.provider} {one.config}".strip() + (f": {one.reason}" if one.reason else "")
        lines.append(_line(timed, f"<b>{escape(name)}</b>" if fastest else escape(name), before, fused, times, *rates))
    return lines or [_line(timed, escape(timed.reason or ""))]


def _line(timed: Timed, provider: str, *numbers: str) -> str:
    texts = [f"<code>{escape(timed.rule)}</code>", *map(escape, (timed.model, timed.shapes, timed.dtype)), provider]
    cells = [f"<td>{text}</td>" for text in texts]
    cells += [
        f'<td class="number">{number}</td>' for number in (str(timed.count), *numbers, *[""] * (6 - len(numbers)))
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _listed(title: str, texts: Iterable[str]) -> list[str]:
    items = [f"<li>{escape(text)}</li>" for text in texts]
    return [f"<h2>{title}</h2>", "<ul>", *items, "</ul>"] if items else []


def _table(heads: Iterable[str], body: Iterable[str], *, first_number: int) -> list[str]:
    cells = [
        f'<th class="number">{head}</th>' if index >= first_number else f"<th>{head}</th>"
        for index, head in enumerate(heads)
    ]
    return [
        '<div class="wide"><table>',
        f"<thead><tr>{''.join(cells)}</tr></thead><tbody>",
        *body,
        "</tbody></table></div>",
    ]
