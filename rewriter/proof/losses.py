"""What a rule says that it loses, as an error of its operands: the bound by which it is proved."""

from __future__ import annotations

import math

import torch

# Relative to a number and to the largest magnitude of its row: half a step of each format (see `ops.low_precision`).
_STEPS = {"f8e4m3": (2.0**-4, 2.0**-17), "f8e4m3_norm": (2.0**-4, 2.0**-17), "i8": (0.0, 1 / 254)}
_F16 = 2.0**-11
# What the tensor cores of Hopper leave of products in eight bits, relative to the largest of the 32 that they add at a
# time and of the sum so far: they add in fixed point. As measured on an H200: a sum of 32 was off by 2**-13 exactly.
_CUT, _CUT_AT_ONCE = 2.0**-13, 32
# The sum so far may be larger than any product. With 1 here, 3 of 2,370 large examples of such sums (K up to 640) were
# refuted, by up to three times what was allowed; with 4 none of 937, at no more than 0.28 of it.
_SUM = 4


def coarsened(x: torch.Tensor, kind: str, generator: torch.Generator) -> torch.Tensor:
    """x: [..., K], f32 or f64, with each number off, up or down, by the most that the kind of loss takes from it.

    Equal numbers are off alike, as rounding has it, and those equal to the first one upwards in magnitude: where all
    are equal, errors add up. `f16_sums`: a sum of K products is rounded K times, so each may be off by K roundings.
    `f8e4m3_sums`: each product is cut once, and the sum again with every 32 of them.
    `f8e4m3_norm`: x: [N, ...], what a norm gives, has one scale for sqrt(n) times the largest number, of n in a sample
    (see `ops.quantised_conv`, whose bound is of a group's numbers).
    """
    if not x.numel():
        return x
    if kind == "f16_sums":
        relative, absolute = x.shape[-1] * _F16, 0.0
    elif kind == "f8e4m3_sums":
        relative, absolute = 0.0, (1 + x.shape[-1] / _CUT_AT_ONCE) * _SUM * _CUT
    else:
        relative, absolute = _STEPS[kind]
    # A hash of a number's bits by an odd factor decides.
    factor = 2 * int(torch.randint(2**61, (1,), generator=generator)) + 1
    hashed = ((x.double().view(torch.int64) * factor) >> 62) & 1
    signs = torch.where(hashed == hashed.flatten()[0], 1.0, -1.0)
    finite = torch.where(x.isfinite(), x, 0.0).abs()
    if kind == "f8e4m3_norm":
        largest = finite.amax() * math.sqrt(x.numel() / x.shape[0])
    else:
        largest = finite.amax(-1, keepdim=True)
    return x + signs * torch.where(x < 0, -1.0, 1.0) * (relative * x.abs() + absolute * largest)
