"""What a kernel that holds f32 sums does to them before it stores them."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gelu(x):  # type: ignore[no-untyped-def]
    """x * Phi(x) for the normal distribution's Phi, for results in f16 and bf16; log2 Phi(-|x|) is a polynomial in |x|.

    One exponential instead of erf's two branches, and no cancellation for x < 0. From -6 on the result is off by less
    than 8e-6 of itself, far below half a unit in the last place of f16 and bf16, and below -6 by less than 5e-14.
    """
    # A minimax fit made for this function: of all p of degree 6, about the one with the smallest largest error of
    # 2**(u * p(u) - 1) relative to Phi(-u) on 0 <= u <= 6, with coefficients in f32. That error has eight peaks of
    # alternating signs between 3.4e-6 and 4.5e-6, so no p of that degree stays below the former. Rounding u * p(u),
    # up to 29, to f32 adds to it. csrc/activations.h has the same numbers.
    u = tl.abs(x)
    p = -1.79378025677579e-06 * u + 6.072615724406205e-05
    p = p * u + -0.0009231857256963849
    p = p * u + 0.008476847782731056
    p = p * u + -0.05389093980193138
    p = p * u + -0.4585415720939636
    p = p * u + -1.151214361190796
    tail = tl.exp2(p * u - 1.0)
    return x * tl.where(x < 0, tail, 1.0 - tail)


@triton.jit
def activated(x, ACTIVATION: tl.constexpr):  # type: ignore[no-untyped-def]
    """x: f32. ACTIVATION: none|relu|sigmoid|tanh|silu|gelu|gelu_tanh|quick_gelu."""
    if ACTIVATION == "relu":
        x = tl.where(x < 0, 0.0, x)
    elif ACTIVATION == "sigmoid":
        x = 1.0 / (1.0 + tl.exp(-x))
    elif ACTIVATION == "tanh":
        # The difference leaves nothing of small numbers; their series does.
        square = x * x
        series = x * (1.0 + square * (-0.3333333333 + square * 0.1333333333))
        x = tl.where(square < 0.004, series, 2.0 / (1.0 + tl.exp(-2.0 * x)) - 1.0)
    elif ACTIVATION == "silu":
        x = x / (1.0 + tl.exp(-x))
    elif ACTIVATION == "gelu":
        x = gelu(x)
    elif ACTIVATION == "gelu_tanh":
        # (1 + tanh(u)) / 2 is sigmoid(2 * u).
        x = x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
    elif ACTIVATION == "quick_gelu":
        x = x / (1.0 + tl.exp(-1.702 * x))
    return x
