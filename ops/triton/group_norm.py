"""Group norms in Triton: the sum before it, the statistics, the SiLU after it, in one launch or in two.

"whole": a program holds one or several whole groups of a sample in registers, so memory is read once; for small maps.
"split": programs share the places of a sample; the first launch leaves partial statistics, the second merges them and
normalises. A map up to the size of the cache comes from memory once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from rewriter.ops.group_norm import added
from rewriter.ops.precision import channels_innermost
from rewriter.ops.quantised_conv import root
from rewriter.ops.registry import provide
from rewriter.ops.triton.device import INTERPRETED, unavailable
from rewriter.ops.triton.group_norm_configs import Shape, configs_for
from rewriter.ops.triton.group_norm_kernels import normalise_parts, partial_statistics, whole_groups
from rewriter.ops.triton.overlap import overlapping
from rewriter.ops.triton.planes import Planes, planes_of, sample_reach
from rewriter.ops.triton.quantised_rows import format_refusal

Optional = torch.Tensor | None
# Offsets inside a sample are 32 bits wide.
_LARGEST = 2**31 - 2**16
_FEWEST_ENTRIES = 16
# What codes are stored as.
_CODES = torch.uint8 if INTERPRETED else torch.float8_e4m3fn
_NAMES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


@dataclasses.dataclass(frozen=True)
class _Codes:
    """How large the norm's numbers are, as `ops.quantised_conv` takes it, and where their scale is written."""

    gain: torch.Tensor
    offset: torch.Tensor
    root: float
    scale: torch.Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Call:
    """What the launches need. planes: of x, addend (x where there is none), total (y where it is not written) and y.

    dtype: of the sum; codes: how y is stored where it is in f8e4m3.
    """

    x: torch.Tensor
    channel_bias: Optional
    addend: Optional
    total: Optional
    y: torch.Tensor
    weight: Optional
    bias: Optional
    groups: int
    eps: float
    silu: bool
    dtype: torch.dtype
    codes: _Codes | None
    planes: Planes

    @property
    def shape(self) -> Shape:
        planes = self.planes
        return Shape(
            planes.samples,
            planes.frames,
            planes.places,
            planes.channels,
            self.groups,
            inner=planes.strides[0][3] == 1 and planes.channels > 1,
            itemsize=self.x.element_size(),
            device=self.x.device,
        )

    def sum(self, row: bool) -> dict[str, Any]:
        """The kernels' constants about the sum. row: the addend is one value for all places that a program takes."""
        return {
            "SUM": self.channel_bias is not None or self.addend is not None,
            "ROW": self.addend is not None and row,
            "FULL": self.addend is not None and not row,
            "TOTAL": _NAMES[self.dtype],
        }

    def form(self) -> dict[str, bool]:
        """The kernels' constants about the result."""
        quantised = self.codes is not None
        return {"SILU": self.silu, "CODES": quantised, "EMULATED": quantised and INTERPRETED}

    def reach(self) -> tuple[Any, ...]:
        """The kernels' arguments about codes."""
        codes = self.codes
        return (None, None, 0.0, None) if codes is None else (codes.gain, codes.offset, codes.root, codes.scale)


class _GroupNorm:
    """One op's provider. Its arguments are those of `add_group_norm`, less the sum's terms where it has none, and two
    more where it gives codes."""

    def __init__(self, name: str) -> None:
        self.sums = name.startswith(("add_", "sum_"))
        self.keeps = name.startswith("add_")
        self.silu = "_silu" in name
        self.quantised = name.endswith("_quantised")
        provide(name, "triton", self, self.supports, self.configs)

    def supports(self, *arguments: Any) -> str | None:
        x, channel_bias, addend, groups, weight, bias, _, *reach = self._named(arguments)
        tensors = [each for each in (x, channel_bias, addend, weight, bias, *reach) if each is not None]
        reasons = (unavailable(each) for each in tensors)
        if reason := next((each for each in reasons if each is not None), None):
            return reason
        if len({each.device for each in tensors}) > 1:
            return "operands on several devices"
        if self.sums and channel_bias is None and addend is None:
            return "nothing to add"
        try:
            shape = x.shape if addend is None else torch.broadcast_shapes(x.shape, addend.shape)
        except RuntimeError:
            return f"shapes {list(x.shape)} and {list(addend.shape)} do not broadcast"
        if x.dim() < 2 or len(shape) != x.dim() or 0 in shape:
            return f"shape {list(shape)}: expected [N, C, ...] of x's rank, with elements"
        if groups < 1 or shape[1] % groups:
            return f"{shape[1]} channels do not make {groups} groups"
        if any(each is not None and each.shape != (shape[1],) for each in (weight, bias)):
            return f"weight and bias: expected [{shape[1]}]"
        if channel_bias is not None and channel_bias.shape not in ((shape[1],), (1,)):
            return f"channel bias: expected [{shape[1]}]"
        if any(each.numel() != 1 or each.dtype != torch.float32 for each in reach):
            return "gain and offset: expected one number each, in f32"
        if reach and (reason := format_refusal(x, "f8e4m3")) is not None:
            return reason
        wide = (each.expand(shape) for each in (x, addend) if each is not None)
        if max(math.prod(shape[1:]), *(sample_reach(each) for each in wide)) >= _LARGEST:
            return f"shape {list(shape)}: a sample spans 2^31 elements or more"
        return None

    def configs(self, *arguments: Any) -> Sequence[Mapping[str, Any]]:
        return configs_for(self._call(arguments)[0].shape)

    def __call__(self, *arguments: Any, **config: Any) -> Any:
        """Runs the op. `config`: one of `configs`, whose first is the default."""
        call, total = self._call(arguments)
        chosen = dict(config or configs_for(call.shape)[0])
        run = _whole if chosen.pop("algorithm") == "whole" else _split
        with torch.cuda.device(call.x.device) if call.x.is_cuda else contextlib.nullcontext():
            run(call, **chosen)
        results: tuple[Optional, ...] = (call.y,)
        if call.codes is not None:
            results = (call.y.view(torch.float8_e4m3fn), call.codes.scale)
        if self.keeps:
            results = (*results, total)
        return results if len(results) > 1 else call.y

    def _named(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return arguments if self.sums else (arguments[0], None, None, *arguments[1:])

    def _call(self, arguments: tuple[Any, ...]) -> tuple[_Call, Optional]:
        """The launches' operands, and the sum that the op returns."""
        x, channel_bias, addend, groups, weight, bias, eps, *reach = self._named(arguments)
        result = _described(x, channel_bias, addend) if self.sums else x
        codes = None
        if self.quantised:
            scale = torch.empty(1, dtype=torch.float32, device=x.device)
            codes = _Codes(reach[0], reach[1], root(result.shape, groups), scale)
        y = _blank(result, _CODES if self.quantised else result.dtype, x.device)
        total = None
        if self.keeps:
            total = torch.empty_strided(result.shape, result.stride(), dtype=result.dtype, device=x.device)
        x = x.expand(result.shape)
        addend = None if addend is None else addend.expand(result.shape)
        planes = planes_of([x, x if addend is None else addend, y if total is None else total, y])
        returned = total
        if planes is None:
            # Orders that no two strides describe: torch adds, and copies as before its own group norm.
            if self.sums:
                x = added(x, channel_bias, addend)
                returned, total, channel_bias, addend = x if self.keeps else None, None, None, None
            x = torch.empty_like(y, dtype=x.dtype).copy_(x)
            planes = planes_of([x, x, y, y])
            assert planes is not None, "dense operands of one order have planes"
        call = _Call(
            x=x,
            channel_bias=None if channel_bias is None else channel_bias.expand(result.shape[1]).contiguous(),
            addend=addend,
            total=total,
            y=y,
            weight=None if weight is None else weight.contiguous(),
            bias=None if bias is None else bias.contiguous(),
            groups=groups,
            eps=eps,
            silu=self.silu,
            dtype=result.dtype,
            codes=codes,
            planes=planes,
        )
        return call, returned


def _described(x: torch.Tensor, channel_bias: Optional, addend: Optional) -> torch.Tensor:
    """The sum without data: its shape, dtype and strides are the reference's."""
    forms = [None if each is None else (each.shape, each.stride(), each.dtype) for each in (x, channel_bias, addend)]
    return _sum_of(*forms)


# Torch takes far longer to find out than the kernel, and a model asks the same few times over.
@functools.lru_cache(maxsize=4096)
def _sum_of(*forms: Any) -> torch.Tensor:
    terms = [None if form is None else torch.empty_strided(*form[:2], dtype=form[2], device="meta") for form in forms]
    assert terms[0] is not None
    return added(terms[0], *terms[1:])


def _blank(like: torch.Tensor, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The norm's result without data, laid out as the reference's is for a tensor like that."""
    if not channels_innermost(like):
        return torch.empty(like.shape, dtype=dtype, device=device)
    n, c, *space = like.shape
    return torch.empty((n, *space, c), dtype=dtype, device=device).movedim(-1, 1)


def _whole(call: _Call, *, held: int, warps: int) -> None:
    planes, size = call.planes, call.shape.size
    count = planes.frames * planes.places
    _, frame, place, _ = planes.strides[1]
    align = min(16, size * held & -(size * held))
    whole_groups[(planes.samples * (call.groups // held),)](
        call.x, call.channel_bias, call.addend, call.total, call.y, call.weight, call.bias, call.eps,
        *call.reach(), call.groups, size * held // align, planes.places, count,
        *(stride for each in planes.strides for stride in each),
        **call.sum(row=place == 0 and (frame == 0 or planes.frames == 1)), **call.form(),
        FRAMES=planes.frames > 1, HELD=held, ALIGN=align, **overlapping(call.x.device),
        PLACES=triton.next_power_of_2(count), WIDTH=triton.next_power_of_2(held * size), num_warps=warps,
    )  # fmt: skip


def _split(call: _Call, *, tile: int, width: int, parts: int, warps: int) -> None:
    planes, shape = call.planes, call.shape
    rows = triton.cdiv(triton.cdiv(planes.places, parts), tile) * tile
    parts = triton.cdiv(planes.places, rows)
    splits, chunks = planes.frames * parts, triton.cdiv(planes.channels, width)
    entries = splits * shape.slots(width)
    statistics = torch.empty((2, planes.samples, call.groups, entries), dtype=torch.float32, device=call.x.device)
    extents = (planes.channels, call.groups, shape.size, planes.places, chunks, parts, rows, splits, entries)
    x, addend, total, y = planes.strides
    constants = {
        "LOOP": rows > tile, "PLACES": tile, "WIDTH": width, "MEMBERS": shape.members(width),
        "num_warps": warps, **overlapping(call.x.device),
    }  # fmt: skip
    grid = (planes.samples * splits * chunks,)
    terms = call.sum(row=addend[2] == 0)
    partial_statistics[grid](
        call.x, call.channel_bias, call.addend, call.total, *statistics, *extents, *x, *addend, *total,
        **terms, **constants,
    )  # fmt: skip
    source, channel_bias, other = call.x, call.channel_bias, call.addend
    if call.total is not None:
        source, channel_bias, other, x, addend = call.total, None, None, total, total
        terms |= {"SUM": False, "ROW": False, "FULL": False}
    normalise_parts[grid](
        source, channel_bias, other, call.y, call.weight, call.bias, *statistics, call.eps, *call.reach(), *extents,
        *x, *addend, *y, **terms, **call.form(), **constants, ENTRIES=_bucket(entries),
    )  # fmt: skip


def _bucket(entries: int) -> int:
    """A power of 4 that holds so many: sizes of pictures share kernels."""
    bucket = _FEWEST_ENTRIES
    while bucket < entries:
        bucket *= 4
    return bucket


for _name in ("group_norm", "group_norm_silu", "add_group_norm", "add_group_norm_silu", "sum_group_norm_silu"):
    _GroupNorm(_name)
for _name in ("group_norm_silu_quantised", "add_group_norm_silu_quantised"):
    _GroupNorm(_name)
