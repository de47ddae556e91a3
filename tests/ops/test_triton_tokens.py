"""The Triton kernels over tokens against their references in float64, in the interpreter."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from rewriter.ops import OPS, dispatch, providers
from rewriter.ops.triton import device

pytestmark = pytest.mark.skipif(not device.INTERPRETED, reason="needs Triton's interpreter (TRITON_INTERPRET=1)")

# Relative L2 error. The interpreter drops the low bits of bf16 instead of rounding.
_ERROR = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 6e-3}
_LAYOUTS = ("contiguous", "sliced", "offset", "expanded", "permuted")
Draw = Callable[..., torch.Tensor]


def _laid_out(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """The same values in another memory order, with NaN in whatever memory lies between and around them."""
    fence = torch.nan
    if layout == "sliced" and tensor.dim() > 1:
        wide = tensor.new_full((*tensor.shape[:-2], tensor.shape[-2] + 2, tensor.shape[-1] + 3), fence)
        wide[..., 1:-1, 1:-2] = tensor
        return wide[..., 1:-1, 1:-2]
    if layout == "expanded" and tensor.dim() > 1 and tensor.shape[0] > 1:
        return tensor[:1].expand(tensor.shape)
    if layout == "permuted" and tensor.dim() > 2:
        return tensor.transpose(1, -1).contiguous().transpose(1, -1)
    around = tensor.new_full((tensor.numel() + 17,), fence)
    start = 9 if layout == "offset" else 8
    around[start : start + tensor.numel()] = tensor.flatten()
    return around[start : start + tensor.numel()].view(tensor.shape)


def _drawer(dtype: torch.dtype, layout: str = "contiguous", mean: float = 0.25) -> Draw:
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int, dtype: torch.dtype = dtype, layout: str = layout) -> torch.Tensor:
        return _laid_out((torch.randn(shape, generator=generator) + mean).to(dtype), layout)

    return draw


def _affine(d: Draw, c: int) -> tuple[Any, ...]:
    return [c], d(c), d(c), 1e-5


def _tables(d: Draw, s: int, c: int) -> tuple[torch.Tensor, torch.Tensor]:
    return d(1, s, 1, c, dtype=torch.float32), d(s, 1, c, dtype=torch.float32)


_CALLS: dict[str, tuple[str, Callable[[Draw], tuple[Any, ...]]]] = {
    "layer_norm 63": ("layer_norm", lambda d: (d(2, 5, 63), *_affine(d, 63))),
    "layer_norm 1": ("layer_norm", lambda d: (d(2, 5, 1), *_affine(d, 1))),
    "layer_norm 3072": ("layer_norm", lambda d: (d(1, 3, 3072), [3072], None, None, 1e-6)),
    "layer_norm rank 1": ("layer_norm", lambda d: (d(17), *_affine(d, 17))),
    "layer_norm rank 4": ("layer_norm", lambda d: (d(2, 3, 5, 16), *_affine(d, 16))),
    "layer_norm weight only": ("layer_norm", lambda d: (d(3, 33), [33], d(33), None, 1e-5)),
    "layer_norm f32 weight": ("layer_norm", lambda d: (d(3, 33), [33], d(33, dtype=torch.float32), None, 1e-5)),
    "add_layer_norm 63": ("add_layer_norm", lambda d: (d(2, 5, 63), d(2, 5, 63), *_affine(d, 63))),
    "add_layer_norm row": ("add_layer_norm", lambda d: (d(2, 5, 320), d(2, 1, 320), *_affine(d, 320))),
    "add_layer_norm outer": ("add_layer_norm", lambda d: (d(1, 5, 9), d(2, 1, 9), [9], None, None, 1e-5)),
    "add_layer_norm stretched": ("add_layer_norm", lambda d: (d(2, 5, 1), d(9), *_affine(d, 9))),
    "add_layer_norm wider": (
        "add_layer_norm",
        lambda d: (d(2, 5, 33), d(2, 5, 33, dtype=torch.float32), *_affine(d, 33)),
    ),
    "token_cat 8": ("token_cat", lambda d: (d(2, 5, 3, 8), d(2, 9, 3, 8))),
    "token_cat odd": ("token_cat", lambda d: (d(1, 1, 2, 33), d(1, 300, 2, 33))),
    "layer_norm_modulate 63": (
        "layer_norm_modulate",
        lambda d: (d(2, 5, 63), *_affine(d, 63), d(2, 1, 63), d(2, 1, 63)),
    ),
    "layer_norm_modulate shared": (
        "layer_norm_modulate",
        lambda d: (d(1, 5, 64), [64], None, None, 1e-6, d(1, 1, 64), d(1, 1, 64)),
    ),
    "layer_norm_modulate numbers": (
        "layer_norm_modulate",
        lambda d: (d(3, 5, 64), [64], None, None, 1e-6, d(3, 1, 1), d(1, 5, 1)),
    ),
    "layer_norm_modulate tokens": (
        "layer_norm_modulate",
        lambda d: (d(2, 5, 63), [63], None, None, 1e-6, d(2, 5, 63), d(63)),
    ),
    "gate_add_layer_norm_modulate 63": (
        "gate_add_layer_norm_modulate",
        lambda d: (d(2, 5, 63), d(2, 1, 63), d(2, 5, 63), *_affine(d, 63), d(2, 1, 63), d(2, 1, 63)),
    ),
    "gate_add_layer_norm_modulate shared": (
        "gate_add_layer_norm_modulate",
        lambda d: (d(1, 3, 72), d(1, 1, 72), d(1, 3, 72), [72], None, None, 1e-6, d(1, 1, 72), d(1, 1, 72)),
    ),
    "rms_norm 63": ("rms_norm", lambda d: (d(2, 5, 63), [63], d(63), 1e-5)),
    "rms_norm heads": ("rms_norm", lambda d: (d(2, 5, 3, 128), [128], None, 1e-6)),
    "add_row 63": ("add_row", lambda d: (d(2, 5, 63), d(2, 1, 63))),
    "add_row 3072": ("add_row", lambda d: (d(1, 3, 3072), d(1, 1, 3072))),
    "add_row promoted": ("add_row", lambda d: (d(3, 4, 8), d(3, 1, 8, dtype=torch.float32))),
    "gate_add row": ("gate_add", lambda d: (d(2, 5, 63), d(2, 1, 63), d(2, 5, 63))),
    "gate_add outer": ("gate_add", lambda d: (d(9), d(2, 1, 9), d(1, 5, 1))),
    "gate_add 3072": ("gate_add", lambda d: (d(1, 3, 3072), d(1, 1, 3072), d(1, 3, 3072))),
    "gate_add wider": ("gate_add", lambda d: (d(2, 5, 7), d(2, 1, 7, dtype=torch.float32), d(2, 5, 7))),
    "quick_gelu 63": ("quick_gelu", lambda d: (d(2, 5, 63),)),
    "quick_gelu 1": ("quick_gelu", lambda d: (d(1),)),
    "blend frames": ("blend", lambda d: (d(6, 5, 9), d(6, 5, 9), d(6, 1, 1))),
    "blend rank 5": ("blend", lambda d: (d(2, 4, 3, 5, 7), d(2, 4, 3, 5, 7), d(2, 1, 3, 1, 1))),
    "blend_reshaped frames": (
        "blend_reshaped",
        lambda d: (d(6, 5, 9), d(2, 5, 3, 9).transpose(1, 2), [6, 5, 9], d(6, 1, 1)),
    ),
    "rope 18": ("rope", lambda d: (d(2, 5, 3, 18), *_tables(d, 5, 18))),
    "rope 2": ("rope", lambda d: (d(1, 7, 1, 2), *_tables(d, 7, 2))),
    "rms_norm_rope 128": ("rms_norm_rope", lambda d: (d(1, 5, 24, 128), d(128), 1e-6, *_tables(d, 5, 128))),
    "rms_norm_rope 18": ("rms_norm_rope", lambda d: (d(2, 5, 3, 18), None, 1e-5, *_tables(d, 5, 18))),
    "rms_norm_rope_joint 64": (
        "rms_norm_rope_joint",
        lambda d: (d(2, 3, 5, 64), d(64), 1e-6, d(2, 4, 5, 64), d(64), 1e-5, *_tables(d, 7, 64)),
    ),
    "linear_geglu 33": ("linear_geglu", lambda d: (d(2, 5, 33), d(34, 33), d(34))),
    "linear_geglu plain": ("linear_geglu", lambda d: (d(3, 8), d(2, 8), None)),
    "linear_act_cat gelu_tanh": ("linear_act_cat", lambda d: (d(2, 5, 9), d(2, 5, 33), d(17, 33), d(17), "gelu_tanh")),
    "linear_act_cat quick_gelu": ("linear_act_cat", lambda d: (d(2, 5, 8), d(2, 5, 16), d(8, 16), None, "quick_gelu")),
    "linear_act_cat none": ("linear_act_cat", lambda d: (d(3, 1), d(3, 4), d(1, 4), d(1), "none")),
}
# Sliced operands of rank 5 that also broadcast step through more dimensions than the kernel has.
_REFUSED = {("blend rank 5", "sliced")}


# Where the interpreter computes with infinities, NumPy warns.
_quiet = functools.partial(np.errstate, all="ignore")


def _provider(op: str) -> str:
    providers.load()
    return "triton" if op not in ("linear_geglu", "linear_act_cat") else "gemm+triton"


def _run(op: str, arguments: tuple[Any, ...], config: dict[str, Any] | None = None) -> list[torch.Tensor]:
    """The provider's results, in memory that held NaN before."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        with dispatch.forced(op, _provider(op), config), dispatch.counted() as counts, torch.no_grad(), _quiet():
            result = getattr(torch.ops.rewriter, op)(*arguments)
    finally:
        torch.use_deterministic_algorithms(before)
    assert counts[op, _provider(op)] == 1, OPS[op].providers[_provider(op)].supports(*arguments)
    return list(result) if isinstance(result, tuple) else [result]


def _exact(op: str, arguments: tuple[Any, ...]) -> list[torch.Tensor]:
    wide = [each.double() if isinstance(each, torch.Tensor) else each for each in arguments]
    result = OPS[op].reference(*wide)
    return list(result) if isinstance(result, tuple) else [result]


def _check(op: str, arguments: tuple[Any, ...], dtype: torch.dtype, config: dict[str, Any] | None = None) -> None:
    found = _run(op, arguments, config)
    plain = OPS[op].reference(*arguments)
    plain = list(plain) if isinstance(plain, tuple) else [plain]
    for one, exact, like in zip(found, _exact(op, arguments), plain, strict=True):
        assert (one.shape, one.dtype) == (like.shape, like.dtype)
        strides = [each.stride() for each in (one, like)]
        assert [s for s, n in zip(strides[0], one.shape, strict=True) if n > 1] == [
            s for s, n in zip(strides[1], one.shape, strict=True) if n > 1
        ]
        error = (one.double() - exact).norm() / exact.norm().clamp_min(1e-12)
        assert error < _ERROR[dtype], f"relative error {error:.1e}"


@pytest.mark.parametrize("layout", _LAYOUTS)
@pytest.mark.parametrize("name", _CALLS)
def test_agrees_with_the_reference_in_every_layout(name: str, layout: str) -> None:
    op, make = _CALLS[name]
    arguments = make(_drawer(torch.float16, layout))
    if (name, layout) in _REFUSED:
        assert OPS[op].providers[_provider(op)].supports(*arguments) == "strides that need more than four dimensions"
    else:
        _check(op, arguments, torch.float16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", _CALLS)
def test_agrees_with_the_reference_in_every_dtype(name: str, dtype: torch.dtype) -> None:
    op, make = _CALLS[name]
    _check(op, make(_drawer(dtype)), dtype)


@pytest.mark.parametrize("name", _CALLS)
def test_every_config_gives_the_result(name: str) -> None:
    op, make = _CALLS[name]
    arguments = make(_drawer(torch.float16))
    configs = OPS[op].providers[_provider(op)].configs(*arguments)
    assert 1 <= len(configs) <= 6
    for config in configs:
        _check(op, arguments, torch.float16, dict(config))


@pytest.mark.parametrize("name", [name for name, (op, _) in _CALLS.items() if "norm" in op])
def test_a_large_mean_leaves_the_variance_as_it_is(name: str) -> None:
    op, make = _CALLS[name]
    arguments = make(_drawer(torch.float32, mean=1000.0))
    # Weights of a norm over rows of one value decide alone, and its rounding is relative to a result of nearly 0.
    for one, exact in zip(_run(op, arguments), _exact(op, arguments), strict=True):
        assert (one.double() - exact).norm() < 2e-4 * exact.norm().clamp_min(1.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("name", _CALLS)
def test_nan_and_infinity_go_where_the_reference_puts_them(name: str, value: float) -> None:
    op, make = _CALLS[name]
    if "large" in name or "cat none" in name:
        return
    arguments = make(_drawer(torch.float32))
    arguments[0].view(-1)[-1] = value
    plain = OPS[op].reference(*arguments)
    for one, like in zip(_run(op, arguments), list(plain) if isinstance(plain, tuple) else [plain], strict=True):
        assert torch.equal(one.isnan(), like.isnan())
        assert torch.equal(one.isinf(), like.isinf())


@pytest.mark.parametrize("name", _CALLS)
def test_takes_no_tokens(name: str) -> None:
    op, make = _CALLS[name]
    calls = make(_drawer(torch.float16))
    tokens = {each.shape[:-1] for each in calls if isinstance(each, torch.Tensor) and each.dim() > 2}
    if not tokens or op.startswith(("rope", "rms_norm_rope", "blend")) or "outer" in name:
        return
    first = calls[0].shape[0]
    arguments = tuple(
        each[:0] if isinstance(each, torch.Tensor) and each.dim() > 2 and each.shape[0] == first else each
        for each in calls
    )
    for one, exact in zip(_run(op, arguments), _exact(op, arguments), strict=True):
        assert one.shape == exact.shape


def test_refuses_what_it_cannot_do() -> None:
    providers.load()
    x = torch.ones(2, 3, 8, dtype=torch.float16)

    def reason(op: str, *arguments: Any) -> str | None:
        return OPS[op].providers[_provider(op)].supports(*arguments)

    assert reason("layer_norm", x.double(), [8], None, None, 1e-5) == "no kernel for float64"
    assert reason("layer_norm", x, [3, 8], None, None, 1e-5) == "a norm over other than the last dimension"
    assert reason("layer_norm", x, [7], None, None, 1e-5) == "rows of another length"
    assert reason("layer_norm", x, [8], x[0, 0, :4], None, 1e-5) == "weights of another shape than the rows"
    assert reason("layer_norm", torch.ones(1, 20000), [20000], None, None, 1e-5) == "rows of more than 16,384 elements"
    assert reason("layer_norm_modulate", x[..., :1], [1], None, None, 1e-5, x, x) == (
        "rows that the modulation makes longer"
    )
    assert reason("rms_norm", x, [8], None, None) == "no eps"
    head = torch.ones(2, 3, 4, 8)
    assert reason("rope", head, head, head) == "cosines of each head's own"
    assert reason("rope", head, head[..., :3], head) == "cosines that do not broadcast to the queries"
    assert reason("rope", x, x, x) == "other than [B, S, H, D] with an even D of at most 1,024"
    assert reason("linear_act_cat", x, x, x[0], None, "silu") == "no kernel for silu"
    assert reason("linear_geglu", x, torch.ones(3, 8, dtype=x.dtype), None) == "a weight without two halves"
