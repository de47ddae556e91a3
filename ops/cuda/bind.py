"""Builds and loads the library of CUDA kernels, and enters what it offers as providers.

Importing this module raises ImportError, OSError or RuntimeError where that is not possible, with the reason first.
"""

from __future__ import annotations

from rewriter.ops.cuda import (
    attention,
    build,
    convolution,
    linear,
    norms,
    product,
    quantised,
    quantised_conv,
    rows,
    upsample,
)

build.load(build.visible_architectures())
linear.enter()
convolution.enter()
product.enter()
attention.enter()
upsample.enter()
quantised.enter()
quantised_conv.enter()
rows.enter()
norms.enter()
