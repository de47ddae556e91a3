from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from rewriter.ops import conv as reference
from rewriter.ops.triton import conv, device

pytestmark = pytest.mark.skipif(not device.INTERPRETED, reason="needs Triton's interpreter (TRITON_INTERPRET=1)")

_SMALL = {"rows": 64, "columns": 16, "depth": 32, "parts": 3}
# Half a unit in the last place; a whole one for bf16, whose low bits the interpreter drops instead of rounding.
_ERROR = {torch.float16: 5e-4, torch.bfloat16: 8e-3}
# Images, channels, height, width, filters, kernel, stride, padding, dilation.
_SHAPES = [
    (2, 20, 8, 8, 24, (3, 3), (1, 1), (1, 1), (1, 1)),
    (1, 3, 5, 7, 5, (3, 3), (2, 1), (1, 0), (1, 2)),
    (3, 33, 4, 4, 17, (1, 1), (1, 1), (0, 0), (1, 1)),
    (1, 16, 9, 6, 20, (3, 2), (1, 3), (2, 1), (2, 1)),
]


def _fenced(tensor: torch.Tensor) -> torch.Tensor:
    """The same in [N, ..., C] order, between NaN on every side."""
    n, c, h, w = tensor.shape
    room = torch.full((n + 2, h + 2, w + 2, c + 3), torch.nan, dtype=tensor.dtype)
    view = room[1:-1, 1:-1, 1:-1, 1:-2].movedim(-1, 1)
    return view.copy_(tensor)


def _operands(shape: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    images, channels, height, width, filters, kernel, stride, padding, dilation = shape
    generator = torch.Generator().manual_seed(channels)
    x = torch.randn(images, channels, height, width, generator=generator).to(dtype)
    weight = (torch.randn(filters, channels, *kernel, generator=generator) * channels**-0.5 / 3).to(dtype)
    bias = torch.randn(filters, generator=generator).to(dtype)
    rest = list(stride), list(padding), list(dilation), False, [0, 0], 1
    return _fenced(x), _fenced(weight), bias, rest


def _wide(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.double()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", _SHAPES, ids=str)
def test_convolution(shape: tuple[Any, ...], dtype: torch.dtype) -> None:
    x, weight, bias, rest = _operands(shape, dtype)
    for added, activation in ((None, "none"), (bias, "silu")):
        assert conv.takes(x, weight, added, None, *rest, activation) is None
        result = conv.conv_add(x, weight, added, None, *rest, activation, **_SMALL)
        exact = reference.conv_act(x.double(), weight.double(), _wide(added), *rest, activation)
        assert (result.double() - exact).norm() < _ERROR[dtype] * exact.norm()
        assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("activation", ["none", "relu", "sigmoid", "tanh", "silu"])
def test_addend(activation: str) -> None:
    x, weight, bias, rest = _operands(_SHAPES[0], torch.float16)
    whole = torch.randn(2, 24, 8, 8, generator=torch.Generator().manual_seed(0)).half()
    for addend in (_fenced(whole), whole, whole[:, :, :1, :1], whole[0, :, :1, :1], whole[:1, :1]):
        assert conv.takes(x, weight, bias, addend, *rest, activation) is None
        result = conv.conv_add(x, weight, bias, addend, *rest, activation, **_SMALL)
        exact = reference.conv_add(x.double(), weight.double(), bias.double(), addend.double(), *rest, activation)
        assert (result.double() - exact).norm() < 5e-4 * exact.norm()


@pytest.mark.parametrize("parts", [1, 7, 64])
def test_any_number_of_parts(parts: int) -> None:
    x, weight, _, rest = _operands(_SHAPES[0], torch.float16)
    result = conv.conv_add(x, weight, None, None, *rest, "none", **{**_SMALL, "parts": parts})
    exact = reference.conv_act(x.double(), weight.double(), None, *rest, "none")
    assert (result.double() - exact).norm() < 5e-4 * exact.norm()


def test_refusals() -> None:
    x, weight, bias, rest = _operands(_SHAPES[0], torch.float16)
    dense = x.contiguous()
    assert conv.takes(dense, weight, bias, None, *rest, "none") == "the channels are not innermost"
    assert conv.takes(x, weight.contiguous(), bias, None, *rest, "none") == "the channels are not innermost"
    assert conv.takes(x, weight, bias.float(), None, *rest, "none") is not None
    assert conv.takes(x.float(), weight.float(), None, None, *rest, "none") is not None
    assert conv.takes(x, weight, None, torch.zeros(3, 2, 24, 8, 8).half(), *rest, "none") is not None
    assert conv.takes(x, weight, None, torch.zeros(4, 24, 8, 8).half(), *rest, "none") is not None
    *some, _ = rest
    assert conv.takes(x, weight, None, None, *some, 2, "none") == "only plain convolutions of images"
    many = torch.zeros(9, 8, 8, 20).half().movedim(-1, 1)
    assert conv.takes(many, weight, None, None, *rest, "none") == "as many pixels are bound by arithmetic"
    assert conv.takes(many[:0], weight, None, None, *rest, "none") is not None


def test_every_multiprocessor_has_a_share() -> None:
    x, weight = torch.zeros(2, 1280, 8, 8), torch.zeros(1280, 1280, 3, 3)
    for config in conv.configs(x, weight, None, None, [1, 1], [1, 1], [1, 1]):
        assert 120 <= 1280 // config["columns"] * config["parts"] <= 264
