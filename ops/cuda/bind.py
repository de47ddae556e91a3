"""Builds and loads the library of CUDA kernels, and enters what it offers as providers.

Importing this module raises ImportError, OSError or RuntimeError where that is not possible, with the reason first.
"""

from __future__ import annotations

import torch

from rewriter.ops.cuda import build, linear, product

# Tensor cores with asynchronous copies; older cards are served by torch's own kernels.
_OLDEST = (8, 0)


def architectures() -> list[str]:
    """nvcc's names of the visible GPUs' architectures. Raises ImportError where no GPU can run the kernels."""
    if not torch.cuda.is_available():
        raise ImportError("no CUDA GPU is visible")
    capabilities = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    if min(capabilities) < _OLDEST:
        raise ImportError(f"a GPU of compute capability {min(capabilities)} is visible; expected 8.0 or newer")
    # Hopper's own instructions exist only in code for exactly this chip.
    return sorted(f"{major}{minor}{'a' if (major, minor) == (9, 0) else ''}" for major, minor in capabilities)


build.load(architectures())
linear.enter()
product.enter()
