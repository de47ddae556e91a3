"""Rows in eight bits: what the formats promise, and that kernels give the reference's bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rewriter.ops import OPS, providers
from rewriter.ops import low_precision as reference
from rewriter.ops.low_precision import FORMATS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# By how much a number may be off, relative to itself and to the largest of its row.
STEPS = {"f8e4m3": (2.0**-4, 2.0**-17), "i8": (0.0, 0.5 / 127)}


def numbers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Of many magnitudes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * torch.exp(2 * torch.randn(shape, generator=generator))
    return x.to(DEVICE, dtype)


def bits(codes: torch.Tensor) -> torch.Tensor:
    return codes.view(torch.uint8)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_each_number_is_off_by_half_a_step_at_most(dtype: torch.dtype, kind: str) -> None:
    x = numbers(40, 77, dtype=dtype)
    codes, scales = reference.quantise_rows(x, kind)
    wide = x.double()
    relative, absolute = STEPS[kind]
    allowed = relative * wide.abs() + (absolute + 1e-7) * wide.abs().amax(-1, keepdim=True)
    assert (codes.dtype, scales.dtype, scales.shape) == (FORMATS[kind], torch.float32, (40, 1))
    assert bool(((codes.double() * scales.double() - wide).abs() <= allowed).all())


def test_scales_of_f8e4m3_are_powers_of_two_that_round_nothing() -> None:
    x = numbers(50, 9)
    codes, scales = reference.quantise_rows(x, "f8e4m3")
    assert bool((torch.frexp(scales).mantissa == 0.5).all())
    largest = (x / scales).abs().amax(-1)
    assert float(largest.min()) >= 128
    assert float(largest.max()) < 256
    assert torch.equal(codes.float(), (x / scales).to(torch.float8_e4m3fn).float())


@pytest.mark.parametrize("kind", FORMATS)
def test_a_row_with_a_hole_is_nan_and_others_are_not(kind: str) -> None:
    x = numbers(4, 16)
    x[1, 3], x[2, 5], x[3] = torch.nan, torch.inf, 0.0
    codes, scales = reference.quantise_rows(x, kind)
    weight, weight_scales = reference.quantise_rows(numbers(8, 16, seed=1), kind)
    y = reference.quantised_linear(codes, scales, weight, weight_scales, torch.zeros(8, device=DEVICE))
    assert y.isnan().all(-1).tolist() == [False, True, True, False]
    assert bool((y[3] == 0).all())


def test_an_unknown_format_is_named() -> None:
    with pytest.raises(ValueError, match=r"unknown format 'f4'; expected one of f8e4m3, i8"):
        reference.quantise_rows(torch.zeros(2, 2), "f4")


def kernel(op: str) -> Any:
    pytest.importorskip("triton", reason="Triton is not installed")
    from rewriter.ops.triton import device

    if DEVICE == "cpu" and not device.INTERPRETED:
        pytest.skip("needs a GPU or Triton's interpreter (TRITON_INTERPRET=1)")
    if DEVICE == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs compute capability 8.9")
    providers.load()
    return OPS[op].providers["triton"]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_a_kernel_gives_the_same_bits(dtype: torch.dtype, kind: str) -> None:
    x = numbers(37, 133, dtype=dtype)
    x[3, 5], x[4, 1], x[7] = torch.nan, torch.inf, 0.0
    # What lies half-way between two codes is rounded to the even one.
    x[8, :9] = torch.tensor([128.0, 1.0625, 1.1875, -1.0625, 136.0, 2.0**-9, 2.0**-10, 3 * 2.0**-10, 72.0])
    x[8, 9:] = 0.0
    rows = kernel("quantise_rows")
    strided = torch.full((37, 140), torch.nan, dtype=dtype, device=DEVICE)
    strided[:, 3:136] = x
    wanted = reference.quantise_rows(x, kind)
    for each in (x, strided[:, 3:136], x.t().contiguous().t()):
        for config in rows.configs(each, kind):
            codes, scales = rows.fn(each, kind, **config)
            assert torch.equal(bits(codes), bits(wanted[0]))
            assert torch.equal(scales.nan_to_num(-1.0), wanted[1].nan_to_num(-1.0))


# Sums add up in another order: one of so many numbers may be rounded the other way before it becomes a code.
_OTHERS = 0.005
_SHAPE = (2, 19, 64)


def _calls(kind: str) -> dict[str, tuple[Any, ...]]:
    def draw(*shape: int, seed: int) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, torch.float16)

    x, y, left = draw(*_SHAPE, seed=1), draw(*_SHAPE, seed=2), draw(2, 19, 23, seed=3)
    weight, bias = draw(64, seed=4), draw(64, seed=5)
    gate, scale, shift = draw(2, 1, 192, seed=6).chunk(3, -1)
    return {
        "gated_quantised geglu": (x, "geglu", None, kind),
        "gated_quantised joined": (x, "gelu_tanh", left, kind),
        "layer_norm_quantised": (x, [64], weight, bias, 1e-5, kind),
        "add_layer_norm_quantised": (x, y, [64], weight, None, 1e-5, kind),
        "layer_norm_modulate_quantised": (x, [64], None, None, 1e-6, scale, shift, kind),
        "gate_add_layer_norm_modulate_quantised": (x, gate, y, [64], None, bias, 1e-6, scale, shift, kind),
    }


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("case", list(_calls("i8")))
def test_a_kernel_with_what_comes_before(case: str, kind: str) -> None:
    op, arguments = case.split()[0], _calls(kind)[case]
    found, wanted = kernel(op), OPS[op].reference(*arguments)
    assert found.supports(*arguments) is None
    for config in found.configs(*arguments):
        codes, scales, *total = found.fn(*arguments, **config)
        assert codes.shape == wanted[0].shape
        assert float((bits(codes) != bits(wanted[0])).float().mean()) <= _OTHERS
        # And then by one code.
        found_rows, wanted_rows = codes.double() * scales, wanted[0].double() * wanted[1]
        assert bool(((found_rows - wanted_rows).abs() <= 1.05 * wanted[1] + 0.13 * wanted_rows.abs()).all())
        for one, other in zip(total, wanted[2:], strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("sizes", [(5, 37, 11), (33, 64, 48), (70, 144, 40)], ids=str)
def test_a_kernel_for_the_product(sizes: tuple[int, int, int], kind: str) -> None:
    m, k, n = sizes
    rows = (*reference.quantise_rows(numbers(m, k), kind), *reference.quantise_rows(0.01 * numbers(n, k, seed=1), kind))
    bias, residual = numbers(n, dtype=torch.float16, seed=2), numbers(m, n, dtype=torch.float16, seed=3)
    exact = reference.quantised_linear(*rows, bias.double())
    configs: list[dict[str, int]] = [
        {"rows": 16, "columns": 16, "depth": 32},
        {"rows": 32, "columns": 16, "depth": 32, "persistent": 1},
    ]
    product, summed = kernel("quantised_linear"), kernel("quantised_linear_add")
    assert product.supports(*rows, bias) is None
    assert summed.supports(*rows, bias, residual) is None
    if DEVICE == "cuda":
        configs = [*product.configs(*rows, bias)]
    # On a GPU sums of f8e4m3 keep fewer digits than f32 has.
    limit = 5e-4 if DEVICE == "cpu" or kind == "i8" else 3e-3
    for config in configs:
        for y, wanted in (
            (product.fn(*rows, bias, **config), exact),
            (summed.fn(*rows, bias, residual, **config), exact + residual),
        ):
            assert y.dtype == torch.float16
            assert float((y.double() - wanted).norm() / wanted.norm()) < limit


def test_a_kernel_reads_scales_of_any_strides() -> None:
    codes, scales = reference.quantise_rows(numbers(6, 32), "i8")
    weight, weight_scales = reference.quantise_rows(numbers(16, 32, seed=1), "i8")
    apart = torch.full((12, 1), torch.nan, device=DEVICE)
    apart[::2] = scales
    bias = torch.zeros(16, dtype=torch.float16, device=DEVICE)
    product = kernel("quantised_linear")
    found = product.fn(codes, apart[::2], weight, weight_scales, bias, rows=16, columns=16, depth=32)
    assert torch.equal(found, product.fn(codes, scales, weight, weight_scales, bias, rows=16, columns=16, depth=32))
