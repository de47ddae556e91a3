"""How much a graph amplifies rounding.

Two correct ways to compute a network differ in every layer by about one rounding. Most networks keep that small; an
untrained one whose normalisations divide by almost nothing does not, and then no fixed limit tells a wrong rewrite
from another order of summation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from rewriter.capture.compare import relative_error

Run = Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor]], tuple[torch.Tensor, ...]]

_TRIALS = 4
# In units of the dtype's epsilon. A sum of a few hundred products is off by about as much.
_STEP = 4.0


def amplified_rounding(
    run: Run, activations: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]
) -> float:
    """The largest relative L2 error against `expected` when every input and weight is off by a few roundings.

    Needs memory for one more copy of the weights. Infinite if a result is not finite.
    """
    device = max((tensor.device for tensor in (*activations, *weights)), key=lambda device: device.type != "cpu")
    generator = torch.Generator(device).manual_seed(0)
    worst = 0.0
    for _ in range(_TRIALS):
        actual = run([_off(tensor, generator) for tensor in activations], [_off(t, generator) for t in weights])
        for a, b in zip(actual, expected, strict=True):
            if b.is_floating_point() or b.is_complex():
                finite = bool(torch.isfinite(a).all())
                worst = max(worst, relative_error(a, b) if finite else float("inf"))
    return worst


def _off(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if not tensor.is_floating_point() or tensor.dim() == 0:
        return tensor.detach().clone()
    step = _STEP * torch.finfo(tensor.dtype).eps
    shift = torch.rand(tensor.shape, generator=generator, device=generator.device).to(tensor.device)
    return (tensor.detach() * (1 + step * (2 * shift - 1))).to(tensor.dtype)
