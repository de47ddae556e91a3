"""Layer norms that write rows of eight bits with a scale each, with what stands around them, on Hopper
(`csrc/norms.cu`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rewriter.ops.cuda.rows import OF_A_WARP, in_lines
from rewriter.ops.cuda.tiles import aligned, refusal
from rewriter.ops.low_precision import FORMATS
from rewriter.ops.registry import provide

_VECTORS, _SAMPLES = ("weight", "bias"), ("gate", "scale", "shift")


class Norm:
    """One op's provider. `roles`: the op's arguments, by their names: x, y (added to x), gate (of y), and those of the
    norm and its modulation."""

    def __init__(self, roles: Sequence[str]) -> None:
        self.roles = roles

    def takes(self, *arguments: Any) -> str | None:
        given = dict(zip(self.roles, arguments, strict=True))
        x, kind = given["x"], given["kind"]
        if kind not in FORMATS or not x.dim() or list(given["shape"]) != [x.shape[-1]]:
            return f"no kernel for {kind}, or a norm over other than the last dimension"
        for each in (given[name] for name in ("y", *_VECTORS, *_SAMPLES) if given.get(name) is not None):
            reason = refusal(x, each, None)
            if reason is not None:
                return reason
        reason = refusal(x, x, None)
        if reason is not None:
            return reason
        if not all(in_lines(given[name]) for name in ("x", "y") if name in given):
            return "rows that are not made of whole lines of 16 bytes, or do not lie at one distance"
        if x.shape[-1] > OF_A_WARP:
            return "rows of more elements than a warp holds"
        if "y" in given and given["y"].shape != x.shape:
            return "a residual that broadcasts"
        vectors = [given[name] for name in _VECTORS if given[name] is not None]
        if any(each.shape != x.shape[-1:] or each.stride(0) != 1 for each in vectors):
            return "weights that are no dense vector of the rows' length"
        if any(_pitch(given[name], x) is None for name in _SAMPLES if name in given):
            return "a gate or a modulation other than a row of lines for each sample"
        return None

    def __call__(self, *arguments: Any) -> Any:
        given = dict(zip(self.roles, arguments, strict=True))
        x, y = given["x"], given.get("y")
        columns = x.shape[-1]
        codes = torch.empty(x.shape, dtype=FORMATS[given["kind"]], device=x.device)
        scales = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
        total = None if y is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
        samples = [given.get(name) for name in _SAMPLES]
        torch.ops.rewriter_cuda.quantise_norm(
            x.view(-1, columns),
            None if y is None else y.view(-1, columns),
            samples[0],
            given["weight"],
            given["bias"],
            *samples[1:],
            None if total is None else total.view(-1, columns),
            codes.view(-1, columns),
            scales.view(-1, 1),
            given["eps"],
            x.shape[-2] if x.dim() > 1 else 1,
            *(0 if each is None else _pitch(each, x) for each in samples),
        )
        return (codes, scales) if total is None else (codes, scales, total)


_AFFINE = ("shape", *_VECTORS, "eps")
NORMS = {
    "layer_norm_quantised": Norm(("x", *_AFFINE, "kind")),
    "add_layer_norm_quantised": Norm(("x", "y", *_AFFINE, "kind")),
    "layer_norm_modulate_quantised": Norm(("x", *_AFFINE, "scale", "shift", "kind")),
    "gate_add_layer_norm_modulate_quantised": Norm(("x", "gate", "y", *_AFFINE, "scale", "shift", "kind")),
}


def enter() -> None:
    """Adds the providers. The library must be loaded."""
    for name, norm in NORMS.items():
        provide(name, "cuda", norm, norm.takes, instead_of=("triton",))


def _pitch(tensor: torch.Tensor, x: torch.Tensor) -> int | None:
    """The step from one sample's row to the next of a tensor [N, 1, C] beside x: [N, S, C]; None for others."""
    if tensor.dim() != 3 or x.dim() != 3 or tensor.shape[1:] != (1, x.shape[2]) or tensor.stride(2) != 1:
        return None
    if tensor.shape[0] not in (1, x.shape[0]) or tensor.stride(0) % 8 or not aligned(tensor):
        return None
    return tensor.stride(0) if tensor.shape[0] > 1 else 0
