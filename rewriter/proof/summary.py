"""The results of proofs as Markdown that also reads well in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rewriter.proof.outcome import Proof
from rewriter.proof.results import Ceilings, Results, Timed

_WIDE = 48
_ORDER = ("f32", "f16", "bf16", "f64")


def markdown(results: Results) -> str:
    """Proofs by rule, provider and dtype; then failures, surviving mutants, speed, and what was not done."""
    parts = [f"# {headline(results)}", _machine(results), *_proofs(results)]
    for title, lines in (
        ("Failures", _failures(results)),
        ("Mutants that survived", [f"```\n{text}\n```" for text in results.survivors]),
        ("Never taken", [f"- {text}" for text in refusals(results)]),
        ("Speed", _speed(results)),
        ("Not done", [f"- {problem}" for problem in results.problems]),
        ("Notes", [f"- {note}" for note in results.notes]),
    ):
        if lines:
            parts += [f"## {title}", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def headline(results: Results) -> str:
    """How many rules are proved and where, in a line."""
    tried = {proof.rule for proof in results.proofs}
    failed = {proof.rule for proof in results.failed}
    words = f"{len(tried - failed)} of {len(tried)} rules proved on {results.machine.name}"
    return words + (", not everything could be tried" if results.problems else "")


def dtypes(results: Results) -> list[str]:
    """The dtypes of the proofs, in the order of the columns."""
    there = {proof.dtype for proof in results.proofs}
    return [name for name in _ORDER if name in there] + sorted(there.difference(_ORDER))


def rows(results: Results) -> list[tuple[str, str, dict[str, Proof]]]:
    """Rule, provider, and its proofs by dtype."""
    found: dict[tuple[str, str], dict[str, Proof]] = {}
    for proof in results.proofs:
        found.setdefault((proof.rule, proof.provider), {})[proof.dtype] = proof
    return [(rule, provider, proofs) for (rule, provider), proofs in found.items()]


def dates(results: Results) -> dict[str, str]:
    """Since when the results about each rule stand; empty where all are of the same run."""
    found = {proof.rule: results.rules[proof.rule].date for proof in results.proofs if proof.rule in results.rules}
    return found if set(found.values()) - {results.date} else {}


def cell(proof: Proof | None) -> str:
    """The largest error by what is allowed; "failed"; "refused" where the provider took no example."""
    if proof is None:
        return ""
    if not proof.proved:
        return "failed"
    return f"{proof.worst:.2f}" if proof.examples else "refused"


def refusals(results: Results) -> list[str]:
    """Which providers took no example of which rules, and mostly why: one line for each reason."""
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for proof in results.proofs:
        if proof.proved and not proof.examples and proof.refusal:
            found.setdefault((proof.provider, proof.refusal), {}).setdefault(proof.rule, []).append(proof.dtype)
    return [
        f"{provider}: {reason}: " + ", ".join(f"{rule} ({' '.join(dtypes)})" for rule, dtypes in rules.items())
        for (provider, reason), rules in found.items()
    ]


def achieved(timed: Timed, ceilings: Ceilings | None) -> tuple[str, str, str]:
    """Of the fastest provider: GB/s, TFLOP/s, and the share of what the card can do at best."""
    best = timed.best
    if best is None or best.time is None:
        return "", "", ""
    micros = best.time.median
    rate = f"{timed.flops / micros / 1e6:.0f}" if timed.flops else ""
    share = f"{ceilings.attainable(timed) / micros:.0%}" if ceilings else ""
    return f"{timed.bytes / micros / 1e3:.0f}", rate, share


def table(heads: Sequence[str], body: Sequence[Sequence[str]], *, right: int) -> str:
    """A Markdown table in aligned columns; those from number `right` on are flush right."""
    widths = [max(3, *(len(row[index]) for row in (heads, *body))) for index in range(len(heads))]

    def line(row: Sequence[str]) -> str:
        cells = [
            text.rjust(width) if index >= right else text.ljust(width)
            for index, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(cells)} |"

    rule = [f"{'-' * (width - 1)}:" if index >= right else "-" * width for index, width in enumerate(widths)]
    return "\n".join([line(heads), line(rule), *map(line, body)])


def _machine(results: Results) -> str:
    machine = results.machine
    where = f"sm_{machine.sm}, " if machine.sm is not None else ""
    return where + ", ".join(f"{name} {version}" for name, version in machine.versions.items()) + f"; {results.date}"


def _proofs(results: Results) -> list[str]:
    if not results.proofs:
        return ["Nothing was proved."]
    columns = dtypes(results)
    scores = {score.rule: f"{score.killed} of {score.total}" for score in results.scores}
    since = dates(results)
    body, before = [], ""
    for rule, provider, proofs in rows(results):
        first = rule != before
        cells = [cell(proofs.get(dtype)) for dtype in columns]
        texts = [*([scores.get(rule, "")] if scores else []), *([since.get(rule, "")] if since else [])]
        body.append([rule if first else "", provider, *cells, *(text if first else "" for text in texts)])
        before = rule
    examples = sum(proof.examples for proof in results.proofs)
    return [
        table(
            ["rule", "provider", *columns, *(["mutants killed"] if scores else []), *(["since"] if since else [])],
            body,
            right=2,
        ),
        f"Numbers: the largest error in {examples} examples, as a share of what is allowed.",
    ]


def _failures(results: Results) -> list[str]:
    lines: list[str] = []
    for proof in results.failed:
        assert proof.failure is not None
        lines.append(f"- {proof.rule}, {proof.dtype}, {proof.provider}: {proof.failure.kind}: {proof.failure.message}")
        if proof.failure.operands:
            lines.append(f"  with {proof.failure.operands}")
        lines.append(f"  `{results.command(proof)}`")
    return lines


def _speed(results: Results) -> list[str]:
    if not results.timings:
        return []
    body = []
    for timed in results.timings:
        best = timed.best
        shapes = timed.shapes if len(timed.shapes) <= _WIDE else timed.shapes[: _WIDE - 1] + "…"
        fused = f"{best.time.median:.1f}" if best and best.time else ""
        name = f"{best.provider} {best.config}".strip() if best else (timed.reason or "no provider ran")
        speedup = f"{timed.speedup:.2f}" if timed.speedup else ""
        unfused = f"{timed.unfused.median:.1f}" if timed.unfused else ""
        rates = achieved(timed, results.ceilings)
        body.append([timed.rule, timed.model, shapes, name, str(timed.count), unfused, fused, speedup, *rates])
    heads = [
        "rule",
        "model",
        "shapes",
        "fastest",
        "count",
        "unfused us",
        "fused us",
        "times",
        "GB/s",
        "TFLOP/s",
        "of ceiling",
    ]
    lines = [table(heads, body, right=4), ""]
    if results.ceilings:
        peaks = ", ".join(f"{peak:.0f} TFLOP/s in {dtype}" for dtype, peak in results.ceilings.tflops.items())
        lines.append(f"The card's measured ceilings: {results.ceilings.bandwidth:.0f} GB/s, {peaks}.")
    return lines
