"""Filters over upsampled pictures as filters over the small ones, and what the kernel for Hopper takes of that."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rewriter.graph.prepare import upsampled
from rewriter.ops import OPS
from rewriter.ops import providers as packages
from rewriter.ops.cuda import upsample
from rewriter.ops.upsample import upsample_conv

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)


def channels_last(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(2, 5, 7, 6), (1, 3, 1, 1), (3, 2, 1, 9)])
def test_it_is_the_convolution_of_the_upsampled_picture(shape: tuple[int, ...], memory: torch.memory_format) -> None:
    x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=memory)
    weight, bias = torch.randn(70, shape[1], 3, 3, dtype=torch.float64), torch.randn(70, dtype=torch.float64)
    wanted = F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)
    torch.testing.assert_close(upsample_conv(x, upsampled(weight), bias), wanted)


def test_sums_of_filters_are_rounded_once() -> None:
    small = 2.0**-11
    weight = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, small], [0.0, small, small]]).half().expand(1, 1, 3, 3)
    # Rounded in between, the sum of one and three times half of its last place would be smaller.
    assert float(upsampled(weight)[0, 0, 1, 1]) == 1.0 + 2.0**-9


@pytest.mark.parametrize("shape", [(4, 4, 1, 1), (4, 4, 3), (4, 4, 3, 3, 3)])
def test_other_filters_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="needs filters of 3x3 pixels"):
        upsampled(torch.zeros(shape))


def test_operands_on_the_cpu_are_refused() -> None:
    assert upsample.takes(channels_last(1, 8, 4, 4), channels_last(32, 8, 2, 2), None) is not None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"x": torch.zeros(1, 8, 4, 4)}, "the channels are not innermost"),
        ({"weight": torch.zeros(32, 8, 2, 2)}, "the channels are not innermost"),
        ({"weight": channels_last(32, 8, 3, 3)}, "filters of 2x2 pixels"),
        ({"weight": channels_last(32, 16, 2, 2)}, "filters of 2x2 pixels"),
        ({"weight": channels_last(16, 8, 2, 2)}, "no multiples of 8"),
        ({"x": channels_last(1, 12, 4, 4), "weight": channels_last(32, 12, 2, 2)}, "no multiples of 8"),
        ({"bias": torch.zeros(32, dtype=torch.float16)}, "a bias of another kind"),
        ({"bias": torch.zeros(8)}, "a bias of another kind"),
        ({"bias": torch.zeros(16, dtype=torch.float16)[::2]}, "not a dense vector"),
    ],
)
def test_what_the_kernel_does_not_take(monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], reason: str) -> None:
    monkeypatch.setattr(upsample, "refusal", lambda *_: None)
    call = {"x": channels_last(1, 8, 4, 4), "weight": channels_last(32, 8, 2, 2), "bias": None}
    assert upsample.takes(**call) is None
    found = upsample.takes(**(call | change))
    assert found is not None
    assert reason in found


@pytest.mark.skipif(not HOPPER, reason="needs a GPU of compute capability 9.0")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 320, 32, 32), (1, 72, 17, 19), (3, 8, 1, 5)])
def test_the_kernel_equals_the_reference(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    assert "cuda" not in packages.load()
    filters = 168
    x, weight = (
        channels_last(*shape, dtype=dtype).cuda(),
        channels_last(4 * filters, shape[1], 2, 2, dtype=dtype).cuda(),
    )
    bias = torch.randn(filters, dtype=dtype, device="cuda")
    exact = upsample_conv(x.double(), weight.double(), bias.double())
    for config in upsample.configs(x, weight, bias):
        found = OPS["upsample_conv"].providers["cuda"].fn(x, weight, bias, **config)
        torch.testing.assert_close(found.double(), exact, rtol=1e-2, atol=2e-2 * float(exact.std()))
