"""The reference program and the tolerance: what counts as rounding and what does not."""

from __future__ import annotations

import pathlib

import mpmath
import pytest
import torch

from rewriter.language import Rule, load_rules
from rewriter.proof import inside, oracle
from rewriter.proof.comparison import Difference, Output, compared
from rewriter.proof.mutants import mutants
from rewriter.proof.precise import Precise
from rewriter.proof.program import PatternModule
from rewriter.proof.sample import draw
from rewriter.proof.tolerance import Verdict

RULES = load_rules("default")


def examined(rule: Rule, dtype: str, values: str = "normal", seed: int = 0) -> tuple[oracle.Unfused, oracle.Exact]:
    module = PatternModule(rule, draw(rule, seed=seed, dtype=dtype, values=values, layout="contiguous"))
    plain = oracle.unfused(module)
    return plain, oracle.exact(module, plain, seed)


def output(fused: torch.Tensor, exact: torch.Tensor, *, overflows: bool = False, noise: float = 0.0) -> Output:
    return Output("y", fused, exact.to(fused.dtype), exact, torch.full_like(exact, noise), overflows, [])


def test_the_oracle_is_wide_where_the_pattern_names_narrow_dtypes() -> None:
    for dtype in ("f16", "bf16"):
        plain, exact = examined(RULES["rms-norm-composed-narrow"], dtype)
        x, weight, eps = (plain.names[name] for name in ("x", "weight", "eps"))
        wide = x.double() * (x.double().square().mean(-1, keepdim=True) + eps).rsqrt() * weight.double()
        torch.testing.assert_close(exact.outputs[0], wide, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_the_oracle_knows_gelu_far_below_zero(approximate: str) -> None:
    # There torch's own in f64 is 0 or off, and a kernel that is right once failed its proof for that.
    x = torch.tensor([-30.0, -12.0, -8.7, -6.0, -1.0, -0.0, 0.5, 3.0, 9.0], dtype=torch.float64)
    with Precise():
        found = torch.nn.functional.gelu(x, approximate=approximate)
    torch.testing.assert_close(found, torch.nn.functional.gelu(x, approximate=approximate), rtol=1e-12, atol=1e-12)
    with mpmath.workdps(2000):
        values = [mpmath.mpf(float(each)) for each in x]
        if approximate == "none":
            right = [each * mpmath.erfc(-each / mpmath.sqrt(2)) / 2 for each in values]
        else:
            inner = [mpmath.sqrt(2 / mpmath.pi) * (each + mpmath.mpf("0.044715") * each**3) for each in values]
            right = [each * (1 + mpmath.tanh(u)) / 2 for each, u in zip(values, inner, strict=True)]
        expected = torch.tensor([float(each) for each in right], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0.0)


def test_noise_is_of_the_size_of_rounding() -> None:
    for dtype, unit in (("f32", 2.0**-24), ("f16", 2.0**-11), ("bf16", 2.0**-8)):
        plain, exact = examined(RULES["gate-add"], dtype)
        assert plain.outputs[0].dtype != torch.float64
        relative = float(exact.noise[0].norm() / exact.outputs[0].norm())
        assert unit < relative < 40 * unit


PRODUCTS = """\
format: 1
pack: test
summary: A product, and one that another op reads.
rules:
  - id: product
    summary: a product is a quotient
    match: |
      y = aten::mul(x, w)
    replace: |
      r = aten::reciprocal(w)
      y = aten::div(x, r)
    inputs:
      x: {shape: [N]}
      w: {shape: [N]}
    dims: {N: 400..600}

  - id: product-read
    summary: minus a product
    match: |
      a = aten::mul(x, w)
      y = aten::neg(a)
    replace: |
      n = aten::neg(w)
      y = aten::mul(x, n)
    inputs:
      x: {shape: [N]}
      w: {shape: [N]}
    dims: {N: 400..600}
"""


def test_a_value_that_another_op_reads_may_be_off_by_a_sum_in_f32(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(PRODUCTS, encoding="utf-8")
    rules = load_rules(path)
    # In roundings: 16 of each operand of a product, 16 where it is read, and one of the result.
    for dtype, unit, bounds in (
        ("f32", 2.0**-24, {"product": (31, 34), "product-read": (47, 50)}),
        # Of f16, where these 16 are less than half a rounding.
        ("f16", 2.0**-11, {"product": (0.9, 1.2), "product-read": (1.8, 2.2)}),
    ):
        for name, (low, high) in bounds.items():
            _, exact = examined(rules[name], dtype)
            largest = float((exact.noise[0] / exact.outputs[0]).abs().max()) / unit
            assert low < largest < high, (name, dtype)


def test_noise_tells_an_ill_conditioned_example() -> None:
    found = 0
    for seed in range(9):
        plain, exact = examined(RULES["layer-norm"], "f32", values="constant", seed=seed)
        x, weight = plain.names["x"], plain.names["weight"]
        if x.shape[-1] > 3 and weight is None and bool((x == x.flatten()[0]).all()):
            assert float(exact.noise[0].max()) > 30 * 2.0**-24
            found += 1
    assert found


def test_a_convolution_may_round_before_it_adds_its_bias() -> None:
    """As cuDNN's do under torch. A linear layer in its place did not pass where the two cancel."""
    rule = RULES["conv-1x1-linear"]
    drawn = (draw(rule, seed=seed, dtype="f16", values="normal", layout="contiguous") for seed in range(20))
    module = next(
        each for each in (PatternModule(rule, sample) for sample in drawn) if each.operands["bias"] is not None
    )
    x, weight, bias = (module.operands[name] for name in ("x", "weight", "bias"))
    product = weight.double().sum((1, 2, 3))
    with torch.no_grad():
        x.fill_(1.0)
        bias.copy_(-product)
    found = oracle.exact(module, oracle.unfused(module), 3)
    for part, noise in zip(product, found.noise[0].unbind(1), strict=True):
        assert (noise > 0.9 * 2.0**-11 * part.abs()).all()
        assert (noise < 5 * 2.0**-11 * part.abs()).all()


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize(
    ("value", "low", "high"), [(-3.0, 2e-5, 1e-4), (-4.0, 3e-3, 4e-3), (-5.1, 0.9, 1.1), (3.0, 0.0, 1e-5)]
)
def test_a_gelu_by_tanh_keeps_what_f32_leaves_of_it(dtype: str, value: float, low: float, high: float) -> None:
    """cuBLASLt's is 0 at -5, where torch's own is off by a quarter: its proof once failed for that."""
    rule = RULES["linear-gelu-tanh"]
    module = PatternModule(rule, draw(rule, seed=3, dtype=dtype, values="normal", layout="contiguous"))
    assert module.operands["bias"] is None
    with torch.no_grad():
        module.operands["x"].zero_()[..., 0] = 1.0
        module.operands["weight"].fill_(value)
    found = oracle.exact(module, oracle.unfused(module), 3)
    share = found.noise[0] / found.outputs[0].abs()
    assert bool((share >= low).all())
    # What rounds in fewer digits than f32 costs more.
    assert dtype != "f32" or bool((share <= high).all())


def test_what_is_nothing_in_f32_is_not_made_something_by_noise() -> None:
    x = torch.tensor([-30.0, -9.0, 0.0], dtype=torch.float64)
    exact = torch.nn.functional.gelu(x, approximate="tanh")
    shares = []
    with inside.TanhApart(lambda result, share: shares.append(share) or result):
        assert torch.equal(torch.nn.functional.gelu(x, approximate="tanh"), exact)
        torch.nn.functional.gelu(x)
    (share,) = shares
    assert bool((share <= 1.0).all())
    assert float(share[2]) == 0.0


def test_operands_are_left_as_they_are() -> None:
    rule = RULES["layer-norm-modulate"]
    module = PatternModule(rule, draw(rule, seed=1, dtype="f16"))
    before = [x.clone() for x in module.example()]
    oracle.exact(module, oracle.unfused(module), 0)
    for x, y in zip(module.example(), before, strict=True):
        assert torch.equal(x, y)


def test_operands_that_a_pattern_writes_to_are_left_as_they_are() -> None:
    # Around an op of this package, which runs once more to see what it rounds.
    rule = RULES["linear-quick-gelu"]
    writing = [each.entry for each in mutants(rule) if "write to x before all" in each.description]
    assert writing
    sample = draw(rule, seed=1, dtype="f32")
    module = PatternModule(writing[0], sample)
    before = [x.clone() for x in module.example()]
    plain = oracle.unfused(module)
    assert not all(torch.equal(x, y) for x, y in zip(module.example(), before, strict=True))
    for x, y in zip(module.example(), before, strict=True):
        x.copy_(y)
    oracle.exact(module, plain, 0)
    assert all(torch.equal(x, y) for x, y in zip(module.example(), before, strict=True))


def test_an_op_without_f64_has_an_oracle(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(
        """\
format: 1
pack: test
summary: An op that only runs in f32.
rules:
  - id: plain-linear
    summary: oneDNN's product is torch's
    match: |
      y = mkldnn::_linear_pointwise(x, weight, None, "none", [], None)
    where:
      x: {dtype: f32}
      weight: {dtype: f32, rank: 2}
    replace: |
      y = aten::linear(x, weight)
    inputs:
      x: {shape: [N, K]}
      weight: {shape: [M, K]}
    dims: {N: 1..9, K: 1..40, M: 1..40}
""",
        encoding="utf-8",
    )
    plain, exact = examined(load_rules(path)["plain-linear"], "f32")
    torch.testing.assert_close(exact.outputs[0], plain.outputs[0].double(), rtol=1e-6, atol=1e-6)
    assert float(exact.noise[0].max()) > 0


def test_a_pattern_that_refuses_its_operands() -> None:
    rule = RULES["group-norm-silu"]
    sample = draw(rule, seed=0, dtype="f32", dims={"N": 1, "G": 2, "K": 3, "H": 1, "W": 1})
    sample.operands["groups"] = 5
    with pytest.raises(oracle.InvalidExample, match="RuntimeError"):
        oracle.unfused(PatternModule(rule, sample))


def test_rounding_is_allowed_and_more_is_not() -> None:
    exact = torch.randn(200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for dtype, much in ((torch.float32, 1e-5), (torch.float16, 2e-2), (torch.bfloat16, 1e-1)):
        rounded = exact.to(dtype)
        assert isinstance(compared(output(rounded, exact), 2.0), Verdict)
        for wrong in (rounded * (1 + much), torch.where(torch.arange(200) == 7, rounded + much * exact.max(), rounded)):
            difference = compared(output(wrong.to(dtype), exact), 2.0)
            assert isinstance(difference, Difference)
            assert difference.kind == "wrong result"


def test_a_lone_wrong_element_is_pointed_at() -> None:
    exact = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wrong = exact.float()
    wrong[:, 5] += 1
    difference = compared(output(wrong, exact), 2.0)
    assert isinstance(difference, Difference)
    assert "4 of 24 elements, in dimension 1 of extent 6 only at 5 off" in difference.message


@pytest.mark.parametrize(
    ("found", "right"),
    [(float("nan"), 1.0), (1.0, float("nan")), (float("inf"), float("-inf")), (float("inf"), float("nan"))],
)
def test_nan_and_inf_have_their_places(found: float, right: float) -> None:
    exact = torch.ones(5, dtype=torch.float64)
    exact[2] = right
    fused = torch.ones(5)
    fused[2] = found
    difference = compared(output(fused, exact), 2.0)
    assert isinstance(difference, Difference)
    assert (difference.kind, "first at [2]" in difference.message) == ("wrong NaN", True)
    assert isinstance(compared(output(exact.float(), exact), 2.0), Verdict)


def test_overflow_of_narrow_sums_is_no_fault() -> None:
    exact = torch.tensor([1.0, 7e4], dtype=torch.float64)
    unfused = torch.tensor([1.0, torch.inf], dtype=torch.float16)
    other = Output("y", torch.tensor([1.0, 6.5e4], dtype=torch.float16), unfused, exact, exact * 0, True, [])
    assert isinstance(compared(other, 2.0), Verdict)
    assert isinstance(compared(output(unfused, exact), 2.0), Verdict)


def test_whole_numbers_are_compared_exactly() -> None:
    exact = torch.tensor([1, 2, 3])
    difference = compared(output(torch.tensor([1, 2, 4]), exact), 2.0)
    assert isinstance(difference, Difference)
    assert "first at [2]: found 4, expected 3" in difference.message
