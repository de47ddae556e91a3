"""The `rewriter::*` ops. Importing this package registers all of them with torch."""

from rewriter.ops import (
    activation,
    attention,
    blend,
    conv,
    dispatch,
    group_norm,
    layer_norm,
    linear,
    linear_cat,
    linear_f16_sums,
    low_precision,
    providers,
    quantised_gemm,
    registry,
    rotary,
    single_key,
)
from rewriter.ops.registry import OPS, Op, Provider

__all__ = [
    "OPS",
    "Op",
    "Provider",
    "activation",
    "attention",
    "blend",
    "conv",
    "dispatch",
    "group_norm",
    "layer_norm",
    "linear",
    "linear_cat",
    "linear_f16_sums",
    "low_precision",
    "providers",
    "quantised_gemm",
    "registry",
    "rotary",
    "single_key",
]
