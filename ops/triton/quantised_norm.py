"""Layer norms that write rows in eight bits with a scale each, with the residual, the gate and the modulation around
them: what a quantised linear layer reads, without the norm ever being stored in full."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from rewriter.ops.registry import provide
from rewriter.ops.triton.overlap import overlapping, wait_for_earlier
from rewriter.ops.triton.quantised_rows import (
    as_stored,
    blank_rows,
    code_options,
    format_refusal,
    row_configs,
    rows_refusal,
    store_rows,
)

Optional = torch.Tensor | None

_PLAIN, _RESIDUAL, _GATED = 0, 1, 2


@triton.jit
def _kernel(  # type: ignore[no-untyped-def]
    codes, scales, total, x, y, gate, scale, shift, weight, bias,
    rows, columns, each, eps, x_row, y_row, gate_row, scale_row, shift_row,
    ADD: tl.constexpr, MODULATE: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr,
    INTEGER: tl.constexpr, EMULATED: tl.constexpr, OVERLAP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)[None, :]
    known = column < columns
    inside = (row < rows)[:, None] & known
    place = row.to(tl.int64)[:, None]
    # `each` rows share one row of the gate and of the modulation.
    sample = place // each
    wait_for_earlier(OVERLAP)
    v = tl.load(x + place * x_row + column, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        u = tl.load(y + place * y_row + column, mask=inside, other=0.0).to(tl.float32)
        if ADD == 2:
            u = u * tl.load(gate + sample * gate_row + column, mask=inside, other=0.0).to(tl.float32)
        # The norm reads the sum as it is kept.
        kept = (v + u).to(total.dtype.element_ty)
        tl.store(total + place * columns + column, kept, mask=inside)
        v = kept.to(tl.float32)
    mean = tl.sum(v, axis=1) / columns
    centred = tl.where(inside, v - mean[:, None], 0.0)
    deviation = tl.rsqrt(tl.sum(centred * centred, axis=1) / columns + eps)
    z = centred * deviation[:, None]
    if WEIGHT:
        z = z * tl.load(weight + column, mask=known, other=0.0).to(tl.float32)
    if BIAS:
        z = z + tl.load(bias + column, mask=known, other=0.0).to(tl.float32)
    if MODULATE:
        a = tl.load(scale + sample * scale_row + column, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(shift + sample * shift_row + column, mask=inside, other=0.0).to(tl.float32)
        z = z * (1.0 + a) + b
    # What lies next to a power of two gets the scale that it would get as a tensor.
    z = tl.where(inside, as_stored(z, x.dtype.element_ty, EMULATED), 0.0)
    store_rows(z, codes, scales, row, column, rows, columns, inside, INTEGER, EMULATED)


class _Norm:
    """One op's provider. `roles`: the op's arguments, by the names that the kernel knows."""

    def __init__(self, name: str, roles: Sequence[str]) -> None:
        self.roles = roles
        self.add = _GATED if "gate" in roles else _RESIDUAL if "y" in roles else _PLAIN
        provide(name, "triton", self, self.supports, self.configs)

    def supports(self, *arguments: Any) -> str | None:
        given = dict(zip(self.roles, arguments, strict=True))
        x = given["x"]
        if not x.dim() or list(given["shape"]) != [x.shape[-1]]:
            return "a norm over other than the last dimension"
        reason = rows_refusal(x, x.shape[-1]) or format_refusal(x, given["kind"])
        if reason is not None:
            return reason
        tensors = [each for each in arguments if isinstance(each, torch.Tensor)]
        if any(each.device != x.device or each.dtype != x.dtype for each in tensors):
            return "operands of several dtypes or on several devices"
        if "y" in given and given["y"].shape != x.shape:
            return "a residual that broadcasts"
        for name in ("weight", "bias"):
            vector = given[name]
            if vector is not None and (vector.shape != x.shape[-1:] or vector.stride(0) != 1):
                return "weights that are no dense vector of the rows' length"
        for name in ("gate", "scale", "shift"):
            if name in given and _sample_row(given[name], x) is None:
                return "a gate or a modulation other than a row for each sample"
        return None

    def configs(self, *arguments: Any) -> Sequence[Mapping[str, Any]]:
        x = arguments[0]
        return row_configs(x.shape[-1], x.numel() // max(x.shape[-1], 1))

    def __call__(self, *arguments: Any, rows: int = 0, num_warps: int = 0) -> Any:
        given = dict(zip(self.roles, arguments, strict=True))
        x = _rows(given["x"])
        count, columns = x.shape
        codes, scales = blank_rows(given["x"].shape[:-1], columns, given["kind"], x.device)
        total = torch.empty(given["x"].shape, dtype=x.dtype, device=x.device) if self.add else None
        results = (codes, scales) if total is None else (codes, scales, total)
        if not codes.numel():
            return results
        config = {"rows": rows, "num_warps": num_warps} if rows else row_configs(columns, count)[0]
        stored, options = code_options(codes)
        y = _rows(given["y"]) if "y" in given else x
        samples = [given.get(name) for name in ("gate", "scale", "shift")]
        each = given["x"].shape[-2] if given["x"].dim() > 1 else 1
        with torch.cuda.device_of(x):
            _kernel[(triton.cdiv(count, config["rows"]),)](
                stored, scales, x if total is None else total, x, y, *(x if s is None else s for s in samples),
                *(x if given[name] is None else given[name] for name in ("weight", "bias")),
                count, columns, each, given["eps"], x.stride(0), y.stride(0),
                *(0 if s is None else _sample_row(s, given["x"]) for s in samples),
                ADD=self.add, MODULATE="scale" in given,
                WEIGHT=given["weight"] is not None, BIAS=given["bias"] is not None, **options, **overlapping(x.device),
                ROWS=config["rows"], COLUMNS=triton.next_power_of_2(columns), num_warps=config["num_warps"],
            )  # fmt: skip
        return results


def _rows(x: torch.Tensor) -> torch.Tensor:
    """x: [..., C] as [rows, C] whose elements lie side by side, copied only where no such view exists."""
    flat = x.reshape(-1, x.shape[-1])
    return flat if flat.stride(1) == 1 else flat.contiguous()


def _sample_row(tensor: torch.Tensor, x: torch.Tensor) -> int | None:
    """The step from one sample's row to the next of a tensor [N, 1, C] beside x: [N, S, C]; None for others."""
    if tensor.dim() != 3 or x.dim() != 3 or tensor.shape[1:] != (1, x.shape[2]) or tensor.stride(2) != 1:
        return None
    if tensor.shape[0] == x.shape[0]:
        return tensor.stride(0)
    return 0 if tensor.shape[0] == 1 else None


_AFFINE = ("shape", "weight", "bias", "eps")
_Norm("layer_norm_quantised", ("x", *_AFFINE, "kind"))
_Norm("add_layer_norm_quantised", ("x", "y", *_AFFINE, "kind"))
_Norm("layer_norm_modulate_quantised", ("x", *_AFFINE, "scale", "shift", "kind"))
_Norm("gate_add_layer_norm_modulate_quantised", ("x", "gate", "y", *_AFFINE, "scale", "shift", "kind"))
