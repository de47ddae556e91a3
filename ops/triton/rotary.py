"""RMS norm and rotary embedding of queries and keys: one program takes some heads of one token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from rewriter.ops.registry import provide
from rewriter.ops.triton.overlap import overlapping, wait_for_earlier
from rewriter.ops.triton.rows import LARGEST, Optional, refusal

_LONGEST = 1024


@triton.jit
def _kernel(  # type: ignore[no-untyped-def]
    out, x, weight, cos, sin,
    tokens, heads, columns, eps,
    out0, out1,
    x0, x1, x2, x3,
    cos0, cos1, cos3,
    sin0, sin1, sin3,
    weight_step,
    NORM: tl.constexpr, WEIGHT: tl.constexpr, OVERLAP: tl.constexpr, HEADS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(heads, HEADS)
    place = tl.program_id(0) // blocks
    batch = (place // tokens).to(tl.int64)
    token = (place % tokens).to(tl.int64)
    head = ((tl.program_id(0) % blocks) * HEADS + tl.arange(0, HEADS))[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    known = column < columns
    inside = (head < heads) & known
    wait_for_earlier(OVERLAP)
    v = tl.load(x + batch * x0 + token * x1 + (head.to(tl.int64) * x2 + column * x3), mask=inside, other=0.0)
    v = v.to(tl.float32)
    if NORM:
        deviation = tl.rsqrt(tl.sum(v * v, axis=1) / columns + eps)
        v = v * deviation[:, None]
        if WEIGHT:
            v = v * tl.load(weight + column * weight_step, mask=known, other=0.0).to(tl.float32)
    c = tl.load(cos + batch * cos0 + token * cos1 + column * cos3, mask=known, other=0.0).to(tl.float32)
    s = tl.load(sin + batch * sin0 + token * sin1 + column * sin3, mask=known, other=0.0).to(tl.float32)
    even, odd = tl.split(tl.reshape(v, (HEADS, COLUMNS // 2, 2)))
    even_cos, odd_cos = tl.split(tl.reshape(c, (1, COLUMNS // 2, 2)))
    even_sin, odd_sin = tl.split(tl.reshape(s, (1, COLUMNS // 2, 2)))
    turned = tl.join(even * even_cos - odd * even_sin, odd * odd_cos + even * odd_sin)
    z = tl.reshape(turned, (HEADS, COLUMNS)).to(out.dtype.element_ty)
    tl.store(out + batch * out0 + token * out1 + (head.to(tl.int64) * columns + column), z, mask=inside)


def _turn(
    out: torch.Tensor, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, weight: Optional, eps: float | None,
    *, heads: int = 0, num_warps: int = 4,
) -> None:  # fmt: skip
    """Fills out: [B, S, H, D], of which only the last two dimensions need to be dense. `eps` None: no norm."""
    if not x.numel():
        return
    batch, tokens, count, columns = x.shape
    block = heads or _configs(x)[0]["heads"]
    cos, sin = cos.expand(x.shape), sin.expand(x.shape)
    _kernel[(batch * tokens * triton.cdiv(count, block),)](
        out, x, x if weight is None else weight, cos, sin,
        tokens, count, columns, 0.0 if eps is None else eps,
        out.stride(0), out.stride(1), *x.stride(),
        cos.stride(0), cos.stride(1), cos.stride(3), sin.stride(0), sin.stride(1), sin.stride(3),
        0 if weight is None else weight.stride(0),
        NORM=eps is not None, WEIGHT=weight is not None, **overlapping(x.device), HEADS=block,
        COLUMNS=triton.next_power_of_2(columns), num_warps=num_warps,
    )  # fmt: skip


def _rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, **config: Any) -> torch.Tensor:
    return _rms_norm_rope(x, None, None, cos, sin, **config)


def _rms_norm_rope(
    x: torch.Tensor, weight: Optional, eps: float | None, cos: torch.Tensor, sin: torch.Tensor, **config: Any
) -> torch.Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _turn(out, x, cos, sin, weight, eps, **config)
    return out


def _rms_norm_rope_joint(
    x: torch.Tensor, weight: Optional, eps: float, y: torch.Tensor, y_weight: Optional, y_eps: float,
    cos: torch.Tensor, sin: torch.Tensor, **config: Any,
) -> torch.Tensor:  # fmt: skip
    batch, first, heads, columns = x.shape
    out = x.new_empty((batch, first + y.shape[1], heads, columns))
    cos, sin = cos.expand(out.shape), sin.expand(out.shape)
    _turn(out[:, :first], x, cos[:, :first], sin[:, :first], weight, eps, **config)
    _turn(out[:, first:], y, cos[:, first:], sin[:, first:], y_weight, y_eps, **config)
    return out


def _configs(x: torch.Tensor, *_: Any) -> Sequence[Mapping[str, Any]]:
    heads, columns = triton.next_power_of_2(max(x.shape[2], 1)), triton.next_power_of_2(max(x.shape[3], 2))
    found = []
    for elements, warps in ((4096, 4), (1024, 2), (1024, 4), (2048, 4), (4096, 8)):
        config = {"heads": max(1, min(heads, elements // columns)), "num_warps": warps}
        if config not in found:
            found.append(config)
    return found


def _refuses(
    x: torch.Tensor, shape: Sequence[int], cos: torch.Tensor, sin: torch.Tensor, *weights: Optional
) -> str | None:
    reason = refusal(x, cos, sin, *weights)
    if reason is not None:
        return reason
    if x.dim() != 4 or x.shape[3] % 2 or not 0 < x.shape[3] <= _LONGEST:
        return f"other than [B, S, H, D] with an even D of at most {_LONGEST:,}"
    if any(each is not None and each.shape != x.shape[3:] for each in weights):
        return "weights of another shape than a head"
    for table in (cos, sin):
        if table.dim() > 4 or any(
            n not in (1, m) for n, m in zip(reversed(table.shape), reversed(shape), strict=False)
        ):
            return "cosines that do not broadcast to the queries"
        if table.expand(*shape).stride(2) and shape[2] > 1:
            return "cosines of each head's own"
    return "too many tokens" if shape[0] * shape[1] * shape[2] > LARGEST else None


def _supports_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> str | None:
    return _refuses(x, x.shape, cos, sin)


def _supports_one(x: torch.Tensor, weight: Optional, _: float, cos: torch.Tensor, sin: torch.Tensor) -> str | None:
    return _refuses(x, x.shape, cos, sin, weight)


def _supports_joint(
    x: torch.Tensor, weight: Optional, _: float, y: torch.Tensor, y_weight: Optional, __: float,
    cos: torch.Tensor, sin: torch.Tensor,
) -> str | None:  # fmt: skip
    if x.dtype != y.dtype or x.dim() != 4 or y.dim() != 4 or x.shape[:1] + x.shape[2:] != y.shape[:1] + y.shape[2:]:
        return "tokens of two kinds"
    shape = (x.shape[0], x.shape[1] + y.shape[1], *x.shape[2:])
    return refusal(x, y) or _refuses(x, shape, cos, sin, weight, y_weight)


provide("rope", "triton", _rope, _supports_rope, _configs)
provide("rms_norm_rope", "triton", _rms_norm_rope, _supports_one, _configs)
provide("rms_norm_rope_joint", "triton", _rms_norm_rope_joint, _supports_joint, _configs)
