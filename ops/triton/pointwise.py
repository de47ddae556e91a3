"""Elementwise kernels over up to three operands that broadcast: sums, the gated residual, GELUs, GEGLU, blending, and
copies beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from rewriter.ops.activation import quick_gelu
from rewriter.ops.blend import blend, blend_reshaped
from rewriter.ops.layer_norm import gate_add
from rewriter.ops.registry import provide
from rewriter.ops.single_key import add_row
from rewriter.ops.token_cat import token_cat
from rewriter.ops.triton.overlap import overlapping, wait_for_earlier
from rewriter.ops.triton.rows import LARGEST, blank, like, refusal, rows_in_order


@triton.jit
def _gelu(x):  # type: ignore[no-untyped-def]
    return 0.5 * x * (1.0 + tl.math.erf(x * 0.7071067811865476))


@triton.jit
def _gelu_tanh(x):  # type: ignore[no-untyped-def]
    # (1 + tanh(u)) / 2 is sigmoid(2 * u).
    return x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))


@triton.jit
def _kernel(  # type: ignore[no-untyped-def]
    out, a, b, c,
    rows, columns, n1, n2,
    out0, out1, out2, out3,
    a0, a1, a2, a3,
    b0, b1, b2, b3,
    c0, c1, c2, c3,
    FORMULA: tl.constexpr, ALIKE: tl.constexpr, OVERLAP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(columns, COLUMNS)
    row = (tl.program_id(0) // blocks) * ROWS + tl.arange(0, ROWS)
    column = ((tl.program_id(0) % blocks) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    inside = (row < rows)[:, None] & (column < columns)
    i2 = (row % n2).to(tl.int64)[:, None]
    i1 = ((row // n2) % n1).to(tl.int64)[:, None]
    i0 = (row // (n2 * n1)).to(tl.int64)[:, None]
    column = column.to(tl.int64)
    wait_for_earlier(OVERLAP)
    x = tl.load(a + (i0 * a0 + i1 * a1 + i2 * a2 + column * a3), mask=inside, other=0.0).to(tl.float32)
    if FORMULA != "quick_gelu" and FORMULA != "gelu_tanh" and FORMULA != "copy":
        y = tl.load(b + (i0 * b0 + i1 * b1 + i2 * b2 + column * b3), mask=inside, other=0.0).to(tl.float32)
    if FORMULA == "quick_gelu":
        z = x / (1.0 + tl.exp(-1.702 * x))
    elif FORMULA == "gelu_tanh":
        z = _gelu_tanh(x)
    elif FORMULA == "copy":
        z = x
    elif FORMULA == "add_row":
        z = x + y
    elif FORMULA == "geglu":
        z = x * _gelu(y)
    else:
        if ALIKE:
            w = tl.load(c + (i0 * c0 + i1 * c1 + i2 * c2), mask=(row < rows)[:, None], other=0.0).to(tl.float32)
        else:
            w = tl.load(c + (i0 * c0 + i1 * c1 + i2 * c2 + column * c3), mask=inside, other=0.0).to(tl.float32)
        z = x + y * w if FORMULA == "gate_add" else w * x + (1.0 - w) * y
    place = out + (i0 * out0 + i1 * out1 + i2 * out2 + column * out3)
    tl.store(place, z.to(out.dtype.element_ty), mask=inside)


def run(formula: str, out: torch.Tensor, *operands: torch.Tensor, rows: int, columns: int, num_warps: int) -> None:
    """Fills `out` with the formula of the operands, which broadcast to its shape."""
    space = rows_in_order(out, *operands)
    if space is None:
        raise ValueError(f"{formula}: found strides that need more than four dimensions, expected supports() to refuse")
    if not out.numel():
        return
    a, b, c = (*operands, *(out,) * (3 - len(operands)))
    steps = (*space.strides, *((0, 0, 0, 0),) * (3 - len(operands)))
    grid = (triton.cdiv(space.count, rows) * triton.cdiv(space.columns, columns),)
    _kernel[grid](
        out, a, b, c,
        space.count, space.columns, *space.extents[1:3],
        *(step for each in steps for step in each),
        FORMULA=formula, ALIKE=steps[3][3] == 0, **overlapping(out.device),
        ROWS=rows, COLUMNS=columns, num_warps=num_warps,
    )  # fmt: skip


def tiles(out: torch.Tensor, *operands: torch.Tensor) -> Sequence[Mapping[str, Any]]:
    """Block sizes worth timing for a result: a block of columns that wastes little, 2,048 or 4,096 elements each."""
    space = rows_in_order(out, *operands)
    if space is None:
        return ({"rows": 1, "columns": 1024, "num_warps": 4},)
    columns = min(1024, max(64, space.columns & -space.columns), triton.next_power_of_2(max(space.columns, 1)))
    found = []
    for elements, warps in ((2048, 4), (4096, 4), (4096, 8)):
        count = min(elements // columns, triton.next_power_of_2(max(space.count, 1)))
        wide = columns if count * columns >= elements else min(elements, triton.next_power_of_2(max(space.columns, 1)))
        found.append({"rows": max(1, min(count, elements // wide)), "columns": wide, "num_warps": warps})
    return tuple({tuple(each.items()): each for each in found}.values())


def fits(out: torch.Tensor, *operands: torch.Tensor) -> str | None:
    """Why the kernel cannot compute `out` (it may be on the meta device) from the operands."""
    space = rows_in_order(out, *operands)
    if space is None:
        return "strides that need more than four dimensions"
    return "too many elements" if max(space.count, space.columns) > LARGEST else None


def _elementwise(name: str, reference: Any) -> None:
    """Provides an op whose operands are all tensors that broadcast and promote as in its reference."""

    def pattern(*operands: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = reference(*map(blank, operands))
        return result

    def supports(*operands: torch.Tensor) -> str | None:
        return refusal(*operands) or fits(pattern(*operands), *operands)

    def configs(*operands: torch.Tensor) -> Sequence[Mapping[str, Any]]:
        return tiles(pattern(*operands), *operands)

    def fn(*operands: torch.Tensor, **config: Any) -> torch.Tensor:
        out = like(pattern(*operands), operands[0].device)
        run(name, out, *operands, **(config or tiles(out, *operands)[0]))
        return out

    provide(name, "triton", fn, supports, configs)


_elementwise("add_row", add_row)
_elementwise("gate_add", gate_add)
_elementwise("quick_gelu", quick_gelu)
_elementwise("blend", blend)


def _as_transposed(
    x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, out: torch.Tensor
) -> list[torch.Tensor] | None:
    """out, x, y and weight with y's extents, without a copy; None where their strides do not allow that."""
    try:
        return [out.view(y.shape), x.expand(out.shape).view(y.shape), y, weight.expand(out.shape).view(y.shape)]
    except RuntimeError:
        return None


def _blend_reshaped_supports(x: torch.Tensor, y: torch.Tensor, size: Sequence[int], weight: torch.Tensor) -> str | None:
    reason = refusal(x, y, weight)
    if reason is not None:
        return reason
    out = blend_reshaped(blank(x), blank(y), list(size), blank(weight))
    views = _as_transposed(x, y, weight, out)
    if views is None:
        return "strides that a reshape would have to copy"
    return fits(*views)


def _blend_reshaped_configs(
    x: torch.Tensor, y: torch.Tensor, size: Sequence[int], weight: torch.Tensor
) -> Sequence[Mapping[str, Any]]:
    views = _as_transposed(x, y, weight, blend_reshaped(blank(x), blank(y), list(size), blank(weight)))
    return tiles(*views) if views is not None else ({"rows": 1, "columns": 1024, "num_warps": 4},)


def _blend_reshaped(
    x: torch.Tensor, y: torch.Tensor, size: Sequence[int], weight: torch.Tensor, **config: Any
) -> torch.Tensor:
    out = like(blend_reshaped(blank(x), blank(y), list(size), blank(weight)), x.device)
    views = _as_transposed(x, y, weight, out)
    if views is None:
        raise ValueError("rewriter::blend_reshaped was called with strides that its provider refuses")
    run("blend", *views, **(config or tiles(*views)[0]))
    return out


provide("blend_reshaped", "triton", _blend_reshaped, _blend_reshaped_supports, _blend_reshaped_configs)


def _token_cat_parts(out: torch.Tensor, first: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return out[:, : first.shape[1]], out[:, first.shape[1] :]


def _token_cat_blank(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The two parts of the result, without data."""
    return _token_cat_parts(token_cat(blank(first), blank(second)), first)


def _token_cat_supports(first: torch.Tensor, second: torch.Tensor) -> str | None:
    if not first.dim() == second.dim() == 4 or first.dtype != second.dtype:
        return "parts of two kinds"
    reason = refusal(first, second)
    if reason is not None:
        return reason
    one, other = _token_cat_blank(first, second)
    return fits(one, first) or fits(other, second)


def _token_cat_configs(first: torch.Tensor, second: torch.Tensor) -> Sequence[Mapping[str, Any]]:
    parts = zip(_token_cat_blank(first, second), (first, second), strict=True)
    return tiles(*max(parts, key=lambda pair: pair[0].numel()))


def _token_cat(first: torch.Tensor, second: torch.Tensor, **config: Any) -> torch.Tensor:
    out = like(token_cat(blank(first), blank(second)), first.device)
    for part, operand in zip(_token_cat_parts(out, first), (first, second), strict=True):
        run("copy", part, operand, **(config or tiles(part, operand)[0]))
    return out


provide("token_cat", "triton", _token_cat, _token_cat_supports, _token_cat_configs)
