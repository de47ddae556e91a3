"""NaN and Inf that a rewrite brings in on values that verification has not seen."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch

import rewriter
from rewriter.runtime import guard
from rewriter.runtime.session import components_of

RULES = """
format: 1
pack: overflow
summary: Rules of which one overflows.
rules:
  - id: sigmoid-first
    summary: harmless
    match: |
      y = aten::silu(x)
    replace: |
      s = aten::sigmoid(x)
      y = aten::mul(x, s)
    inputs: {x: {shape: [N]}}
    dims: {N: 1..3}
  - id: tanh-by-exponentials
    summary: Infinity over infinity for large arguments.
    match: |
      y = aten::tanh(x)
    replace: |
      e = aten::exp(x)
      d = aten::reciprocal(e)
      a = aten::sub(e, d)
      b = aten::add(e, d)
      y = aten::div(a, b)
    inputs: {x: {shape: [N]}}
    dims: {N: 1..3}
  - id: relu-by-clamp
    summary: harmless
    match: |
      y = aten::relu(x)
    replace: |
      y = aten::clamp_min(x, 0)
    inputs: {x: {shape: [N]}}
    dims: {N: 1..3}
"""


class Net(torch.nn.Module):
    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.noise = noise
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.silu(self.linear(x)).tanh().relu()
        return y + self.noise * torch.randn_like(y) if self.noise else y


@pytest.fixture
def rules(tmp_path: Path) -> Any:
    file = tmp_path / "overflow.yaml"
    file.write_text(RULES)
    return rewriter.load_rules(str(file))


def small() -> torch.Tensor:
    return torch.linspace(-1, 1, 12).reshape(3, 4)


def large() -> torch.Tensor:
    return 1e4 * small()


def part_of(module: torch.nn.Module) -> Any:
    (part,) = rewriter.report(module).components.values()
    return part


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_the_call_runs_eagerly_and_the_rule_goes(rules: Any, noise: float) -> None:
    module = Net(noise).eval()
    twin = copy.deepcopy(module)
    rewriter.optimize(module, rules=rules, measure=False)
    for _ in range(2):
        module(small())
    assert part_of(module).matches.keys() == {"sigmoid-first", "tanh-by-exponentials", "relu-by-clamp"}
    torch.manual_seed(0)
    expected, following = twin(large()), torch.rand(1)
    torch.manual_seed(0)
    with pytest.warns(rewriter.RewriterWarning, match="due to the rule tanh-by-exponentials") as caught:
        assert torch.equal(module(large()), expected)
    assert caught[0].filename == __file__
    assert torch.equal(torch.rand(1), following)
    for _ in range(3):
        torch.manual_seed(0)
        torch.testing.assert_close(module(large()), expected)
    part = part_of(module)
    assert (part.status, part.captures) == ("optimised", 2)
    assert part.matches.keys() == {"sigmoid-first", "relu-by-clamp"}
    assert any("tanh-by-exponentials (by bisection)" in message for message in part.messages)


def test_strict_raises(rules: Any) -> None:
    module = Net().eval()
    rewriter.optimize(module, rules=rules, measure=False, strict=True)
    module(small())
    with (
        pytest.warns(rewriter.RewriterWarning),
        pytest.raises(rewriter.VerificationError, match="NaN or Inf where eager does not"),
    ):
        module(large())


def test_what_eager_returns_too_is_no_reason(rules: Any) -> None:
    module = Net().eval()
    twin = copy.deepcopy(module)
    rewriter.optimize(module, rules=rules, measure=False)
    module(small())
    bad = small()
    bad[1, 2] = torch.nan
    for _ in range(40):
        torch.testing.assert_close(module(bad), twin(bad), equal_nan=True)
    part = part_of(module)
    assert (part.status, part.captures) == ("optimised", 1)
    # One in sixteen of them is looked at.
    assert part.eager_calls <= 5
    assert not any("NaN" in message for message in part.messages)


def test_without_a_guilty_rule_the_call_runs_eagerly_from_then_on(rules: Any, monkeypatch: Any) -> None:
    module = Net().eval()
    twin = copy.deepcopy(module)
    rewriter.optimize(module, rules=rules, measure=False)
    module(small())
    monkeypatch.setattr("rewriter.runtime.judging.guilty_rule", lambda *_: None)
    with pytest.warns(rewriter.RewriterWarning, match="no rule alone is to blame"):
        assert torch.equal(module(large()), twin(large()))
    assert torch.equal(module(large()), twin(large()))
    assert part_of(module).reason == "the rewritten graph returned NaN or Inf where eager does not"


def test_on_a_device_the_look_comes_later_and_then_at_once(rules: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(guard, "_defers", lambda _: True)
    module = Net().eval()
    twin = copy.deepcopy(module)
    rewriter.optimize(module, rules=rules, measure=False)
    module(small())
    assert module(large()).isnan().any()
    with (
        pytest.warns(rewriter.RewriterWarning, match="finite inputs in an earlier call"),
        pytest.warns(rewriter.RewriterWarning, match="due to the rule tanh-by-exponentials"),
    ):
        assert torch.equal(module(large()), twin(large()))
    assert torch.equal(module(large()), twin(large()))


def test_what_it_makes_of_its_own_nan_does_not_acquit_a_graph(rules: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(guard, "_defers", lambda _: True)
    module = Net().eval()
    twin = copy.deepcopy(module)
    rewriter.optimize(module, rules=rules, measure=False)
    module(small())
    spoilt = module(large())
    # As the steps of a picture go on from the result of the first.
    with pytest.warns(rewriter.RewriterWarning, match="finite inputs in an earlier call"):
        spoilt = functools.reduce(lambda x, _: module(x), range(3), spoilt)
    assert spoilt.isnan().any()
    with pytest.warns(rewriter.RewriterWarning, match="due to the rule tanh-by-exponentials"):
        assert torch.equal(module(large()), twin(large()))


def test_nan_in_the_input_of_a_device_is_not_held_against_the_graph(rules: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(guard, "_defers", lambda _: True)
    module = Net().eval()
    rewriter.optimize(module, rules=rules, measure=False)
    for _ in range(3):
        module(small() * torch.nan)
    assert part_of(module).eager_calls == 1


def test_integer_and_empty_results_pass(optimized: Any) -> None:
    class Indices(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x.argmax(-1), x[:0]

    module = optimized(Indices().eval())
    for _ in range(3):
        module(small())
    (component,) = components_of(module).values()
    assert (component.journal.calls, component.journal.eager_calls) == (3, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("hole", [None, torch.nan, torch.inf, -torch.inf])
def test_the_norms_that_are_read_later_show_every_hole_and_no_large_number(
    dtype: torch.dtype, hole: float | None
) -> None:
    x = torch.full((300, 7), 60000.0, dtype=dtype)
    if hole is not None:
        x[211, 3] = hole
    norms = guard._norms([torch.empty(0, dtype=dtype), x[:, ::2], x])
    assert norms.isfinite().tolist() == [True, True, hole is None]
