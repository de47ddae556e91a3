"""Triton's group norms against float64: both algorithms, memory orders, operands, extremes, fences of NaN."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from rewriter.ops import OPS, providers

planes_of = pytest.importorskip("rewriter.ops.triton.planes", exc_type=ImportError).planes_of

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = {torch.float32: 3e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
SUMS = ["add_group_norm", "add_group_norm_silu", "sum_group_norm_silu"]
# Tiles far smaller than anyone would want, so that small tensors take several of them, and loops turn.
LOOPED = {"algorithm": "split", "tile": 4, "width": 8, "parts": 2, "warps": 1}
SINGLE = {"algorithm": "split", "tile": 16, "width": 16, "parts": 3, "warps": 1}
WHOLE = {"algorithm": "whole", "held": 1, "warps": 1}
CONFIGS = [LOOPED, SINGLE, WHOLE]
NAMES = ["looped", "split", "whole"]


@pytest.fixture(autouse=True, scope="module")
def _loaded() -> None:
    assert "triton" not in providers.load()


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    """What torch.empty returns is NaN, so that an element nobody wrote shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def fenced(tensor: torch.Tensor) -> torch.Tensor:
    """The same values and strides on the test's device; all else in its storage, and 64 more at each end, is NaN."""
    reach = sum((extent - 1) * stride for extent, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    storage = torch.full((reach + 128,), math.nan, dtype=tensor.dtype, device=DEVICE)
    view = storage.as_strided(tensor.shape, tensor.stride(), 64)
    for index in range(tensor.shape[0] if tensor.stride(0) else 1):
        view[index].copy_(tensor[index])
    return view


def laid_out(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """The values [N, C, ...] in another memory order."""
    if layout == "channels_last":
        return tensor.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "frames":
        return tensor.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "channels_last_frames":
        return laid_out(tensor.transpose(1, 2).flatten(0, 1), "channels_last").unflatten(
            0, (tensor.shape[0], tensor.shape[2])
        ).transpose(1, 2)  # fmt: skip
    if layout == "sliced":
        return torch.nn.functional.pad(tensor, (1, 2))[..., 1:-2]
    if layout == "sliced_channels":
        wide = torch.cat([tensor, tensor, tensor], 1)
        return laid_out(wide, "channels_last")[:, tensor.shape[1] : 2 * tensor.shape[1]]
    if layout == "transposed":
        return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "swapped":
        return tensor.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "reversed":
        return tensor.transpose(1, -1).contiguous().transpose(1, -1)
    assert layout == "contiguous"
    return tensor


def draw(*shape: int, seed: int = 0, mean: float = 0.25, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + len(shape))
    return (torch.randn(shape, generator=generator, dtype=torch.float64) + mean).to(dtype)


def affine(channels: int, dtype: torch.dtype = torch.float16) -> tuple[torch.Tensor, torch.Tensor]:
    return fenced(draw(channels, seed=1, dtype=dtype)), fenced(draw(channels, seed=2, dtype=dtype))


def results(value: Any) -> list[torch.Tensor]:
    return list(value) if isinstance(value, tuple) else [value]


def doubled(arguments: Sequence[Any]) -> list[Any]:
    return [each.double() if isinstance(each, torch.Tensor) else each for each in arguments]


def check(name: str, arguments: tuple[Any, ...], config: dict[str, Any] | None = None) -> None:
    """Runs the provider and compares with the reference: dtype, shape and strides with its own, values in float64."""
    op = OPS[name]
    provider = op.providers["triton"]
    assert provider.supports(*arguments) is None
    before = [each.clone() if isinstance(each, torch.Tensor) else each for each in arguments]
    found = results(provider.fn(*arguments, **(config or {})))
    expected = results(op.reference(*arguments))
    exact = results(op.reference(*doubled(arguments)))
    for one, other, wanted in zip(found, expected, exact, strict=True):
        assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
        assert torch.equal(one.isnan(), wanted.isnan()), f"{name} {config}: NaN in other places"
        assert torch.equal(one[wanted.isinf()].double(), wanted[wanted.isinf()])
        known = wanted.isfinite()
        error = (one.double() - wanted)[known].norm() / wanted[known].norm().clamp(min=1e-30)
        assert error < TOLERANCE[one.dtype], f"{name} {config}: relative error {error:.1e}"
        worst = (one.double() - wanted)[known].abs().max() / wanted[known].abs().max()
        assert worst < 2 * TOLERANCE[one.dtype], f"{name} {config}: an element is off by {worst:.1e}"
    for argument, kept in zip(arguments, before, strict=True):
        if isinstance(argument, torch.Tensor):
            assert torch.equal(argument.nan_to_num(7.0), kept.nan_to_num(7.0)), "an argument is written"


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "sliced_channels"])
def test_plain(layout: str, dtype: torch.dtype, config: dict[str, Any]) -> None:
    x = fenced(laid_out(draw(2, 15, 5, 3, dtype=dtype), layout))
    check("group_norm", (x, 3, *affine(15, dtype), 1e-5), config)


@pytest.mark.parametrize("config", [None, SINGLE])
def test_channels_that_no_power_of_two_divides(config: dict[str, Any] | None) -> None:
    for layout in ("contiguous", "channels_last"):
        x = fenced(laid_out(draw(1, 63, 5, 7), layout))
        check("group_norm_silu", (x, 9, *affine(63), 1e-5), config)


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((2, 12), "contiguous"),
        ((2, 12, 11), "contiguous"),
        ((2, 12, 11), "channels_last"),
        ((2, 12, 5, 6), "transposed"),
        ((1, 12, 5, 6), "reversed"),
        ((2, 12, 2, 3, 5), "contiguous"),
        ((2, 12, 2, 3, 5), "channels_last"),
        ((2, 12, 2, 3, 5), "frames"),
        ((2, 12, 2, 3, 5), "channels_last_frames"),
        ((2, 12, 2, 3, 5), "sliced"),
        ((1, 12, 1, 1, 1), "contiguous"),
    ],
)
def test_ranks_and_orders(shape: tuple[int, ...], layout: str, config: dict[str, Any]) -> None:
    x = fenced(laid_out(draw(*shape), layout))
    check("group_norm_silu", (x, 3, *affine(12), 1e-5), config)
    check("add_group_norm", (x, affine(12)[0], fenced(draw(*shape, seed=5)), 3, None, None, 1e-5), config)


ADDENDS = {
    "bias": None,
    "time": lambda shape: draw(*shape[:2], *[1] * (len(shape) - 2), seed=3),
    "one-row": lambda shape: draw(1, shape[1], *[1] * (len(shape) - 2), seed=3),
    "residual": lambda shape: draw(*shape, seed=3),
    "residual-channels-last": lambda shape: laid_out(draw(*shape, seed=3), "channels_last"),
    "frame": lambda shape: laid_out(draw(*shape[:3], *[1] * (len(shape) - 3), seed=3), "frames"),
    "column": lambda shape: draw(shape[-1], seed=3),
}


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "frames"])
@pytest.mark.parametrize("addend", ADDENDS)
def test_sums(addend: str, layout: str, config: dict[str, Any]) -> None:
    shape = (2, 10, 3, 4, 5) if layout == "frames" else (2, 10, 6, 5)
    x = fenced(laid_out(draw(*shape), layout))
    make = ADDENDS[addend]
    added = None if make is None else fenced(make(shape))
    for name in SUMS[1:]:
        check(name, (x, None if addend == "column" else affine(10)[0], added, 5, *affine(10), 1e-5), config)


@pytest.mark.parametrize("name", SUMS)
def test_x_broadcasts_too(name: str) -> None:
    check(name, (fenced(draw(1, 10, 5, 1)), None, fenced(draw(2, 10, 5, 6)), 5, *affine(10), 1e-5))


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
def test_dtypes_mix_as_they_promote(config: dict[str, Any]) -> None:
    f16, bf16, f32 = (fenced(draw(2, 8, 3, 5, dtype=dtype)) for dtype in (torch.float16, torch.bfloat16, torch.float32))
    check("group_norm_silu", (f16, 2, *affine(8, torch.float32), 1e-5), config)
    check("add_group_norm_silu", (f16, affine(8)[0], bf16, 2, *affine(8), 1e-5), config)
    check("sum_group_norm_silu", (f16, None, f32, 2, *affine(8, torch.bfloat16), 1e-5), config)


@pytest.mark.parametrize("config", [None, *CONFIGS], ids=str)
def test_weight_and_bias_are_optional_and_may_be_strided(config: dict[str, Any] | None) -> None:
    x = fenced(draw(2, 12, 3, 5))
    weight, bias = affine(12)
    strided = fenced(draw(12, 2))[:, 0]
    for given in ((None, None), (weight, None), (None, bias), (strided, strided)):
        check("group_norm", (x, 3, *given, 1e-6), config)


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_large_mean_costs_no_variance(layout: str, config: dict[str, Any]) -> None:
    # E[x^2] - E[x]^2 in f32 would be off by some per cent. The oracle shares the rounding of the input.
    x = fenced(laid_out(draw(1, 8, 16, 16, mean=1000.0, dtype=torch.float32), layout))
    exact = OPS["group_norm"].reference(x.double(), 2, None, None, 1e-5)
    found = OPS["group_norm"].providers["triton"].fn(x, 2, None, None, 1e-5, **config)
    assert (found - exact).norm() / exact.norm() < 5e-4
    x = fenced(laid_out(draw(1, 8, 16, 16, mean=100.0), layout))
    check("group_norm", (x, 2, None, None, 1e-5), config)


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_nan_and_infinity_stay_in_their_group(value: float, config: dict[str, Any]) -> None:
    x = draw(2, 12, 3, 5)
    x[1, 5, 2, 3] = value
    for layout in ("contiguous", "channels_last"):
        x = fenced(laid_out(x, layout))
        check("group_norm_silu", (x, 3, *affine(12), 1e-5), config)
        addend = fenced(draw(2, 12, 1, 1))
        addend[0, 0] = value
        check("add_group_norm_silu", (x, None, addend, 3, *affine(12), 1e-5), config)


@pytest.mark.parametrize("config", [LOOPED, WHOLE], ids=["looped", "whole"])
def test_groups_of_one_element_are_the_bias(config: dict[str, Any]) -> None:
    weight, bias = affine(6)
    x = fenced(draw(3, 6, 1, 1))
    found = OPS["group_norm"].providers["triton"].fn(x, 6, weight, bias, 1e-5, **config)
    assert torch.equal(found, bias.view(1, 6, 1, 1).expand(3, 6, 1, 1))


@pytest.mark.parametrize("held", [1, 2, 4])
def test_programs_may_hold_several_groups(held: int) -> None:
    config = {"algorithm": "whole", "held": held, "warps": 2}
    for channels, frames in ((24, 1), (40, 3)):
        x = fenced(laid_out(draw(2, channels, frames, 4, 3), "frames" if frames > 1 else "channels_last"))
        check("sum_group_norm_silu", (x, affine(channels)[0], None, 8, *affine(channels), 1e-5), config)


def test_every_config_of_a_real_shape_is_right() -> None:
    x = fenced(laid_out(draw(2, 320, 8, 8), "channels_last"))
    arguments = (x, affine(320)[0], fenced(draw(2, 320, 1, 1)), 32, *affine(320), 1e-5)
    configs = OPS["sum_group_norm_silu"].providers["triton"].configs(*arguments)
    assert {config["algorithm"] for config in configs} == {"whole", "split"}
    assert len({str(config) for config in configs}) == len(configs) <= 8
    for config in configs:
        check("sum_group_norm_silu", arguments, dict(config))


@pytest.mark.parametrize(
    ("shape", "groups", "weights", "reason"),
    [
        ((2, 4, 3, 3), 3, 4, "4 channels do not make 3 groups"),
        ((2, 4, 3, 3), 0, 4, "4 channels do not make 0 groups"),
        ((0, 4, 3, 3), 2, 4, "with elements"),
        ((2, 4, 3, 3), 2, 3, "weight and bias: expected [4]"),
        ((4,), 2, 4, "expected [N, C, ...]"),
    ],
)
def test_refusals_say_why(shape: tuple[int, ...], groups: int, weights: int, reason: str) -> None:
    x, weight = torch.ones(shape, device=DEVICE), torch.ones(weights, device=DEVICE)
    found = OPS["group_norm"].providers["triton"].supports(x, groups, weight, None, 1e-5)
    assert found is not None
    assert reason in found


@pytest.mark.parametrize(
    ("shape", "layout", "expected"),
    [
        ((2, 12, 5, 6), "contiguous", (1, 30)),
        ((2, 12, 5, 6), "sliced", (5, 6)),
        ((2, 12, 3, 4, 5), "channels_last", (1, 60)),
        ((2, 12, 3, 4, 5), "frames", (3, 20)),
        ((2, 12, 3, 4, 5), "channels_last_frames", (1, 60)),
        ((2, 12, 3, 4, 5), "swapped", None),
        ((2, 2, 100, 3), "transposed", None),
        ((2, 12), "contiguous", (1, 1)),
    ],
)
def test_spatial_dimensions_merge_where_memory_lets_them(
    shape: tuple[int, ...], layout: str, expected: tuple[int, int] | None
) -> None:
    planes = planes_of([laid_out(draw(*shape), layout)])
    assert (None if planes is None else (planes.frames, planes.places)) == expected


def test_operands_in_orders_that_no_two_strides_describe_are_copied() -> None:
    x = fenced(laid_out(draw(1, 12, 3, 4, 5), "swapped"))
    assert planes_of([x]) is None
    for name in SUMS:
        check(name, (x, affine(12)[0], fenced(draw(1, 12, 3, 4, 5, seed=4)), 3, *affine(12), 1e-5))
