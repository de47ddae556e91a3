"""Linear layers whose operands are kept in eight bits, with a scale for each row, and what makes such rows.

A row is the last dimension: a token's channels, or the weights of one output. Formats:

- `f8e4m3`: numbers with four bits of exponent and three of mantissa. The scale is a power of two that puts the row's
  largest magnitude between 128 and 256, so scaling rounds nothing, and each number is off by at most 1/16 of itself.
- `i8`: whole numbers from -127 to 127. The scale is the row's largest magnitude / 127, so each number is off by at
  most 1/254 of that magnitude.

Both are computed in f32, step by step as written here, so that every provider gives the same bits. A row that holds NaN
or Inf has the scale NaN, and so becomes NaN in each product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from rewriter.ops import layer_norm as norms
from rewriter.ops.activation import activate
from rewriter.ops.precision import widen
from rewriter.ops.registry import define

Optional = torch.Tensor | None
Rows = tuple[torch.Tensor, torch.Tensor]

FORMATS = {"f8e4m3": torch.float8_e4m3fn, "i8": torch.int8}
# A row whose largest magnitude is below this is quantised as if it were this.
SMALLEST = 2.0**-100
_MANTISSA_BITS = 23
# The exponent fields, as f32 has them, of a row's largest magnitude and of its scale: the former lies 2**7 above.
_BELOW = 7
_ONE_FIELD = 127


def quantise_rows(x: torch.Tensor, kind: str) -> Rows:
    """(codes, scales): x is about codes * scales.

    x: [..., K], f16|bf16|f32|f64 (taken as f32), any strides; kind: f8e4m3|i8. codes: x's shape, contiguous, in the
    format; scales: [..., 1], f32. Raises ValueError for an unknown format.
    """
    if kind not in FORMATS:
        raise ValueError(f"unknown format {kind!r}; expected one of {', '.join(FORMATS)}")
    wide = x.float()
    finite = wide.isfinite()
    kept = torch.where(finite, wide, 0.0)
    # A column of zeros, so that a row without elements has a largest one too.
    largest = F.pad(kept.abs(), (0, 1)).amax(-1, keepdim=True).clamp(min=SMALLEST)
    if kind == "i8":
        # Of two tensors: torch multiplies by the reciprocal where a number is divided.
        codes = (kept * (torch.full_like(largest, 127.0) / largest)).clamp(-127, 127).round()
        scales = largest * (1.0 / 127.0)
    else:
        factor, scales = power_of_two(largest)
        codes = kept * factor
    codes = codes.to(FORMATS[kind], memory_format=torch.contiguous_format)
    return codes, torch.where(finite.all(-1, keepdim=True), scales, torch.nan)


def power_of_two(largest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(factor, scale), inverse to each other, so that largest * factor lies between 128 and 256.

    largest: f32, at least SMALLEST.
    """
    field = largest.view(torch.int32) >> _MANTISSA_BITS
    factor = (2 * _ONE_FIELD + _BELOW - field) << _MANTISSA_BITS
    return factor.view(torch.float32), ((field - _BELOW) << _MANTISSA_BITS).view(torch.float32)


def quantised_linear(
    codes: torch.Tensor, scales: torch.Tensor, weight: torch.Tensor, weight_scales: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """(codes * scales) @ (weight * weight_scales).T + bias, summed in f32 (f64 where bias is that).

    codes: [..., K], scales: [..., 1], weight: [N, K], weight_scales: [N, 1] as `quantise_rows` makes them; bias: [N],
    f16|bf16|f32|f64. Result: [..., N] in bias's dtype.
    """
    dtype = torch.promote_types(bias.dtype, torch.float32)
    product = F.linear(codes.to(dtype), weight.to(dtype))
    return (product * scales.to(dtype) * weight_scales.to(dtype).squeeze(-1) + bias.to(dtype)).to(bias.dtype)


def quantised_linear_add(
    codes: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scales: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor,
) -> torch.Tensor:
    """quantised_linear(...) + residual; the sum broadcasts and promotes as `+` does."""
    return quantised_linear(codes, scales, weight, weight_scales, bias) + residual


def quantised_linear_geglu(
    codes: torch.Tensor, scales: torch.Tensor, weight: torch.Tensor, weight_scales: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """hidden * gelu(gate), rounded once, where hidden, gate are the two halves of quantised_linear(...)."""
    wide = torch.promote_types(bias.dtype, torch.float32)
    hidden, gate = quantised_linear(codes, scales, weight, weight_scales, bias.to(wide)).chunk(2, dim=-1)
    return (hidden * F.gelu(gate)).to(bias.dtype).contiguous()


def gated(x: torch.Tensor, activation: str, left: Optional) -> torch.Tensor:
    """[left, activation(x)] joined along the last dimension, computed in f32.

    x: [..., K], f16|bf16|f32|f64; activation: one of `linear_act`'s, or geglu: first half * gelu(second half), so K
    must be even. left: [..., M] in x's dtype or None. Result: contiguous, in x's dtype. Raises ValueError for an
    unknown activation.
    """
    if activation == "geglu":
        hidden, gate = widen(x).chunk(2, dim=-1)
        y = (hidden * F.gelu(gate)).to(x.dtype)
    else:
        y = activate(widen(x), activation).to(x.dtype)
    return (y if left is None else torch.cat([left, y], dim=-1)).contiguous()


def gated_quantised(x: torch.Tensor, activation: str, left: Optional, kind: str) -> Rows:
    """quantise_rows(gated(x, activation, left), kind)."""
    return quantise_rows(gated(x, activation, left), kind)


def _in_rows(norm: Callable[..., Any]) -> Callable[..., tuple[torch.Tensor, ...]]:
    """The norm as an op that takes a format as well, and gives (codes, scales) in place of its first result."""

    def quantised(*arguments: Any) -> tuple[torch.Tensor, ...]:
        *given, kind = arguments
        result = norm(*given)
        normed, *others = result if isinstance(result, tuple) else (result,)
        return (*quantise_rows(normed, kind), *others)

    quantised.__doc__ = f"{norm.__name__}(...) with its first result, y, as the two of quantise_rows(y, kind)."
    return quantised


_PRODUCT = "Tensor codes, Tensor scales, Tensor weight, Tensor weight_scales, Tensor bias"
_ROWS = "str kind) -> (Tensor, Tensor"
define(f"quantise_rows(Tensor x, {_ROWS})", quantise_rows)
define(f"quantised_linear({_PRODUCT}) -> Tensor", quantised_linear)
define(f"quantised_linear_add({_PRODUCT}, Tensor residual) -> Tensor", quantised_linear_add)
define(f"quantised_linear_geglu({_PRODUCT}) -> Tensor", quantised_linear_geglu)
define("gated(Tensor x, str activation, Tensor? left) -> Tensor", gated)
define(f"gated_quantised(Tensor x, str activation, Tensor? left, {_ROWS})", gated_quantised)
define(f"layer_norm_quantised({norms.PLAIN}, {_ROWS})", _in_rows(norms.layer_norm))
define(f"add_layer_norm_quantised({norms.RESIDUAL}, {_ROWS}, Tensor)", _in_rows(norms.add_layer_norm))
define(f"layer_norm_modulate_quantised({norms.MODULATED}, {_ROWS})", _in_rows(norms.layer_norm_modulate))
define(
    f"gate_add_layer_norm_modulate_quantised({norms.GATED}, {_ROWS}, Tensor)",
    _in_rows(norms.gate_add_layer_norm_modulate),
)
