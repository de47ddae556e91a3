"""What a rule says that it loses, as an error of its operands: the bound by which it is proved."""

from __future__ import annotations

import math

import torch

# Relative to a number and to the largest magnitude of its row: half a step of each format (see `ops.low_precision`).
_STEPS = {"f8e4m3": (2.0**-4, 2.0**-17), "f8e4m3_norm": (2.0**-4, 2.0**-17), "i8": (0.0, 1 / 254)}
_F16 = 2.0**-11
# The tensor cores of Hopper add 32 products in eight bits and the sum so far in fixed point: each term loses at most
# this of the largest. On an H200 a sum of 32 was off by it exactly. Of K products, K / 32 sums have 33 terms each.
_CUT, _TERMS = 2.0**-13, 33 / 32


def coarsened(x: torch.Tensor, kind: str, generator: torch.Generator) -> torch.Tensor:
    """x: [..., K], f32 or f64, with each number off, up or down, by the most that the kind of loss takes from it.

    Equal numbers are off alike, as rounding has it, and those equal to the first one upwards in magnitude: where all
    are equal, errors add up. `f16_sums`: a sum of K products is rounded K times, so each may be off by K roundings.
    `f8e4m3_sums`: the largest term is a product, or the sum so far: that of all magnitudes at most, half on average.
    `f8e4m3_norm`: x: [N, ...], what a norm gives, has one scale for sqrt(n) times the largest number, of n in a sample
    (see `ops.quantised_conv`, whose bound is of a group's numbers).
    """
    if not x.numel():
        return x
    if kind == "f16_sums":
        relative, absolute = x.shape[-1] * _F16, 0.0
    elif kind == "f8e4m3_sums":
        relative, absolute = 0.0, _CUT * _TERMS
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
        if kind == "f8e4m3_sums":
            largest += finite.sum(-1, keepdim=True) / 2
    return x + signs * torch.where(x < 0, -1.0, 1.0) * (relative * x.abs() + absolute * largest)
