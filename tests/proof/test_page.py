"""The page and the summary show every result, escape what comes from outside, and need nothing beside them."""

from __future__ import annotations

import dataclasses
import re
import types
from html.parser import HTMLParser
from xml.etree import ElementTree

from rewriter.proof import plots
from rewriter.proof.page import page
from rewriter.proof.summary import headline, markdown

Made = types.SimpleNamespace
_VOID = ("meta", "br")


class _Balanced(HTMLParser):
    """Raises where tags do not close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page(made: Made) -> None:
    text = page(made.results(made.proof(), made.proof(provider="triton", failed=True)))
    parser = _Balanced()
    parser.feed(text)
    assert not parser.open
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "<script" not in text
    assert '<td class="proved" title="50 examples, 2 refused">0.25</td>' in text
    assert '<td class="failed"' in text
    assert "A &lt;GPU&gt; 80GB" in text
    assert "<GPU>" not in text
    assert "y is 1 &amp; not 2" in text
    assert "RuntimeError: &lt;no&gt;" in text
    assert "a mutant\n  survives" in text
    assert "--example f16,normal,sliced,choice=0,seed=3,C=63" in text
    assert "a-rule f32: not tried" in text
    assert text.count("<svg") == 3


def test_what_was_kept_says_since_when(made: Made) -> None:
    one = made.results(made.proof(), made.proof("b-rule"))
    assert "Since" not in page(one)
    assert "since" not in markdown(one)
    both = dataclasses.replace(one, rules={"a-rule": made.basis(), "b-rule": made.basis(date="2025-12-01 00:00 UTC")})
    assert page(both).count('<td class="number">2025-12-01 00:00 UTC</td>') == 1
    assert page(both).count('<td class="number">2026-01-01 00:00 UTC</td>') == 1
    assert re.search(r"\| b-rule .* \| 2025-12-01 00:00 UTC \|", markdown(both))


def test_page_without_times(made: Made) -> None:
    text = page(made.results(made.proof(), timings=(), ceilings=None, problems=(), scores=()))
    assert "<svg" not in text
    assert "Failures" not in text


def test_plots(made: Made) -> None:
    results = made.results(made.proof())
    slower = made.timed("slower", flops=10**9, fused=40.0)
    timings = (*results.timings, slower)
    for svg in (
        plots.speedups(timings),
        plots.roofline(timings, results.ceilings),
        plots.bandwidths(timings, results.ceilings),
    ):
        tree = ElementTree.fromstring(svg)
        width, height = (float(tree.attrib[name]) for name in ("width", "height"))
        for element in tree.iter():
            for name in ("x", "cx", "x1", "x2"):
                assert 0 <= float(element.attrib.get(name, 0)) <= width
            for name in ("y", "cy", "y1", "y2"):
                assert 0 <= float(element.attrib.get(name, 0)) <= height
    # From the line of 1 to the right where fused is faster, to the left where it is slower.
    bars = re.findall(r'class="(good|bad)" x="([\d.]+)" y="\d+" width="([\d.]+)"', plots.speedups(timings))
    assert [kind for kind, *_ in bars] == ["good", "good", "bad"]
    assert float(bars[0][1]) > float(bars[2][1])
    assert plots.speedups(()) == ""


def test_summary(made: Made) -> None:
    results = made.results(made.proof(), made.proof("b-rule", failed=True), made.proof("b-rule", "f32"))
    text = markdown(results)
    assert headline(results) == "1 of 2 rules proved on A <GPU> 80GB, not everything could be tried"
    assert re.search(r"\| a-rule +\| torch +\| +\| +0\.25 \| +9 of 10 \|", text)
    assert re.search(r"\| b-rule +\| torch +\| +0\.25 \| +failed \|", text)
    command = "`rewriter test 'my rules.yaml' --rule b-rule --provider torch --device cuda --example f16,normal,sliced"
    assert command in text
    # 10 MB in 10 us are 1000 GB/s, half of the ceiling; 4 GFLOP take at least 6.7 us at 600 TFLOP/s.
    assert re.search(r"\| a-rule .* triton block=64 +\| +5 \| +20\.0 \| +10\.0 \| +2\.00 \| +1000 \| +\| +50% \|", text)
    assert re.search(r"\| another .* 1000 \| +400 \| +67% \|", text)


def test_a_provider_that_refuses_everything(made: Made) -> None:
    import dataclasses

    refused = dataclasses.replace(made.proof(), examples=0, unsupported=50, worst=0.0, refusal="only <8> rows")
    again = dataclasses.replace(refused, dtype="f32")
    other = dataclasses.replace(made.proof("b-rule"), refusal="few rows")
    results = made.results(refused, again, other)
    text = markdown(results)
    assert "refused" in text
    assert "## Never taken\n\n- torch: only <8> rows: a-rule (f16 f32)\n\n" in text
    assert "few rows" not in text
    assert "only &lt;8&gt; rows: a-rule (f16 f32)</li>" in page(results)
    assert "50 examples, 2 refused, mostly: few rows" in page(results)
