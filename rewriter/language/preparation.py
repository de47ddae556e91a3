"""The functions that `prepare` may use: what each takes. `rewriter.graph.prepare` computes them."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Preparation:
    """`many`: takes any number of weights. `options`: what follows them, by name and default (None: required)."""

    many: bool
    options: tuple[tuple[str, int | tuple[int, ...] | None], ...]
    # Sources that are absent in the match are left out.
    optional: bool = False
    # Gives constants known at capture instead of a weight.
    static: bool = False


PREPARATIONS: dict[str, Preparation] = {
    "concat": Preparation(many=True, options=(("dim", 0),)),
    "interleave": Preparation(many=False, options=(("dim", 0),)),
    "transpose": Preparation(many=False, options=(("dim0", None), ("dim1", None))),
    "reshape": Preparation(many=False, options=(("shape", None),)),
    "channels_last": Preparation(many=False, options=()),
    "upsampled": Preparation(many=False, options=()),
    "rows_f8e4m3": Preparation(many=False, options=()),
    "scales_f8e4m3": Preparation(many=False, options=()),
    "filters_f8e4m3": Preparation(many=False, options=()),
    "filter_scales_f8e4m3": Preparation(many=False, options=()),
    "rows_i8": Preparation(many=False, options=()),
    "scales_i8": Preparation(many=False, options=()),
    "bias_for": Preparation(many=True, options=(), optional=True),
    "largest": Preparation(many=False, options=()),
    "extents": Preparation(many=True, options=(("dim", None),), static=True),
}
