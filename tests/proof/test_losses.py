"""A rule that loses precision is allowed what it says that it loses, and no more."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rewriter.capture.compare import LOSSY_LIMITS
from rewriter.errors import RuleError
from rewriter.language import Rule, load_rules
from rewriter.language.conditions import LOSSES
from rewriter.language.rule import RuleSet
from rewriter.ops.registry import OPS, provide
from rewriter.proof.check import Result, prove, run_example
from rewriter.proof.losses import coarsened
from rewriter.proof.outcome import Example, Failure

KINDS = {"f8e4m3": 2.0**-4, "i8": 1 / 254}


@pytest.mark.parametrize("kind", KINDS)
def test_an_operand_is_off_by_half_a_step_of_its_format(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 50, generator=generator, dtype=torch.float64)
    off = (coarsened(x, kind, generator) - x).abs()
    whole = KINDS[kind] * (x.abs() if kind == "f8e4m3" else x.abs().amax(-1, keepdim=True).expand(64, 50))
    assert torch.allclose(off, whole, rtol=1e-2, atol=1e-4)
    assert not torch.equal(coarsened(x, kind, generator), coarsened(x, kind, generator))


def test_equal_numbers_are_off_alike() -> None:
    x = torch.full((3, 40), -1.5, dtype=torch.float64)
    assert bool((coarsened(x, "f8e4m3", torch.Generator().manual_seed(1)) == -1.5 * (1 + 2.0**-4 + 2.0**-17)).all())


def test_a_norms_numbers_have_one_scale_for_the_largest_that_it_may_give() -> None:
    x = torch.zeros(2, 8, 4, 4, dtype=torch.float64)
    x[0, 3, 1, 2], x[1, 0, 0, 0] = 2.0, -1.0
    off = (coarsened(x, "f8e4m3_norm", torch.Generator().manual_seed(0)) - x).abs()
    everywhere = 2.0**-17 * 2.0 * math.sqrt(8 * 4 * 4)
    torch.testing.assert_close(off, x.abs() * 2.0**-4 + everywhere)


def cut_product(codes: torch.Tensor, weight: torch.Tensor, bits: int = 13) -> torch.Tensor:
    """codes @ weight.T as the tensor cores of Hopper have it: of 32 products and the sum before them, what lies more
    than so many bits below the leading one of the largest is cut off."""
    left, right = codes.double(), weight.double()
    total = torch.zeros(*left.shape[:-1], right.shape[0], dtype=torch.float64)
    for start in range(0, left.shape[-1], 32):
        products = left[..., None, start : start + 32] * right[:, start : start + 32]
        terms = torch.cat([products, total[..., None]], -1)
        _, exponents = torch.frexp(terms.abs().amax(-1, keepdim=True))
        unit = torch.ldexp(torch.ones_like(total[..., None]), exponents - 1 - bits)
        total = (torch.trunc(terms / unit) * unit).sum(-1)
    return total


@pytest.fixture
def cut_sums() -> Iterator[None]:
    """Providers of two products in eight bits, named "cut"."""

    def add(
        q: torch.Tensor, t: torch.Tensor, w: torch.Tensor, s: torch.Tensor, b: torch.Tensor, r: torch.Tensor
    ) -> Any:
        return (cut_product(q, w) * t * s.view(-1) + b + r).to(b.dtype)

    def geglu(q: torch.Tensor, t: torch.Tensor, w: torch.Tensor, s: torch.Tensor, b: torch.Tensor) -> Any:
        hidden, gate = (cut_product(q, w) * t * s.view(-1) + b).chunk(2, -1)
        return (hidden * F.gelu(gate)).to(b.dtype)

    ops = {"quantised_linear_add": add, "quantised_linear_geglu": geglu}
    for name, fn in ops.items():
        provide(name, "cut", fn, lambda *_: None)
    yield
    for name in ops:
        OPS[name].providers.pop("cut")


@pytest.mark.parametrize(
    ("name", "example", "error"),
    [
        ("geglu", "f16,large_magnitude,contiguous,choice=0,seed=60120,B=3,S=8,K=32,N=16", "3.23e-02"),
        ("geglu", "f16,large_magnitude,contiguous,choice=0,seed=49756,B=1,S=64,K=128,N=88", "1.71e-02"),
        ("add", "f16,large_mean,contiguous,choice=0,seed=8381,B=1,S=64,K=304,N=312", "3.72e-02"),
    ],
    ids=["one step", "four steps", "ten steps"],
)
@pytest.mark.usefixtures("cut_sums")
def test_sums_in_fixed_point_are_what_a_gpu_had(name: str, example: str, error: str) -> None:
    """These errors are those that the proofs of two rules found on an H200, where sums were taken for exact ones."""
    rule = load_rules("fp8")[f"fp8-quantised-linear-{name}"]
    strict = run_example(dataclasses.replace(rule, loses={}), Example.parse(example), provider="cut")
    assert isinstance(strict, Failure)
    assert strict.message.startswith(f"output y: largest error {error}, allowed ")
    assert isinstance(run_example(rule, Example.parse(example), provider="cut"), Result)


@pytest.mark.usefixtures("cut_sums")
@pytest.mark.parametrize("name", ["geglu", "add"])
def test_sums_in_fixed_point_are_allowed_where_that_is_stated(name: str) -> None:
    rule = load_rules("fp8")[f"fp8-quantised-linear-{name}"]
    proof = prove(rule, dtype="f16", provider="cut")
    assert (proof.failure, proof.examples) == (None, 50)
    assert 0.01 < proof.worst < 0.5


@pytest.mark.usefixtures("cut_sums")
def test_a_long_sum_of_equal_products_loses_what_the_sum_so_far_is_larger() -> None:
    """A bound that only knew of the products, times four, left an H200 within 0.78 of it here by luck."""
    rule = load_rules("fp8")["fp8-quantised-linear-add"]
    example = Example.parse("f16,constant,usual,choice=0,seed=61695,B=3,S=88,K=528,N=552")
    result = run_example(rule, example, provider="cut")
    assert isinstance(result, Result)
    assert 0.1 < result.share < 0.3


def test_sums_of_half_as_many_bits_are_refuted() -> None:
    rule = load_rules("fp8")["fp8-quantised-linear-add"]
    provide(
        "quantised_linear_add",
        "coarse",
        lambda q, t, w, s, b, r: (cut_product(q, w, 6) * t * s.view(-1) + b + r).to(b.dtype),
        lambda *_: None,
    )
    try:
        failure = prove(rule, dtype="f16", provider="coarse").failure
    finally:
        OPS["quantised_linear_add"].providers.pop("coarse")
    assert failure is not None
    assert failure.kind == "wrong result"


def test_every_loss_has_a_bound_at_run_time() -> None:
    assert set(LOSSES) == set(LOSSY_LIMITS)


def test_a_loss_inside_of_the_pattern_is_allowed_and_no_more() -> None:
    """A convolution in eight bits loses digits of what the norm before it gives, which is no operand."""
    rule = load_rules("fp8")["fp8-group-norm-silu-conv"]
    assert prove(rule, dtype="f16", examples=10).failure is None
    for stated in ({}, {"n": "i8", "filter": "i8"}):
        proof = prove(dataclasses.replace(rule, loses=stated), dtype="f16", examples=20)
        assert proof.failure is not None
        assert proof.failure.kind == "wrong result"


def plain() -> Rule:
    return load_rules("fp8")["fp8-linear"]


def test_a_rule_that_hides_its_loss_is_refuted() -> None:
    proof = prove(dataclasses.replace(plain(), loses={}), dtype="f16", examples=5)
    assert proof.failure is not None
    assert proof.failure.kind == "wrong result"


def test_a_rule_that_states_half_of_it_is_refuted() -> None:
    proof = prove(dataclasses.replace(plain(), loses={"x": "i8", "weight": "i8"}), dtype="f16", examples=20)
    assert proof.failure is not None
    assert proof.failure.kind == "wrong result"


@pytest.mark.parametrize(
    ("stated", "instead", "message"),
    [
        ("loses: {x: f8e4m3,", "loses: {z: f8e4m3,", "loses names nothing in the pattern"),
        # What a rule gives is no value inside of it: a loss of that would excuse whatever is wrong with it.
        ("loses: {x: f8e4m3,", "loses: {y: f8e4m3,", "loses names nothing in the pattern"),
        ("loses: {x: f8e4m3,", "loses: {x: f4,", "unknown loses"),
    ],
)
def test_a_loss_names_an_operand_or_a_value_inside_and_a_format(
    tmp_path: Path, stated: str, instead: str, message: str
) -> None:
    source = Path(plain().position.file).read_text(encoding="utf-8")
    changed = tmp_path / "changed.yaml"
    changed.write_text(source.replace(stated, instead, 1), encoding="utf-8")
    with pytest.raises(RuleError, match=message):
        load_rules(changed)


def test_lossy_packs_say_so_and_the_default_pack_loses_nothing() -> None:
    assert not any(rule.loses for rule in load_rules("default"))
    for pack in ("fp8", "int8", "lowp"):
        rules: RuleSet = load_rules(pack)
        assert any(rule.loses for rule in rules)
        assert {rule.phase for rule in rules} == {"quantise"}
