"""Group norms that write eight bits, and convolutions of these: references, Triton's norms, the kernel for Hopper."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rewriter.graph import prepare
from rewriter.ops import OPS, quantised_conv
from rewriter.ops import providers as packages
from rewriter.ops.cuda import quantised_conv as hopper
from rewriter.ops.cuda import tiles

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
on_hopper = pytest.mark.skipif(not HOPPER, reason="needs a GPU of compute capability 9.0")
DTYPES = [torch.float16, torch.bfloat16]
# Pictures, channels, height, width, filters, side of a filter, step: of SDXL, and at edges of tiles.
SIZES = [
    (2, 320, 128, 128, 320, 3, 1),
    (2, 640, 64, 64, 640, 3, 1),
    (2, 2560, 32, 32, 1280, 3, 1),
    (1, 144, 9, 7, 136, 3, 1),
    (3, 128, 5, 11, 168, 3, 2),
    (1, 16, 33, 17, 8, 1, 1),
]

Call = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def reach(weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return prepare.largest(weight), prepare.largest(bias)


def normed(shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu") -> tuple[Any, ...]:
    """x, weight and bias of a group norm."""
    torch.manual_seed(0)
    x = torch.randn(shape, device=device).to(dtype).contiguous(memory_format=torch.channels_last)
    return x, *(torch.randn(shape[1], device=device).to(dtype) for _ in range(2))


def operands(
    images: int,
    channels: int,
    height: int,
    width: int,
    filters: int,
    side: int,
    dtype: torch.dtype = torch.float16,
    device: str = "cpu",
) -> Call:
    x, weight, bias = normed((images, channels, height, width), dtype, device)
    codes, scale = quantised_conv.group_norm_silu_quantised(x, 8, weight, bias, 1e-5, *reach(weight, bias))
    filter_ = torch.randn(filters, channels, side, side, device=device).to(dtype) / math.sqrt(channels) / side
    made = prepare.filters_f8e4m3(filter_), prepare.filter_scales_f8e4m3(filter_)
    return codes, scale, *made, torch.randn(filters, device=device).to(dtype)


def test_the_norm_in_eight_bits_is_off_by_what_its_format_says() -> None:
    x, weight, bias = normed((2, 64, 9, 9), torch.float16)
    codes, scale = quantised_conv.group_norm_silu_quantised(x, 8, weight, bias, 1e-5, *reach(weight, bias))
    exact = F.silu(F.group_norm(x.double(), 8, weight.double(), bias.double(), 1e-5))
    bound = quantised_conv.root(x.shape, 8) * weight.abs().max().double() + bias.abs().max().double()
    assert 128 <= bound / scale.double() < 256
    off = (codes.double() * scale.double() - exact).abs()
    assert bool((off <= exact.abs() * 2.0**-4 + bound * 2.0**-17 + 1e-6).all())
    assert codes.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_number_that_lies_furthest_out_does_not_overflow(sign: int) -> None:
    x = torch.zeros(1, 8, 64, 64, dtype=torch.float16).contiguous(memory_format=torch.channels_last)
    x[0, 3, 5, 7] = sign * 1000.0
    weight, bias = torch.full((8,), 2.0).half(), torch.full((8,), 0.5).half()
    codes, scale = quantised_conv.group_norm_silu_quantised(x, 1, weight, bias, 1e-5, *reach(weight, bias))
    exact = F.silu(F.group_norm(x.double(), 1, weight.double(), bias.double(), 1e-5))
    assert bool(codes.float().isfinite().all())
    torch.testing.assert_close(codes.double() * scale.double(), exact, rtol=2.0**-4, atol=float(scale) * 2.0**-10)


def test_no_number_becomes_no_number() -> None:
    x, weight, bias = normed((1, 16, 4, 4), torch.float16)
    x[0, 3, 2, 1] = math.nan
    call = (x, 4, weight, bias, 1e-5)
    codes = quantised_conv.group_norm_silu_quantised(*call, *reach(weight, bias))[0]
    assert bool(codes[:, :4].float().isnan().all())
    assert bool(codes[:, 4:].float().isfinite().all())
    weight[2] = math.inf
    assert bool(quantised_conv.group_norm_silu_quantised(*call, *reach(weight, bias))[1].isnan())


def test_the_convolution_is_that_of_what_the_codes_stand_for() -> None:
    codes, scale, filters, scales, bias = operands(2, 16, 5, 6, 24, 3)
    found = quantised_conv.quantised_conv(codes, scale, filters, scales, bias, [1, 1], [1, 1], [1, 1])
    weight = filters.double() * scales.double().view(-1, 1, 1, 1)
    exact = F.conv2d(codes.double() * scale.double(), weight, bias.double(), padding=1)
    torch.testing.assert_close(found.double(), exact, rtol=2e-3, atol=2e-3)
    assert found.dtype == torch.float16
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_filters_keep_their_layout_and_have_a_scale_each() -> None:
    weight = torch.randn(6, 8, 3, 3) * torch.logspace(-6, 3, 6).view(-1, 1, 1, 1)
    codes, scales = prepare.filters_f8e4m3(weight), prepare.filter_scales_f8e4m3(weight)
    assert codes.shape == weight.shape
    assert codes.is_contiguous(memory_format=torch.channels_last)
    assert scales.shape == (6, 1)
    torch.testing.assert_close(codes.float() * scales.view(-1, 1, 1, 1), weight, rtol=2.0**-4, atol=1e-7)
    with pytest.raises(ValueError, match="largest needs an element"):
        prepare.largest(weight[:0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 64, 8, 8), (1, 48, 5, 7), (2, 32, 40, 40)], ids=str)
@pytest.mark.parametrize("kind", ["group_norm_silu", "add_group_norm_silu"])
def test_norms_in_triton(kind: str, shape: tuple[int, ...], dtype: torch.dtype, tensors_device: str) -> None:
    packages.load()
    x, weight, bias = normed(shape, dtype, tensors_device)
    op = OPS[f"{kind}_quantised"]
    sums = () if kind.startswith("group") else (None, torch.randn(shape[0], shape[1], 1, 1).to(x))
    call = (x, *sums, 4, weight, bias, 1e-5, *reach(weight, bias))
    provider = op.providers["triton"]
    assert provider.supports(*call) is None
    wanted = op.reference(*call)
    for config in provider.configs(*call):
        found = provider.fn(*call, **config)
        assert found[0].stride() == wanted[0].stride()
        torch.testing.assert_close(found[1], wanted[1])
        # The interpreter rounds sums to bf16 otherwise than torch does.
        rounding = 2.0**-7 if dtype == torch.bfloat16 else 0.0
        torch.testing.assert_close(
            found[0].float(), wanted[0].float(), rtol=2.0**-3 + rounding, atol=2.0**-9 + 300 * rounding
        )
        for one, other in zip(found[2:], wanted[2:], strict=True):
            torch.testing.assert_close(one, other, rtol=2 * rounding, atol=rounding)


@pytest.fixture
def tensors_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def as_on_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has questions about a call answered as there, where only the operands decide."""
    for module in (hopper, tiles):
        monkeypatch.setattr(module, "elsewhere", lambda *_: None)


def test_operands_on_the_cpu_are_refused() -> None:
    call = operands(1, 16, 4, 4, 16, 3)
    assert hopper.takes(*call, [1, 1], [1, 1], [1, 1]) == "the operands are not all on one CUDA device"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"codes": torch.zeros(1, 32, 4, 4, dtype=torch.int8)}, "only f8e4m3"),
        ({"bias": torch.zeros(16)}, "only f8e4m3"),
        ({"scale": torch.zeros(1).half()}, "scales in other than f32"),
        ({"scale": torch.zeros(2)}, "broadcast"),
        ({"bias": torch.zeros(1).half()}, "broadcast"),
        ({"stride": [1, 2]}, "only steps of 1 or 2"),
        ({"dilation": [2, 1]}, "filters with gaps"),
        ({"padding": [-1, -1], "stride": [2, 2]}, "an empty result"),
        ({"codes": torch.zeros(1, 32, 4, 4).to(torch.float8_e4m3fn)}, "the channels are not innermost"),
    ],
)
@pytest.mark.usefixtures("as_on_hopper")
def test_what_the_kernel_does_not_take(change: dict[str, Any], reason: str) -> None:
    names = ("codes", "scale", "weight", "weight_scales", "bias")
    call: dict[str, Any] = dict(zip(names, operands(1, 32, 4, 4, 16, 3), strict=True))
    call |= {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1]}
    assert hopper.takes(*call.values()) is None
    assert reason in str(hopper.takes(*(call | change).values()))


@pytest.mark.parametrize(("channels", "filters"), [(24, 16), (16, 12)])
@pytest.mark.usefixtures("as_on_hopper")
def test_channels_that_the_kernel_does_not_take(channels: int, filters: int) -> None:
    found = hopper.takes(*operands(1, channels, 4, 4, filters, 3), [1, 1], [1, 1], [1, 1])
    assert found == "numbers of channels that are no multiples of 16 and 8"


@on_hopper
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_kernel_for_hopper(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    packages.load()
    *shape, side, step = sizes
    call = operands(*shape, side, dtype, "cuda")
    geometry = ([step, step], [side // 2, side // 2], [1, 1])
    exact = quantised_conv.quantised_conv(*call[:4], call[4].double(), *geometry)
    assert hopper.takes(*call, *geometry) is None
    ways = [*hopper.configs(*call, *geometry)]
    for way in [*ways, *({"rows": rows, "across": 1, "along": 1} for rows in (128, 256))]:
        found = hopper.quantised_conv(*call, *geometry, **way)
        # The tensor cores' sums of f8e4m3 keep fewer digits than f32 has.
        assert float((found.double() - exact).norm() / exact.norm()) < 8e-3, way


@on_hopper
def test_a_sample_without_numbers_leaves_the_others_as_they_are() -> None:
    packages.load()
    x, weight, bias = normed((2, 64, 16, 16), torch.float16, "cuda")
    call = (x, 8, weight, bias, 1e-5, *reach(weight, bias))
    provider = OPS["group_norm_silu_quantised"].providers["triton"]
    before = provider.fn(*call)[0].float()
    x[0] = math.nan
    after = provider.fn(*call)[0].float()
    assert bool(after[0].isnan().all())
    torch.testing.assert_close(after[1], before[1], rtol=0, atol=0)
