"""Attention without a mask, with few keys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton

from rewriter.ops.attention import swapped
from rewriter.ops.precision import NARROW
from rewriter.ops.registry import Config, provide
from rewriter.ops.triton.attention_kernels import at_once, streamed
from rewriter.ops.triton.device import INTERPRETED, multiprocessors
from rewriter.ops.triton.overlap import overlapping
from rewriter.ops.triton.rows import LARGEST, Optional, refusal

_DEEPEST = 256
# Keys that one program holds at once.
_MOST_AT_ONCE = 128
# Beyond so many keys no config is worth timing.
_MOST_STREAMED = 512
# Elements of 16 bytes: the widest access.
_UNIT = 8
# Places inside a tile of up to 128 rows fit into 32 bits.
_WIDEST_STEP = 2**24
# Bytes of shared memory that a program may have on the smallest GPUs that have tensor cores for bf16.
_SHARED = 99 * 1024
# Scales whose products with log2(e), and with differences of scores, are normal numbers in f32.
_SCALES = (1e-30, 1e30)


def parts(size: int) -> tuple[int, int]:
    """Two powers of two, at least 16 or 0 for the second, that hold `size` together with the least padding."""
    whole = max(16, triton.next_power_of_2(size))
    first = whole // 2
    rest = max(16, triton.next_power_of_2(max(size - first, 1)))
    return (first, rest) if first >= 16 and first + rest < whole else (whole, 0)


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None,
    *, rows: int = 64, keys: int = 0, warps: int = 4, stages: int = 2, padded: bool = False,
) -> torch.Tensor:  # fmt: skip
    """softmax(q @ k.T * scale) @ v, operands as in `attention_tokens`. Result: [B, S, H, D], dense.

    A program takes `rows` queries of one head, and the keys in blocks of `keys`, with `stages` blocks in flight; all
    at once where `keys` is 0 and there are at most 128. padded: the values' columns are not split.
    """
    batch, tokens, heads, depth = q.shape
    count = k.shape[1]
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    steps = [_step(each, dim) for each in (q, k, v) for dim in (0, 1, 2)]
    unit = 1 if any(step % _UNIT for step in steps) else _UNIT
    first, rest = parts(depth)
    v_first, v_rest = (triton.next_power_of_2(depth), 0) if padded and rest else (first, rest)
    if keys == 0 and count > _MOST_AT_ONCE:
        keys = 64
    if keys:
        kernel, block = streamed, {"KEYS": keys, "WHOLE": count % keys == 0}
    else:
        held, more = parts(count)
        kernel, block = at_once, {"KEYS": held, "MORE": more}
    factor = (depth**-0.5 if scale is None else scale) * math.log2(math.e)
    with torch.cuda.device_of(q):
        kernel[(batch * heads * triton.cdiv(tokens, rows),)](
            out, q, k, v, tokens, count, heads, factor, *(step // unit for step in steps),
            UNIT=unit, WIDEN=INTERPRETED and q.dtype == torch.bfloat16, **overlapping(q.device),
            DEPTH=depth, FIRST=first, REST=rest, V_FIRST=v_first, V_REST=v_rest, ROWS=rows, **block,
            num_warps=warps, num_stages=stages,
        )  # fmt: skip
    return out


def _step(tensor: torch.Tensor, dim: int) -> int:
    """Elements from one index to the next; 0 where there is no next one."""
    return tensor.stride(dim) if tensor.shape[dim] > 1 else 0


def _attention_tokens(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    _mask: Optional,
    scale: float | None,
    _causal: bool,
    **config: Any,
) -> torch.Tensor:
    return _attend(q, k, v, scale, **config)


def _attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    _mask: Optional,
    scale: float | None,
    _causal: bool,
    **config: Any,
) -> torch.Tensor:
    return _attend(*swapped(q, k, v), scale, **config).transpose(1, 2)


def _refuses(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Optional, scale: float | None, causal: bool
) -> str | None:
    """`supports` of `attention_tokens`."""
    if mask is not None or causal:
        return "a mask"
    reason = refusal(q, k, v)
    if reason is not None:
        return reason
    if q.dtype not in NARROW or k.dtype != q.dtype or v.dtype != q.dtype:
        return "only f16 and bf16 have tensor cores that keep their precision"
    if q.dim() != 4 or k.dim() != 4 or k.shape != v.shape or (q.shape[0], *q.shape[2:]) != (k.shape[0], *k.shape[2:]):
        return "other than [B, S, H, D] with keys and values of one shape"
    if not (q.numel() and k.numel()) or q.shape[3] > _DEEPEST:
        return f"heads of other than 1 to {_DEEPEST} elements, or nothing to attend to"
    if any(each.stride(3) != 1 and each.shape[3] > 1 for each in (q, k, v)):
        return "heads whose elements do not lie side by side"
    if any(_step(each, 1) >= _WIDEST_STEP for each in (q, k, v)):
        return f"tokens that lie {_WIDEST_STEP:,} elements apart"
    if scale is not None and not _SCALES[0] < scale < _SCALES[1]:
        return f"a scale that is not between {_SCALES[0]} and {_SCALES[1]}"
    return "too many queries" if max(q.shape[0] * q.shape[1] * q.shape[2], k.shape[1]) > LARGEST else None


def _refuses_heads_first(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any) -> str | None:
    if any(each.dim() != 4 for each in (q, k, v)):
        return "other than [B, H, S, D]"
    return _refuses(*swapped(q, k, v), *rest)


def _sizes(rows: int, keys: int, warps: int, stages: int = 2, *, padded: bool = False) -> Config:
    """A config of `_attend`."""
    return {"rows": rows, "keys": keys, "warps": warps, "stages": stages, "padded": padded}


def _configs(q: torch.Tensor, k: torch.Tensor, *_: Any) -> Sequence[Config]:
    return [config for config in _promising(q, k) if _shared(config, k.shape[1], q.shape[3]) <= _SHARED]


def _shared(config: Config, count: int, depth: int) -> int:
    """Bytes for the queries, and for the keys and values in flight, at most."""
    held: int = config["stages"] * config["keys"] or sum(parts(count))
    columns = triton.next_power_of_2(depth) if config["padded"] else sum(parts(depth))
    rows: int = config["rows"]
    return 2 * columns * (rows + 2 * held)


def _promising(q: torch.Tensor, k: torch.Tensor) -> Sequence[Config]:
    """None for many keys, where cuDNN's kernels are ahead: by 9 % with 1,024 and 19 % with 4,096, on an H100."""
    batch, tokens, heads, depth = q.shape
    keys = k.shape[1]
    if keys > _MOST_AT_ONCE:
        return [_sizes(64, 32, 4, 3), _sizes(64, 64, 4)] if keys <= _MOST_STREAMED else []
    if tokens <= 32:
        rows = max(16, triton.next_power_of_2(tokens))
        return [_sizes(rows, 0, warps, 1) for warps in (1, 2)]
    if batch * heads * triton.cdiv(tokens, 64) < multiprocessors(q.device):
        return [_sizes(64, 0, 4, 1), _sizes(16, 0, 4, 1)]
    padded = [_sizes(128, 0, 4, 1, padded=True)] if parts(depth)[1] else []
    return [_sizes(128, 0, 8, 1), _sizes(128, 0, 4, 1), _sizes(64, 0, 4, 1), *padded]


def _configs_heads_first(q: torch.Tensor, k: torch.Tensor, *_: Any) -> Sequence[Config]:
    return _configs(q.transpose(1, 2), k.transpose(1, 2))


provide("attention", "triton", _attention, _refuses_heads_first, _configs_heads_first)
provide("attention_tokens", "triton", _attention_tokens, _refuses, _configs)
