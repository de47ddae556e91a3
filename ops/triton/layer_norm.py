"""Layer and RMS norms of rows held in registers, with the residual, the gate and the modulation around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from rewriter.ops import dispatch
from rewriter.ops import layer_norm as reference
from rewriter.ops.registry import provide
from rewriter.ops.triton.overlap import overlapping, wait_for_earlier
from rewriter.ops.triton.rows import LARGEST, Optional, Rows, blank, like, refusal, rows_of

# The longest row: 64 values for each thread of 8 warps.
_LONGEST = 16384
_PLAIN, _RESIDUAL, _GATED = 0, 1, 2
# Results remembered for each op.
_KNOWN = 256


@triton.jit
def _kernel(  # type: ignore[no-untyped-def]
    out, total, x, y, gate, scale, shift, weight, bias,
    rows, columns, n1, n2, eps,
    total0, total1, total2, total3,
    x0, x1, x2, x3,
    y0, y1, y2, y3,
    gate0, gate1, gate2, gate3,
    scale0, scale1, scale2, scale3,
    shift0, shift1, shift2, shift3,
    weight_step, bias_step,
    ADD: tl.constexpr, RMS: tl.constexpr, MODULATE: tl.constexpr, SHARED: tl.constexpr,
    WEIGHT: tl.constexpr, BIAS: tl.constexpr, OVERLAP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)[None, :]
    known = column < columns
    inside = (row < rows)[:, None] & known
    i2 = (row % n2).to(tl.int64)[:, None]
    i1 = ((row // n2) % n1).to(tl.int64)[:, None]
    i0 = (row // (n2 * n1)).to(tl.int64)[:, None]
    wait_for_earlier(OVERLAP)
    v = tl.load(x + (i0 * x0 + i1 * x1 + i2 * x2) + column * x3, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        u = tl.load(y + (i0 * y0 + i1 * y1 + i2 * y2) + column * y3, mask=inside, other=0.0).to(tl.float32)
        if ADD == 2:
            if SHARED:
                g = tl.load(gate + column * gate3, mask=known, other=0.0)
            else:
                g = tl.load(gate + (i0 * gate0 + i1 * gate1 + i2 * gate2) + column * gate3, mask=inside, other=0.0)
            u = u * g.to(tl.float32)
        # The norm reads the sum as it is kept.
        kept = (v + u).to(total.dtype.element_ty)
        tl.store(total + (i0 * total0 + i1 * total1 + i2 * total2) + column * total3, kept, mask=inside)
        v = kept.to(tl.float32)
    if RMS:
        centred = v
    else:
        mean = tl.sum(v, axis=1) / columns
        centred = tl.where(inside, v - mean[:, None], 0.0)
    deviation = tl.rsqrt(tl.sum(centred * centred, axis=1) / columns + eps)
    z = centred * deviation[:, None]
    if WEIGHT:
        z = z * tl.load(weight + column * weight_step, mask=known, other=0.0).to(tl.float32)
    if BIAS:
        z = z + tl.load(bias + column * bias_step, mask=known, other=0.0).to(tl.float32)
    if MODULATE:
        if SHARED:
            a = tl.load(scale + column * scale3, mask=known, other=0.0)
            b = tl.load(shift + column * shift3, mask=known, other=0.0)
        else:
            a = tl.load(scale + (i0 * scale0 + i1 * scale1 + i2 * scale2) + column * scale3, mask=inside, other=0.0)
            b = tl.load(shift + (i0 * shift0 + i1 * shift1 + i2 * shift2) + column * shift3, mask=inside, other=0.0)
        z = z * (1.0 + a.to(tl.float32)) + b.to(tl.float32)
    tl.store(out + row.to(tl.int64)[:, None] * columns + column, z.to(out.dtype.element_ty), mask=inside)


def _configs(columns: int, rows: int) -> Sequence[Mapping[str, Any]]:
    """Rows per program and warps: a few rows where they are short, and 8 to 32 values for each thread."""
    width = triton.next_power_of_2(max(columns, 1))
    most = triton.next_power_of_2(max(rows, 1))
    wanted = ((4096, 4), (2048, 4), (1024, 1))
    found = {(min(max(1, elements // width), most), max(warps, width // 2048)) for elements, warps in wanted}
    # Four warps with one row of up to 4,096 elements are the best guess, more rows the shorter they are.
    best = (min(max(1, 4096 // width), most), max(4, width // 2048))
    order = [best, *sorted(found - {best}, key=lambda each: (abs(each[1] - 4), each))]
    return tuple({"rows": count, "num_warps": warps} for count, warps in order)


def _normalise(
    x: torch.Tensor, space: Rows, weight: Optional, bias: Optional, eps: float, *,
    out: torch.Tensor, total: Optional = None, add: int = _PLAIN, y: Optional = None, gate: Optional = None,
    scale: Optional = None, shift: Optional = None, rms: bool = False, rows: int = 0, num_warps: int = 0,
) -> None:  # fmt: skip
    """Launches the kernel. `space`: the rows of total, x, y, gate, scale and shift, in this order."""
    if not out.numel():
        return
    config = {"rows": rows, "num_warps": num_warps} if rows else _configs(space.columns, space.count)[0]
    broadcast = [step for each in space.strides[3:] for step in each[:3]]
    _kernel[(triton.cdiv(space.count, config["rows"]),)](
        out, *(each if each is not None else x for each in (total, x, y, gate, scale, shift, weight, bias)),
        space.count, space.columns, *space.extents[1:3], eps,
        *(step for each in space.strides for step in each),
        0 if weight is None else weight.stride(0), 0 if bias is None else bias.stride(0),
        ADD=add, RMS=rms, MODULATE=scale is not None, SHARED=not any(broadcast),
        WEIGHT=weight is not None, BIAS=bias is not None, **overlapping(out.device),
        ROWS=config["rows"], COLUMNS=triton.next_power_of_2(space.columns), num_warps=config["num_warps"],
    )  # fmt: skip


class _Norm:
    """One op's provider. `arguments`: the op's, by the names of the roles that the kernel knows."""

    def __init__(self, name: str, roles: Sequence[str]) -> None:
        self.name = name
        self.roles = roles
        self.known: dict[str, tuple[torch.Tensor, Optional]] = {}
        self.add = _GATED if "gate" in roles else _RESIDUAL if "y" in roles else _PLAIN
        provide(name, "triton", self, self.supports, self.configs)

    def results(self, given: dict[str, Any]) -> tuple[torch.Tensor, Optional]:
        """The op's results without data: the norm, and the sum where there is one."""
        # Torch takes milliseconds to find out, far longer than the kernel, and a model asks the same few times over.
        key = dispatch.signature(tuple(given.values()))
        if key not in self.known:
            blanks = [blank(each) if isinstance(each, torch.Tensor) else each for each in given.values()]
            found = getattr(reference, self.name)(*blanks)
            if len(self.known) >= _KNOWN:
                self.known.clear()
            self.known[key] = found if isinstance(found, tuple) else (found, None)
        return self.known[key]

    def space(self, given: dict[str, Any], out: torch.Tensor, total: Optional) -> Rows | None:
        names = ("x", "y", "gate", "scale", "shift")
        return rows_of(out.shape, total, *(given.get(name) for name in names))

    def supports(self, *arguments: Any) -> str | None:
        given = dict(zip(self.roles, arguments, strict=True))
        x, weight, bias = given["x"], given["weight"], given.get("bias")
        reason = refusal(*(each for each in arguments if isinstance(each, torch.Tensor)))
        if reason is not None:
            return reason
        if given["eps"] is None:
            return "no eps"
        shape = given["shape"]
        if len(shape) != 1 or not x.dim() or shape[0] == 0:
            return "a norm over other than the last dimension"
        if shape[0] > _LONGEST:
            return f"rows of more than {_LONGEST:,} elements"
        if any(each is not None and list(each.shape) != list(shape) for each in (weight, bias)):
            return "weights of another shape than the rows"
        tensors = [given[name] for name in ("x", "y", "gate") if name in given]
        if (
            any(each.dim() == 0 for each in tensors)
            or torch.broadcast_shapes(*(t.shape for t in tensors))[-1] != shape[0]
        ):
            return "rows of another length"
        out, total = self.results(given)
        if out.shape[-1] != shape[0]:
            return "rows that the modulation makes longer"
        space = self.space(given, out, total)
        if space is None:
            return "strides that need more than four dimensions"
        return "too many rows" if space.count > LARGEST else None

    def configs(self, *arguments: Any) -> Sequence[Mapping[str, Any]]:
        given = dict(zip(self.roles, arguments, strict=True))
        out, _ = self.results(given)
        return _configs(out.shape[-1], out.numel() // max(out.shape[-1], 1))

    def __call__(self, *arguments: Any, **config: Any) -> Any:
        given = dict(zip(self.roles, arguments, strict=True))
        device = given["x"].device
        blank_out, blank_total = self.results(given)
        out = like(blank_out, device)
        total = None if blank_total is None else like(blank_total, device)
        space = self.space(given, out, total)
        if space is None:
            raise ValueError(f"rewriter::{self.name} was called with strides that its provider refuses")
        _normalise(
            given["x"], space, given["weight"], given.get("bias"), given["eps"], out=out, total=total, add=self.add,
            y=given.get("y"), gate=given.get("gate"), scale=given.get("scale"), shift=given.get("shift"),
            rms="bias" not in given, **config,
        )  # fmt: skip
        return out if total is None else (out, total)


_AFFINE = ("shape", "weight", "bias", "eps")
_Norm("layer_norm", ("x", *_AFFINE))
_Norm("add_layer_norm", ("x", "y", *_AFFINE))
_Norm("layer_norm_modulate", ("x", *_AFFINE, "scale", "shift"))
_Norm("gate_add_layer_norm_modulate", ("x", "gate", "y", *_AFFINE, "scale", "shift"))
_Norm("rms_norm", ("x", "shape", "weight", "eps"))
