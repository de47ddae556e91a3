"""Convolutions and GEGLU by the kernels for Hopper: what they take, how they share the work, and there the results."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rewriter.ops import OPS
from rewriter.ops import providers as packages
from rewriter.ops.cuda import convolution, product, tiles

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
on_hopper = pytest.mark.skipif(not HOPPER, reason="needs a GPU of compute capability 9.0")
PLAIN = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1, "none")


@pytest.fixture
def as_on_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has questions about a call answered as there, where only the shapes decide."""
    for module in (convolution, product):
        monkeypatch.setattr(module, "refusal", lambda *_: None)


def channels_last(*shape: int) -> torch.Tensor:
    memory = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    return torch.randn(shape, dtype=torch.float16).contiguous(memory_format=memory)


def test_operands_on_the_cpu_are_refused() -> None:
    x, weight = channels_last(1, 8, 4, 4), channels_last(8, 8, 3, 3)
    assert convolution.takes_conv_act(x, weight, None, *PLAIN) == "the operands are not all on one CUDA device"
    assert product.takes_geglu(x, weight, None) == "the operands are not all on one CUDA device"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"x": torch.zeros(1, 8, 4, 4)}, "the channels are not innermost"),
        ({"weight": torch.zeros(8, 8, 3, 3)}, "the channels are not innermost"),
        ({"x": channels_last(1, 12, 4, 4), "weight": channels_last(8, 12, 3, 3)}, "no multiples of 8"),
        ({"x": channels_last(1, 16, 4, 4), "groups": 2}, "only plain convolutions"),
        ({"transposed": True}, "only plain convolutions"),
        ({"dilation": [2, 2]}, "filters with gaps"),
        ({"stride": [1, 2]}, "only steps of 1 or 2"),
        ({"stride": [3, 3]}, "only steps of 1 or 2"),
        ({"activation": "silu"}, "no epilogue for silu"),
        ({"padding": [0, 0], "x": channels_last(1, 8, 2, 4)}, "an empty result"),
    ],
)
@pytest.mark.usefixtures("as_on_hopper")
def test_what_the_convolution_does_not_take(change: dict[str, Any], reason: str) -> None:
    names = ("stride", "padding", "dilation", "transposed", "output_padding", "groups", "activation")
    call: dict[str, Any] = {"x": channels_last(1, 8, 4, 4), "weight": channels_last(8, 8, 3, 3), "bias": None}
    call |= dict(zip(names, PLAIN, strict=True))
    assert convolution.takes_conv_act(*call.values()) is None
    found = convolution.takes_conv_act(*(call | change).values())
    assert found is not None
    assert reason in found


@pytest.mark.usefixtures("as_on_hopper")
def test_an_addend_that_broadcasts_is_refused() -> None:
    x, weight = channels_last(1, 8, 4, 4), channels_last(8, 8, 3, 3)
    assert convolution.takes_conv_add(x, weight, None, channels_last(1, 8, 4, 4), *PLAIN) is None
    assert (
        convolution.takes_conv_add(x, weight, None, channels_last(1, 8, 1, 1), *PLAIN)
        == "the addend broadcasts or promotes"
    )
    plain = torch.zeros(1, 8, 4, 4, dtype=torch.float16)
    assert convolution.takes_conv_add(x, weight, None, plain, *PLAIN) == "the addend's channels are not innermost"


@pytest.mark.parametrize("depth", [1, 3, 45, 180])
@pytest.mark.parametrize("pixels", [8, 64])
def test_every_way_to_share_the_work_fits(monkeypatch: pytest.MonkeyPatch, depth: int, pixels: int) -> None:
    """Also where the depth is so short that there is nothing to split."""
    fake = types.SimpleNamespace(clusters=lambda _, size: 120 // size)
    monkeypatch.setattr(torch.ops, "rewriter_cuda", fake, raising=False)
    x, weight = (
        torch.empty(2, 64 * depth, pixels, pixels, device="meta"),
        torch.empty(320, 64 * depth, 1, 1, device="meta"),
    )
    found = convolution.configs(x, weight, None, [1, 1], [0, 0])
    assert found
    for config in found:
        assert config["across"] * config["along"] * config["splits"] <= 8
        assert config["splits"] == 1 or (config["splits"] * 4 <= depth and config["rows"] == 128)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"activation": "silu"}, "no epilogue for silu"),
        ({"x": torch.zeros(63, 16), "residual": torch.zeros(63, 24)}, "few rows"),
        ({"weight": torch.zeros(20, 16), "residual": torch.zeros(64, 20)}, "no multiple of 8"),
        ({"x": torch.zeros(64, 12), "weight": torch.zeros(24, 12)}, "no multiple of 8"),
        ({"x": torch.zeros(64, 32)[:, ::2]}, "rows with gaps"),
        ({"weight": torch.zeros(16, 24).t()}, "rows with gaps"),
        ({"weight": torch.zeros(24, 8)}, "shapes that torch refuses too"),
        ({"residual": torch.zeros(24)}, "the residual broadcasts"),
        ({"residual": torch.zeros(64, 24, dtype=torch.float64)}, "the residual broadcasts, promotes"),
        ({"residual": torch.zeros(24, 64).t()}, "the residual has gaps"),
    ],
)
@pytest.mark.usefixtures("as_on_hopper")
def test_what_the_linear_layer_does_not_take(change: dict[str, Any], reason: str) -> None:
    call: dict[str, Any] = {"x": torch.zeros(64, 16), "weight": torch.zeros(24, 16), "bias": None}
    assert product.takes_act(*call.values(), "none") is None
    assert product.takes_add(*call.values(), torch.zeros(64, 24)) is None
    call = call | {"residual": torch.zeros(64, 24), "activation": "none"} | change
    activation = call.pop("activation")
    found = product.takes_add(*call.values()) if activation == "none" else None
    found = found or product.takes_act(call["x"], call["weight"], call["bias"], activation)
    assert found is not None
    assert reason in found


@pytest.mark.parametrize(("rows", "columns", "steps"), [(64, 8, 1), (2048, 1280, 20), (8192, 5120, 20), (130, 320, 5)])
def test_every_config_is_one_that_the_kernel_has(
    monkeypatch: pytest.MonkeyPatch, rows: int, columns: int, steps: int
) -> None:
    monkeypatch.setattr(torch.ops, "rewriter_cuda", types.SimpleNamespace(clusters=lambda _, size: 120 // size), False)
    found = tiles.ways_to_share(torch.empty(0), rows, columns, steps)
    assert found
    assert all(config["rows"] in (128, 256) for config in found)
    assert len({tuple(config.values()) for config in found}) == len(found)


@on_hopper
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "stride", "padding"),
    [
        ((2, 320, 32, 32), (640, 320, 3, 3), [1, 1], [1, 1]),
        ((2, 320, 33, 35), (168, 320, 3, 3), [1, 1], [1, 1]),
        ((3, 72, 17, 19), (328, 72, 3, 3), [1, 1], [1, 1]),
        ((2, 320, 32, 32), (320, 320, 3, 3), [2, 2], [1, 1]),
        ((1, 64, 5, 7), (64, 64, 3, 3), [1, 1], [0, 2]),
        ((1, 8, 3, 1, 1), (8, 8, 3, 1, 1), [1, 1, 1], [2, 1, 0]),
        ((2, 128, 5, 9, 10), (160, 128, 3, 1, 1), [1, 1, 1], [1, 0, 0]),
    ],
)
def test_convolutions_equal_torch(
    dtype: torch.dtype, x_shape: tuple[int, ...], weight_shape: tuple[int, ...], stride: list[int], padding: list[int]
) -> None:
    assert "cuda" not in packages.load()
    x, weight = (channels_last(*shape).to("cuda", dtype) for shape in (x_shape, weight_shape))
    bias = torch.randn(weight_shape[0], device="cuda", dtype=dtype)
    rest = ([1] * len(stride), False, [0] * len(stride), 1)
    exact = torch.convolution(x.double(), weight.double(), bias.double(), stride, padding, *rest)
    addend = channels_last(*exact.shape).to("cuda", dtype)
    assert convolution.takes_conv_add(x, weight, bias, addend, stride, padding, *rest, "none") is None
    for config in convolution.configs(x, weight, bias, stride, padding):
        alone = convolution.conv_act(x, weight, bias, stride, padding, *rest, "none", **config)
        torch.testing.assert_close(alone.double(), exact, rtol=1e-2, atol=2e-2 * float(exact.std()))
        added = convolution.conv_add(x, weight, bias, addend, stride, padding, *rest, "none", **config)
        torch.testing.assert_close(added.double(), exact + addend.double(), rtol=1e-2, atol=2e-2 * float(exact.std()))


@on_hopper
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("m", "k", "n"), [(64, 8, 8), (100, 72, 136), (513, 320, 168), (2048, 1280, 1280)])
def test_linear_layers_equal_torch(dtype: torch.dtype, m: int, k: int, n: int) -> None:
    assert "cuda" not in packages.load()
    x, weight, bias, residual = (torch.randn(s, device="cuda", dtype=dtype) for s in ((m, k), (n, k), (n,), (m, n)))
    weight *= k**-0.5
    exact = F.linear(x.double(), weight.double(), bias.double())
    bound = 4e-3 if dtype == torch.float16 else 3e-2
    for config in product.linear_configs(x, weight):
        alone = product.linear_act(x, weight, bias, "none", **config)
        torch.testing.assert_close(alone.double(), exact, rtol=bound, atol=bound)
        added = product.linear_add(x, weight, bias, residual, **config)
        torch.testing.assert_close(added.double(), exact + residual.double(), rtol=bound, atol=bound)


@on_hopper
@pytest.mark.parametrize(("m", "k", "n"), [(256, 128, 256), (100, 72, 136), (513, 320, 1280), (2048, 1280, 5120)])
def test_geglu_equals_torch(m: int, k: int, n: int) -> None:
    assert "cuda" not in packages.load()
    x, weight, bias = (torch.randn(s, device="cuda", dtype=torch.float16) for s in ((m, k), (2 * n, k), (2 * n,)))
    weight *= k**-0.5
    hidden, gate = F.linear(x.double(), weight.double(), bias.double()).chunk(2, -1)
    for config in product.geglu_configs(x):
        found = OPS["linear_geglu"].providers["cuda"].fn(x, weight, bias, **config)
        torch.testing.assert_close(found.double(), hidden * F.gelu(gate), rtol=4e-3, atol=4e-3)
