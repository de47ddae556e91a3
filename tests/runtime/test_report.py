"""The report and the explanation."""

# ruff: noqa: ARG002, B002 (what is called here has a signature given from outside)

from __future__ import annotations

import html.parser
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import rewriter
from rewriter.runtime.explanation import ComponentExplanation, Explanation, NearMiss
from rewriter.runtime.report import ComponentReport, Report, RuleCount

HOSTILE = "<script>alert('&')</script>"


def component(name: str, **changes: Any) -> ComponentReport:
    values: dict[str, Any] = {
        "name": name,
        "module": "Net",
        "status": "optimised",
        "reason": None,
        "matches": {"group-norm-silu": RuleCount(matched=45, kept=44), "add-layer-norm": RuleCount(matched=2, kept=0)},
        "refusals": [("linear-gelu", "%7", HOSTILE)],
        "nodes_before": 1739,
        "nodes_after": 1500,
        "error": 1.5e-6,
        "seconds": {"trace": 1.25, "measure": 0.5},
        "memory": 3 * 2**20,
        "captures": 1,
        "calls": 20,
        "eager_calls": 1,
        "messages": [HOSTILE],
    }
    return ComponentReport(**{**values, **changes})


def example() -> Report:
    waiting = component("vae.encoder", status="pending", matches={}, seconds={}, error=None, memory=0, messages=[])
    failed = component("unet", status="eager", reason=f"the trace failed: {HOSTILE}", matches={}, error=None)
    parts = {"text_encoder": component("text_encoder"), "unet": failed, "vae.encoder": waiting}
    return Report(target="StableDiffusionPipeline", rules=30, components=parts)


def test_the_text_says_what_happened() -> None:
    text = str(example())
    for part in (
        "StableDiffusionPipeline: 1 optimised, 1 eager, 1 pending (30 rules)",
        "44 of 47",
        "1739 > 1500",
        "1.5e-06",
        "3.0 MiB",
        "eager because the trace failed",
        "group-norm-silu     45    44",
        "trace 1.25 s, measure 0.50 s",
    ):
        assert part in text
    assert max(map(len, text.splitlines())) <= 120


class Strict(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.add(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_closed_escaped_and_needs_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    example().to_html(path)
    text = path.read_text(encoding="utf-8")
    parser = Strict()
    parser.feed(text)
    assert parser.open == []
    assert parser.seen.isdisjoint({"script", "link", "img"})
    assert "&lt;script&gt;" in text
    assert "http" not in text


def test_the_dict_is_json() -> None:
    data = json.loads(json.dumps(example().to_dict()))
    assert data["components"]["text_encoder"]["matches"]["group-norm-silu"] == {"matched": 45, "kept": 44}
    assert data["components"]["unet"]["status"] == "eager"


RULES = """
format: 1
pack: example
summary: Only for this test.
rules:
  - id: twice-negated
    summary: -(-x) is x
    match: |
      a = aten::neg(x)
      y = aten::neg(a)
    replace: |
      y = x
    inputs:
      x: {shape: [N]}
    dims: {N: 1..9}
  - id: negated-tanh
    summary: tanh(-x) = -tanh(x)
    match: |
      a = aten::neg(x)
      y = aten::tanh(a)
    replace: |
      t = aten::tanh(x)
      y = aten::neg(t)
    inputs:
      x: {shape: [N]}
    dims: {N: 1..9}
"""


class Negating(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (-(-x)).exp() + (-(x * 2)).sigmoid()


def test_a_real_rule_is_counted_and_explained(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(RULES)
    module = Negating().eval()
    rewriter.optimize(module, rules=str(path), measure=False)
    with pytest.raises(rewriter.RewriterError, match=r"call the target first \(Negating: not called yet\)"):
        rewriter.explain(module)
    x = torch.randn(5)
    assert torch.equal(module(x), module(x))
    (part,) = rewriter.report(module).components.values()
    assert part.matches == {"twice-negated": RuleCount(matched=1, kept=1)}
    assert part.nodes_after < part.nodes_before
    text = str(rewriter.explain(module))
    assert "twice-negated fired 1 times" in text
    assert "negated-tanh" in text
    only = rewriter.explain(module, rule="twice-negated")
    assert "negated-tanh" not in str(only)
    assert json.loads(json.dumps(only.to_dict()))["rule"] == "twice-negated"
    with pytest.raises(rewriter.RewriterError, match="no-such-rule"):
        rewriter.explain(module, rule="no-such-rule")


def test_near_misses_for_one_reason_are_told_once_unless_one_rule_is_asked_for() -> None:
    def miss(node: str, reason: str, depth: int = 0) -> NearMiss:
        return NearMiss(rule="mine", node=node, scope="up", depth=depth, total=2, reason=reason)

    misses = [miss("%9", "a shape", 1), miss("%1", "no silu"), miss("%2", "no mul"), miss("%3", "no mul")]
    part = ComponentExplanation(name="unet", fired=[], near_misses=misses, silent=[])
    every = str(Explanation(rule="mine", components={"unet": part})).splitlines()
    assert [line.split(" at ")[1] for line in every[2:]] == ["%9 in up", "%1 in up", "%2 in up", "%3 in up"]
    assert str(Explanation(rule=None, components={"unet": part})).splitlines() == [
        "unet",
        "  mine nearly matched 4 times",
        "    1 of 2 statements, then a shape at %9 in up",
        "    0 of 2 statements, then no mul in 2 places, first at %2 in up",
        "    0 of 2 statements, then no silu at %1 in up",
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="where the pack has something to do")
def test_a_pack_for_other_machines_is_named() -> None:
    module = torch.nn.Linear(128, 128).eval().requires_grad_(False)
    rewriter.optimize(module, rules=["default", "int8"])
    module(torch.randn(2, 128))
    (part,) = rewriter.report(module).components.values()
    wanted = "the pack int8 does nothing here, since its rules are for other machines: for cuda only"
    assert [each for each in part.messages if "does nothing here" in each] == [wanted]


def test_importing_the_package_is_light() -> None:
    code = "import sys, rewriter; print(sorted({'torch', 'diffusers', 'yaml'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    everything = "import sys, rewriter; rewriter.optimize, rewriter.report; print('diffusers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", everything], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_public_name_exists() -> None:
    for name in rewriter.__all__:
        assert getattr(rewriter, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'optimise'"):
        rewriter.optimise  # noqa: B018
