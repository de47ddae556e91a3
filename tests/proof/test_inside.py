"""Roundings inside of the ops' references are known to the oracle."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from rewriter.language import load_rules
from rewriter.ops import registry
from rewriter.ops.precision import widen
from rewriter.ops.registry import OPS, REFERENCE
from rewriter.proof import inside
from rewriter.proof.check import run_example
from rewriter.proof.outcome import Example
from rewriter.proof.trial import Result

RULES = load_rules("default")


def planted(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    total = (widen(x) + widen(y)).to(x.dtype)
    wide = widen(total).contiguous()
    return (wide * 3.0).exp().to(x.dtype)


@pytest.fixture(scope="module")
def op() -> Iterator[str]:
    """An op that rounds a sum, and has a product in f32."""
    registry.define("planted_inside(Tensor x, Tensor y) -> Tensor", planted)
    yield "planted_inside"
    del OPS["planted_inside"]


def called(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = torch.ops.rewriter.planted_inside(x, y)
    return result


def test_casts_round_what_was_computed_before_and_moves_round_nothing(op: str) -> None:
    x = torch.randn(3, 4).half()
    calls = inside.recorded([op], lambda: (called(x, x), called(x, x)))
    assert calls == [[("add", torch.float16), ("mul", torch.float32)]] * 2


def test_noise_comes_where_it_was_recorded(op: str) -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    heard = []

    def noise(result: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        heard.append(dtype)
        return result + 1.0

    own = OPS[op].providers[REFERENCE]
    with inside.noisy([op], [[("add", torch.float16), ("mul", torch.float32)]], noise):
        first, second = called(x, x), called(x, x)
    assert heard == [torch.float16, torch.float32]
    torch.testing.assert_close(first, torch.exp((2 * x + 1.0) * 3.0 + 1.0))
    # The second call was not recorded.
    torch.testing.assert_close(second, torch.exp(6 * x))
    assert OPS[op].providers[REFERENCE] is own


def test_a_reference_that_computes_otherwise_is_left_alone(op: str) -> None:
    x = torch.randn(3, dtype=torch.float64)
    with inside.noisy([op], [[("sub", torch.float16), ("mul", torch.float32)]], lambda y, _: y + 1.0):
        torch.testing.assert_close(called(x, x), torch.exp(6 * x))


def test_a_sum_that_an_op_rounds_may_fall_to_either_side() -> None:
    # Groups of two sums that differ by less than a step of f16, which rounding makes one step or none.
    example = Example.parse("f16,subnormal,contiguous,choice=0,seed=5924,N=3,C=2,G=4,K=1,H=1,W=5")
    outcome = run_example(RULES["conv-bias-sum-group-norm-silu"], example)
    assert isinstance(outcome, Result)
    assert outcome.error > 10.0
