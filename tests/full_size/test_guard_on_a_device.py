"""NaN that a rewrite brings into the middle of a picture, on a device that is not waited for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from real_pipelines import Painter, expected, worst

import rewriter
from rewriter.runtime import guard

pytestmark = pytest.mark.filterwarnings("default")

RULES = """
format: 1
pack: overflow
summary: Rules of which one overflows.
rules:
  - id: sigmoid-by-exponential
    summary: harmless
    match: |
      y = aten::sigmoid(x)
    replace: |
      n = aten::neg(x)
      e = aten::exp(n)
      d = aten::add(e, 1)
      y = aten::reciprocal(d)
    inputs: {x: {shape: [N]}}
    dims: {N: 1..3}
  - id: silu-by-exponential
    summary: Infinity over infinity where the exponential of x is beyond the dtype.
    match: |
      y = aten::silu(x)
    replace: |
      e = aten::exp(x)
      d = aten::add(e, 1)
      s = aten::div(e, d)
      y = aten::mul(x, s)
    inputs: {x: {shape: [N]}}
    dims: {N: 1..3}
"""


def test_after_a_late_look_the_picture_is_eagers_and_the_rule_goes(
    painter: Callable[..., Painter], note: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "_defers", lambda _: True)
    file = tmp_path / "overflow.yaml"
    file.write_text(RULES)
    subject = painter("sd15")
    # The input of the last activation becomes so large that its exponential overflows.
    factor = 8.0 if subject.dtype is torch.float16 else 120.0
    plain, norm = expected(subject), subject.denoiser.conv_norm_out
    norm.weight.mul_(factor)
    large = expected(subject, picture=True)
    norm.weight.div_(factor)
    rewriter.optimize(subject.pipe, rules=rewriter.load_rules(str(file)), measure=False)
    # The rule loses what it loses in half precision; that is not what is asked here.
    plain.compare(subject.draw(), subject, share=10.0)
    subject.draw()
    assert "silu-by-exponential" in rewriter.report(subject.pipe).components["unet"].matches
    norm.weight.mul_(factor)
    with pytest.warns(rewriter.RewriterWarning) as caught:
        spoilt, after = (subject.draw(picture=True) for _ in range(2))
    said = [str(each.message) for each in caught]
    assert any("finite inputs in an earlier call" in text for text in said)
    assert any("due to the rule silu-by-exponential" in text for text in said)
    # The first step of the second picture is eager's, the rest are the graph's without the rule.
    figures = worst([large.compare(each, subject, share=1.5) for each in (after, subject.draw(picture=True))])
    part = rewriter.report(subject.pipe).components["unet"]
    note(**figures, status=part.status, messages=part.messages, spoilt=not bool(spoilt.latents.isfinite().all()))
    assert part.status == "optimised"
    assert "silu-by-exponential" not in part.matches
    assert any("silu-by-exponential (by bisection)" in message for message in part.messages)
