"""Layer and RMS normalisation of tokens, with the residual before and the modulation after."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from rewriter.ops.precision import widen
from rewriter.ops.registry import define

Optional = torch.Tensor | None


def _normalised(x: torch.Tensor, shape: list[int], weight: Optional, bias: Optional, eps: float) -> torch.Tensor:
    return F.layer_norm(widen(x), shape, widen(weight), widen(bias), eps)


def layer_norm(x: torch.Tensor, shape: list[int], weight: Optional, bias: Optional, eps: float) -> torch.Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last len(shape) dimensions, in f32.

    x: [..., *shape], f16|bf16|f32|f64, any strides; weight, bias: shape or None. Result: x's shape and dtype,
    contiguous. Raises RuntimeError where x does not end in shape.
    """
    return _normalised(x, shape, weight, bias, eps).to(x.dtype)


def add_layer_norm(
    x: torch.Tensor, residual: torch.Tensor, shape: list[int], weight: Optional, bias: Optional, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(layer_norm(x + residual), x + residual); x and residual broadcast and promote as in `x + residual`."""
    total = x + residual
    return layer_norm(total, shape, weight, bias, eps), total


def layer_norm_modulate(
    x: torch.Tensor,
    shape: list[int],
    weight: Optional,
    bias: Optional,
    eps: float,
    scale: torch.Tensor,
    shift: torch.Tensor,
) -> torch.Tensor:
    """layer_norm(x) * (1 + scale) + shift in f32, the adaptive norm of diffusion transformers.

    scale, shift: any shapes that broadcast with x, mostly [N, 1, C]. Result: the broadcast shape, in the dtype that
    the three promote to, contiguous.
    """
    dtype = torch.promote_types(x.dtype, torch.promote_types(scale.dtype, shift.dtype))
    normed = _normalised(x, shape, weight, bias, eps)
    return (normed * (1 + widen(scale)) + widen(shift)).to(dtype).contiguous()


def rms_norm(x: torch.Tensor, shape: list[int], weight: Optional, eps: float | None) -> torch.Tensor:
    """x / sqrt(mean(x * x) + eps) * weight over the last len(shape) dimensions, accumulated in f32.

    x: [..., *shape], f16|bf16|f32|f64, any strides; weight: shape or None; eps None is torch's own default.
    Result: x's shape, in x's dtype, contiguous.
    """
    return F.rms_norm(x, shape, weight, eps).contiguous()


def gate_add(x: torch.Tensor, gate: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """x + gate * y in f32, the gated residual of diffusion transformers.

    The three broadcast and promote as in `x + gate * y`; gate is mostly [N, 1, C].
    """
    dtype = torch.promote_types(x.dtype, torch.promote_types(gate.dtype, y.dtype))
    return torch.addcmul(widen(x), widen(gate), widen(y)).to(dtype)


def gate_add_layer_norm_modulate(
    x: torch.Tensor,
    gate: torch.Tensor,
    y: torch.Tensor,
    shape: list[int],
    weight: Optional,
    bias: Optional,
    eps: float,
    scale: torch.Tensor,
    shift: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(layer_norm_modulate(total, ...), total) where total is gate_add(x, gate, y), the step between two blocks."""
    total = gate_add(x, gate, y)
    return layer_norm_modulate(total, shape, weight, bias, eps, scale, shift), total


# The arguments of the four that start from a layer norm; `low_precision` adds those of a format.
_AFFINE = "int[] shape, Tensor? weight, Tensor? bias, float eps"
_MODULATED = f"{_AFFINE}, Tensor scale, Tensor shift"
PLAIN = f"Tensor x, {_AFFINE}"
RESIDUAL = f"Tensor x, Tensor residual, {_AFFINE}"
MODULATED = f"Tensor x, {_MODULATED}"
GATED = f"Tensor x, Tensor gate, Tensor y, {_MODULATED}"
define(f"layer_norm({PLAIN}) -> Tensor", layer_norm)
define(f"add_layer_norm({RESIDUAL}) -> (Tensor, Tensor)", add_layer_norm)
define(f"layer_norm_modulate({MODULATED}) -> Tensor", layer_norm_modulate)
define(f"gate_add_layer_norm_modulate({GATED}) -> (Tensor, Tensor)", gate_add_layer_norm_modulate)
define("rms_norm(Tensor x, int[] shape, Tensor? weight, float? eps) -> Tensor", rms_norm)
define("gate_add(Tensor x, Tensor gate, Tensor y) -> Tensor", gate_add)
