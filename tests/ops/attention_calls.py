"""Operands of attention, on a GPU or as if they were on one, and what is right for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rewriter.ops import OPS

Operands = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
OF_BOTH = ("attention", "attention_tokens")


class OnGpu(torch.Tensor):
    """A tensor on the CPU that says that it is on a GPU."""

    is_cuda = True  # type: ignore[assignment]


def drawn(
    b: int, s: int, t: int, h: int, d: int, *, dtype: torch.dtype = torch.float16, device: str = "cpu"
) -> Operands:
    """[B, S, H, D] and twice [B, T, H, D]."""
    generator = torch.Generator().manual_seed(s * 1000 + t * 10 + d)
    shapes = ((b, s, h, d), (b, t, h, d), (b, t, h, d))
    q, k, v = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
    return q, k, v


def as_on_gpu(operands: Operands) -> Operands:
    q, k, v = (each.as_subclass(OnGpu) for each in operands)
    return q, k, v


def sliced(operands: Operands) -> Operands:
    """As they lie in the result of one projection for all three, where there are as many keys as queries."""
    q, k, v = torch.stack(operands, dim=2).unbind(2)
    return q, k, v


def heads_outside(operands: Operands) -> Operands:
    """[B, S, H, D] that lies in memory as [B, H, S, D]."""
    q, k, v = (each.transpose(1, 2).contiguous().transpose(1, 2) for each in operands)
    return q, k, v


def swapped(operands: Operands) -> Operands:
    """Heads first from tokens first, and back."""
    q, k, v = (each.transpose(1, 2) for each in operands)
    return q, k, v


def exact(
    operands: Operands, mask: torch.Tensor | None = None, scale: float | None = None, causal: bool = False
) -> torch.Tensor:
    """[B, S, H, E] in f64."""
    q, k, v = (each.double() for each in operands)
    scores = torch.einsum("bshd,bthd->bhst", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return torch.einsum("bhst,bthd->bshd", scores.softmax(-1), v)


def error(result: torch.Tensor, wanted: torch.Tensor) -> float:
    """Of the worst row, so that a tail cannot hide among many."""
    return float(((result.double() - wanted).norm(dim=-1) / wanted.norm(dim=-1).mean()).max())


@contextmanager
def kept_providers() -> Iterator[None]:
    """What is added to the attention ops inside is gone afterwards."""
    before = {name: dict(OPS[name].providers) for name in OF_BOTH}
    try:
        yield
    finally:
        for name, providers in before.items():
            OPS[name].providers.clear()
            OPS[name].providers.update(providers)
