"""Group norms over channels-last memory in CUDA C++: a cluster of blocks keeps its groups in shared memory."""

from __future__ import annotations

import math
from typing import Any

import torch

from rewriter.ops.precision import NARROW, channels_innermost
from rewriter.ops.registry import provide

Optional = torch.Tensor | None

_THREADS = 256
_MOST_GROUPS = 64
_CLUSTERS = (1, 2, 4, 8, 16)
# Shared memory that a block may have, less what is not the tile.
_ROOM = {9: 225 << 10, 10: 225 << 10}
_MOST_CONFIGS = 4


def _group_norm(
    x: torch.Tensor,
    channel_bias: Optional,
    addend: Optional,
    groups: int,
    weight: Optional,
    bias: Optional,
    eps: float,
    *,
    silu: bool,
    keep_sum: bool,
    width: int = 0,
    cluster: int = 0,
    splits: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm and the sum, operands as in the reference.

    width: channels of a chunk. cluster: blocks that hold a chunk of a sample in shared memory; 0 for two launches,
    which take the rows in `splits` parts.
    """
    if not width:
        config = _configs(x, groups)[0]
        width, cluster, splits = config["width"], config["cluster"], config["splits"]
    tokens = _tokens(x)
    added = None if addend is None else _added(addend, x)
    y, total = torch.ops.rewriter_cuda.group_norm(
        tokens, channel_bias, added, weight, bias, groups, eps, silu, keep_sum, width, cluster, splits
    )
    return _like(y, x), _like(total, x)


def group_norm(x: torch.Tensor, groups: int, weight: Optional, bias: Optional, eps: float, **config: Any) -> Any:
    """As the reference."""
    return _group_norm(x, None, None, groups, weight, bias, eps, silu=False, keep_sum=False, **config)[0]


def group_norm_silu(x: torch.Tensor, groups: int, weight: Optional, bias: Optional, eps: float, **config: Any) -> Any:
    """As the reference."""
    return _group_norm(x, None, None, groups, weight, bias, eps, silu=True, keep_sum=False, **config)[0]


def add_group_norm(*arguments: Any, **config: Any) -> Any:
    """As the reference."""
    return _group_norm(*arguments, silu=False, keep_sum=True, **config)


def add_group_norm_silu(*arguments: Any, **config: Any) -> Any:
    """As the reference."""
    return _group_norm(*arguments, silu=True, keep_sum=True, **config)


def sum_group_norm_silu(*arguments: Any, **config: Any) -> Any:
    """As the reference."""
    return _group_norm(*arguments, silu=True, keep_sum=False, **config)[0]


def _takes(x: torch.Tensor, groups: int, weight: Optional, bias: Optional, eps: float) -> str | None:
    return _takes_sum(x, None, None, groups, weight, bias, eps) if x.is_cuda else "not on a GPU"


def _takes_added(x: torch.Tensor, channel_bias: Optional, addend: Optional, *rest: Any) -> str | None:
    if channel_bias is None and addend is None:
        return "there is nothing to add"
    return _takes_sum(x, channel_bias, addend, *rest)


def _takes_sum(
    x: torch.Tensor,
    channel_bias: Optional,
    addend: Optional,
    groups: int,
    weight: Optional,
    bias: Optional,
    eps: float,  # noqa: ARG001
) -> str | None:
    operands = [each for each in (channel_bias, addend, weight, bias) if each is not None]
    if not all(each.is_cuda and each.device == x.device for each in (x, *operands)):
        return "the operands are not all on one CUDA device"
    if x.dtype not in (*NARROW, torch.float32):
        return f"expected f16, bf16 or f32, found {x.dtype}"
    if any(each.dtype != x.dtype for each in (channel_bias, addend) if each is not None):
        return "the sum promotes"
    for each in (weight, bias, channel_bias):
        if each is not None and (each.dtype not in (x.dtype, torch.float32) or not each.is_contiguous()):
            return "a parameter is of another dtype or not dense"
    if not channels_innermost(x) or x.numel() == 0 or x.shape[1] % groups or _tokens(x) is None:
        return "the channels are not innermost in memory"
    if addend is not None and _added(addend, x) is None:
        return "the addend broadcasts in another way, or its channels are not innermost in memory"
    if x.numel() // x.shape[0] // x.shape[1] >= 2**31 or x.shape[0] >= 2**16:
        return "too large"
    return None if _widths(x, groups) else "the channels cannot be shared out in whole groups of 16 bytes"


def _tokens(x: torch.Tensor) -> torch.Tensor | None:
    """x: [N, C, ...] as a view [N, P, C] that can be read 16 bytes at a time, or None."""
    y = x.movedim(1, -1)
    stride = y.stride(-1)
    row = None
    expected = 0
    for extent, step in zip(reversed(y.shape[1:-1]), reversed(y.stride()[1:-1]), strict=True):
        if extent == 1:
            continue
        if row is None:
            row = expected = step
        if step != expected:
            return None
        expected = step * extent
    row = x.shape[1] if row is None else row
    wide = 16 // x.element_size()
    sample = y.stride(0) if x.shape[0] > 1 else 0
    if (stride != 1 and x.shape[1] > 1) or row % wide or sample % wide or x.data_ptr() % 16 or row < x.shape[1]:
        return None
    return x.as_strided((x.shape[0], math.prod(y.shape[1:-1]), x.shape[1]), (sample, row, 1))


def _added(addend: torch.Tensor, x: torch.Tensor) -> torch.Tensor | None:
    """The addend as [N or 1, parts of P, C], or None where it is not constant over runs of rows of x."""
    if addend.dim() != x.dim() or addend.shape[1] != x.shape[1] or addend.shape[0] not in (1, x.shape[0]):
        return None
    own, whole = list(addend.shape[2:]), list(x.shape[2:])
    same = next((k for k, (a, b) in enumerate(zip(own, whole, strict=True)) if a != b), len(own))
    return _tokens(addend) if all(extent == 1 for extent in own[same:]) else None


def _like(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return y.view(x.shape[0], *x.shape[2:], x.shape[1]).movedim(-1, 1)


def _widths(x: torch.Tensor, groups: int) -> list[int]:
    """Channels of a chunk: whole groups, whole vectors of 16 bytes, from narrow to wide."""
    size, wide = x.shape[1] // groups, 16 // x.element_size()
    found = [size * k for k in range(1, groups + 1) if groups % k == 0 and k <= _MOST_GROUPS]
    return [width for width in found if width % wide == 0 and width // wide <= _THREADS]


def _configs(x: torch.Tensor, groups: int) -> list[dict[str, int]]:
    """The most promising launches: about one block for each multiprocessor, rows of at least 64 bytes."""
    rows = x.numel() // x.shape[0] // x.shape[1]
    properties = torch.cuda.get_device_properties(x.device)
    wanted, room = properties.multi_processor_count, _ROOM.get(properties.major, 0)
    widths = [w for w in _widths(x, groups) if w * x.element_size() >= 64] or _widths(x, groups)[-1:]
    found: list[tuple[float, dict[str, int]]] = []
    for width in widths[:4]:
        for cluster in _CLUSTERS:
            held = -(-rows // cluster)
            if (held * x.element_size() + 8) * width + (17 << 10) <= room and cluster <= max(1, rows // 4):
                blocks = x.shape[0] * (x.shape[1] // width) * cluster
                config = {"width": width, "cluster": cluster, "splits": 0}
                # Two blocks fit on a multiprocessor; large clusters start late.
                found.append((abs(math.log2(blocks / wanted / 1.5)) + 0.5 * math.log2(cluster), config))
    found.sort(key=lambda pair: pair[0])
    best = [config for _, config in found[:_MOST_CONFIGS]]
    width = next((w for w in widths if w * x.element_size() >= 256), widths[-1])
    chunks = x.shape[0] * (x.shape[1] // width)
    shares = dict.fromkeys(max(1, min(rows, blocks * wanted // chunks, 512)) for blocks in (4, 2))
    parts = [{"width": width, "cluster": 0, "splits": splits} for splits in shares]
    return [*best, *(parts[:1] if best else parts)]


def enter() -> None:
    """Adds the providers. The library must be loaded."""
    for plain in (group_norm, group_norm_silu):
        provide(plain.__name__, "cuda", plain, _takes, lambda x, groups, *_: _configs(x, groups))
    for summed in (add_group_norm, add_group_norm_silu, sum_group_norm_silu):
        provide(summed.__name__, "cuda", summed, _takes_added, lambda x, _b, _a, groups, *_: _configs(x, groups))
