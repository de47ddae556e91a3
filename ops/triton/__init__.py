"""The ops in Triton. Importing this package adds the provider "triton" to them."""

from rewriter.ops.triton import (
    attention,
    conv,
    gated,
    group_norm,
    layer_norm,
    linear,
    pointwise,
    quantised_linear,
    quantised_norm,
    quantised_rows,
    rotary,
)
from rewriter.ops.triton.device import unavailable

__all__ = [
    "attention",
    "conv",
    "gated",
    "group_norm",
    "layer_norm",
    "linear",
    "pointwise",
    "quantised_linear",
    "quantised_norm",
    "quantised_rows",
    "rotary",
    "unavailable",
]
