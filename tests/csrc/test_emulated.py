"""The kernels for Hopper, run by an emulated chip: every way to share the work, in orders that chance decides."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from emulation import PACES as EVERY_PACE
from emulation import Chip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rewriter.graph.prepare import upsampled
from rewriter.ops.cuda import convolution, product, upsample
from rewriter.ops.upsample import upsample_conv

DTYPES = st.sampled_from([torch.float16, torch.bfloat16])
PACES = st.sampled_from(EVERY_PACE)
SEEDS = st.integers(0, 2**31 - 1)
CLUSTERS = st.integers(1, 3)

emulated = settings(
    max_examples=30,
    deadline=None,
    # The chip is set anew in each example.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@st.composite
def ways(draw: st.DrawFn, steps: int) -> dict[str, int]:
    rows = draw(st.sampled_from([128, 256]))
    splits = draw(st.sampled_from([each for each in (1, 2, 4, 8) if rows == 128 or each == 1 if each <= steps]))
    pairs = [(across, along) for across in (1, 2) for along in (1, 2, 4) if across * along * splits <= 8]
    across, along = draw(st.sampled_from(pairs))
    return {"rows": rows, "across": across, "along": along, "splits": splits}


def made(seed: int, dtype: torch.dtype, *shape: int, scale: float = 1.0) -> torch.Tensor:
    tensor = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return tensor.contiguous(memory_format=formats.get(tensor.dim(), torch.contiguous_format))


def assert_near(found: torch.Tensor, exact: torch.Tensor) -> None:
    """Results that are rounded once or twice, in relative L2."""
    bound = 1e-3 if found.dtype == torch.float16 else 6e-3
    error = float((found.double() - exact).norm() / exact.norm())
    assert error < bound, error


@emulated
@given(st.data(), DTYPES, PACES, SEEDS, CLUSTERS)
def test_convolutions_of_pictures(
    chip: Chip, data: st.DataObject, dtype: torch.dtype, pace: str, seed: int, clusters: int
) -> None:
    images, channels, filters = (data.draw(st.integers(1, most)) for most in (3, 30, 45))
    height, width = (data.draw(st.integers(3, 20)) for _ in range(2))
    size, step = data.draw(st.sampled_from([1, 3])), data.draw(st.sampled_from([1, 2]))
    way = data.draw(ways(size**2 * math.ceil(channels / 8)))
    x = made(seed, dtype, images, 8 * channels, height, width)
    weight = made(seed + 1, dtype, 8 * filters, 8 * channels, size, size, scale=1 / (size * math.sqrt(8 * channels)))
    bias = data.draw(st.sampled_from([None, made(seed + 2, dtype, 8 * filters)]))
    pad = data.draw(st.sampled_from([0, size // 2]))
    exact = F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), step, pad)
    chip.set(seed=seed, pace=pace, clusters=clusters)
    if data.draw(st.booleans()):
        addend = made(seed + 3, dtype, *exact.shape)
        found = convolution.conv_add(x, weight, bias, addend, [step] * 2, [pad] * 2, **way)
        assert_near(found, exact + addend.double())
    else:
        assert_near(convolution.conv_act(x, weight, bias, [step] * 2, [pad] * 2, **way), exact)


@emulated
@given(st.data(), DTYPES, PACES, SEEDS, CLUSTERS)
def test_convolutions_of_upsampled_pictures(
    chip: Chip, data: st.DataObject, dtype: torch.dtype, pace: str, seed: int, clusters: int
) -> None:
    images, channels, filters = (data.draw(st.integers(1, most)) for most in (3, 20, 45))
    height, width = (data.draw(st.integers(1, 20)) for _ in range(2))
    way = data.draw(ways(4 * math.ceil(channels / 8)))
    x = made(seed, dtype, images, 8 * channels, height, width)
    weight = made(seed + 1, dtype, 8 * filters, 8 * channels, 3, 3, scale=1 / math.sqrt(72 * channels))
    bias = data.draw(st.sampled_from([None, made(seed + 2, dtype, 8 * filters)]))
    phases = upsampled(weight)
    chip.set(seed=seed, pace=pace, clusters=clusters)
    found = upsample.upsample_conv(x, phases, bias, **way)
    exact = upsample_conv(x.double(), phases.double(), None if bias is None else bias.double())
    assert_near(found, exact)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("pace", EVERY_PACE)
@pytest.mark.parametrize(
    ("shape", "filters", "padding"),
    [((1, 8, 5, 3, 4), (8, 3, 1, 1), [1, 0, 0]), ((2, 72, 3, 4, 9), (24, 3, 3, 3), [0, 1, 1])],
)
def test_convolutions_of_films(
    chip: Chip, pace: str, shape: tuple[int, ...], filters: tuple[int, ...], padding: list[int]
) -> None:
    x = made(1, torch.float16, *shape)
    weight = made(
        2, torch.float16, filters[0], shape[1], *filters[1:], scale=1 / math.sqrt(shape[1] * math.prod(filters[1:]))
    )
    chip.set(seed=3, pace=pace)
    for way in ({"rows": 128, "splits": 2}, {"rows": 256, "along": 2}):
        found = convolution.conv_act(x, weight, None, [1] * 3, padding, **way)
        assert_near(found, F.conv3d(x.double(), weight.double(), padding=padding))


@emulated
@given(st.data(), DTYPES, PACES, SEEDS, CLUSTERS)
def test_linear_layers(
    chip: Chip, data: st.DataObject, dtype: torch.dtype, pace: str, seed: int, clusters: int
) -> None:
    rows, depth, columns = data.draw(st.integers(1, 700)), data.draw(st.integers(1, 40)), data.draw(st.integers(1, 45))
    way = data.draw(ways(math.ceil(depth / 8)))
    x = made(seed, dtype, rows, 8 * depth)
    weight = made(seed + 1, dtype, 8 * columns, 8 * depth, scale=1 / math.sqrt(8 * depth))
    bias, residual = made(seed + 2, dtype, 8 * columns), made(seed + 3, dtype, rows, 8 * columns)
    chip.set(seed=seed, pace=pace, clusters=clusters)
    exact = F.linear(x.double(), weight.double(), bias.double())
    assert_near(product.linear_act(x, weight, bias, "none", **way), exact)
    assert_near(product.linear_add(x, weight, bias, residual, **way), exact + residual.double())


@emulated
@given(st.data(), DTYPES, PACES, SEEDS, CLUSTERS)
def test_geglu(chip: Chip, data: st.DataObject, dtype: torch.dtype, pace: str, seed: int, clusters: int) -> None:
    # Up to ten steps, more than twice as many as there are stages.
    rows, depth, results = data.draw(st.integers(1, 600)), data.draw(st.integers(1, 80)), data.draw(st.integers(1, 45))
    height, columns = data.draw(st.sampled_from([(256, 80), (128, 128), (128, 80)]))
    across, along = data.draw(st.sampled_from([(1, 1), (2, 1), (1, 2)]))
    x = made(seed, dtype, rows, 8 * depth)
    weight = made(seed + 1, dtype, 16 * results, 8 * depth, scale=1 / math.sqrt(8 * depth))
    bias = data.draw(st.sampled_from([None, made(seed + 2, dtype, 16 * results)]))
    hidden, gate = F.linear(x.double(), weight.double(), None if bias is None else bias.double()).chunk(2, -1)
    chip.set(seed=seed, pace=pace, clusters=clusters)
    found = product.linear_geglu(x, weight, bias, rows=height, columns=columns, across=across, along=along)
    assert_near(found, hidden * F.gelu(gate))


def test_nothing_is_written_beside_the_result(chip: Chip) -> None:
    x, weight = made(1, torch.float16, 1, 72, 1, 5, 7), made(2, torch.float16, 168, 72, 1, 3, 3)
    size, margin = 168 * 5 * 7, 4096
    for rows, across, along, splits in ((128, 1, 1, 1), (128, 2, 1, 4), (128, 1, 2, 2), (256, 2, 2, 1)):
        memory = torch.full((size + 2 * margin,), math.nan, dtype=torch.float16)
        y = memory[margin : margin + size].view(1, 1, 5, 7, 168).permute(0, 4, 1, 2, 3)
        chip.ops.convolution(x, weight, None, None, y, 1, 0, 1, 1, 1, rows, across, along, splits)
        assert memory[:margin].isnan().all()
        assert memory[-margin:].isnan().all()
        assert not y.isnan().any()


def test_numbers_that_are_not_finite_stay(chip: Chip) -> None:
    """A row of x that holds a NaN or an infinity gives such rows, and no others."""
    x, weight = made(1, torch.float16, 130, 64), made(2, torch.float16, 16, 64)
    residual = made(3, torch.float16, 130, 16)
    x[3, 5], x[129, 63], residual[7, 2] = math.nan, math.inf, -math.inf
    chip.set(pace="late")
    found = product.linear_add(x, weight, None, residual, rows=128, across=1, along=2, splits=1)
    exact = F.linear(x.float(), weight.float()) + residual.float()
    assert torch.equal(found.isnan(), exact.isnan())
    assert torch.equal(found.isinf(), exact.isinf())
