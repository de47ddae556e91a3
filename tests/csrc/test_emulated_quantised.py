"""The kernels that multiply rows and pictures of eight bits, run by an emulated chip."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from emulation import PACES, Chip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rewriter.graph import prepare
from rewriter.ops import low_precision
from rewriter.ops import quantised_conv as conv_reference
from rewriter.ops.cuda import quantised, quantised_conv

WAYS = [
    {"alternate": alternate, "across": across, "along": along}
    for alternate in (False, True)
    for across, along in ((1, 1), (2, 1), (1, 2))
]


def operands(seed: int, rows: int, depth: int, columns: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Rows with scales from 2^-9 on, and weights whose results are of the size of one."""
    torch.manual_seed(seed)
    x = torch.randn(rows, depth) * torch.exp2(torch.randint(-2, 3, (rows, 1)))
    codes, scales = low_precision.quantise_rows(x, "f8e4m3")
    weight, weight_scales = low_precision.quantise_rows(torch.randn(columns, depth) / math.sqrt(depth), "f8e4m3")
    return codes, scales, weight, weight_scales, torch.randn(columns).to(dtype)


def assert_near(found: torch.Tensor, exact: torch.Tensor) -> None:
    bound = 1e-3 if found.dtype == torch.float16 else 6e-3
    error = float((found.double() - exact).norm() / exact.norm())
    assert error < bound, error


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data(), st.sampled_from([torch.float16, torch.bfloat16]), st.sampled_from(PACES), st.integers(0, 2**31 - 1))
def test_products(chip: Chip, data: st.DataObject, dtype: torch.dtype, pace: str, seed: int) -> None:
    rows, columns = data.draw(st.integers(1, 600)), data.draw(st.integers(1, 45))
    # Up to twelve steps, more than twice as many as there are stages.
    depth = data.draw(st.integers(1, 96))
    given_operands = operands(seed, rows, 16 * depth, 16 * columns, dtype)
    way = data.draw(st.sampled_from(WAYS))
    chip.set(seed=seed, pace=pace, clusters=data.draw(st.integers(1, 3)))
    exact = low_precision.quantised_linear(*given_operands[:4], given_operands[4].double())
    match data.draw(st.sampled_from(["plain", "add", "geglu"])):
        case "plain":
            assert_near(quantised.quantised_linear(*given_operands, **way), exact)
        case "add":
            residual = torch.randn(rows, 16 * columns).to(dtype)
            assert_near(quantised.quantised_linear(*given_operands, residual, **way), exact + residual.double())
        case "geglu":
            exact = low_precision.quantised_linear_geglu(*given_operands[:4], given_operands[4].double())
            assert_near(quantised.quantised_linear_geglu(*given_operands, **way), exact)


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data(), st.sampled_from([torch.float16, torch.bfloat16]), st.sampled_from(PACES), st.integers(0, 2**31 - 1))
def test_convolutions(chip: Chip, data: st.DataObject, dtype: torch.dtype, pace: str, seed: int) -> None:
    images, channels, filters = (data.draw(st.integers(1, most)) for most in (3, 20, 45))
    height, width = (data.draw(st.integers(3, 20)) for _ in range(2))
    size, step = data.draw(st.sampled_from([1, 3])), data.draw(st.sampled_from([1, 2]))
    way = {"rows": data.draw(st.sampled_from([128, 256]))}
    way["across"], way["along"] = data.draw(st.sampled_from([(1, 1), (2, 1), (1, 2)]))
    torch.manual_seed(seed)
    codes = (torch.randn(images, 16 * channels, height, width) * 40).clamp(-255, 255).to(torch.float8_e4m3fn)
    weight = torch.randn(8 * filters, 16 * channels, size, size) / (4 * size * math.sqrt(channels))
    call = (
        codes.contiguous(memory_format=torch.channels_last),
        torch.tensor([2.0**-5]),
        prepare.filters_f8e4m3(weight),
        prepare.filter_scales_f8e4m3(weight),
        torch.randn(8 * filters).to(dtype),
    )
    geometry = [step] * 2, [size // 2] * 2, [1, 1]
    exact = conv_reference.quantised_conv(*call[:4], call[4].double(), *geometry)
    chip.set(seed=seed, pace=pace, clusters=data.draw(st.integers(1, 3)))
    assert_near(quantised_conv.quantised_conv(*call, *geometry, **way), exact)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_nothing_is_written_beside_the_result(chip: Chip, way: dict[str, int]) -> None:
    codes, scales, weight, weight_scales, bias = operands(1, 70, 144, 168, torch.float16)
    margin = 256 * 168
    memory = torch.full((70 * 168 + 2 * margin,), math.nan, dtype=torch.float16)
    y = memory[margin:-margin].view(70, 168)
    given_operands = codes.view(bias.dtype), scales.view(-1), weight.view(bias.dtype), weight_scales.view(-1), bias
    chip.ops.quantised_linear(*given_operands, None, y, False, *way.values(), 1)
    assert memory[:margin].isnan().all()
    assert memory[-margin:].isnan().all()
    assert not y.isnan().any()


def test_a_spoilt_row_stays_alone(chip: Chip) -> None:
    codes, scales, *others = operands(1, 140, 64, 32, torch.float16)
    scales[7] = math.nan
    chip.set(pace="late")
    found = quantised.quantised_linear(codes, scales, *others, **WAYS[0])
    assert found[7].isnan().all()
    assert found.isnan().sum() == 32


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"across": 2, "along": 2}, "across"),
        ({"columns": 36}, "multiple of 8"),
        ({"gated": True}, "one for each row"),
    ],
)
def test_what_it_does_not_take_is_said(chip: Chip, wrong: dict[str, Any], message: str) -> None:
    columns = wrong.get("columns", 32)
    codes, scales, weight, weight_scales, bias = operands(1, 70, 64, columns, torch.float16)
    given_operands = codes.view(bias.dtype), scales.view(-1), weight.view(bias.dtype), weight_scales.view(-1), bias
    usual = {"alternate": False, "across": 1, "along": 1}
    way = [wrong.get(name, value) for name, value in usual.items()]
    y = torch.empty(70, columns).half()
    with pytest.raises(RuntimeError, match=message):
        chip.ops.quantised_linear(*given_operands, None, y, wrong.get("gated", False), *way, 1)
