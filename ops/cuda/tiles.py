"""What the kernels for Hopper take (those of `csrc/*.cu`), and how their blocks share the work."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from rewriter.ops.precision import NARROW
from rewriter.ops.registry import Config

Optional = torch.Tensor | None

# The columns of a tile, and the elements along the depth that one step multiplies.
_COLUMNS, _DEPTH = 160, 64
_LARGEST_CLUSTER = 8
_CONFIGS = 4
# In clocks, for 128 rows of a tile: what the tensor cores take for a step, and what its end takes. A split waits for
# the others and adds up. Bytes that L2 gives a multiprocessor in a clock.
_PRODUCT, _END, _SPLIT, _BYTES = 640, 1000, 3000, 31
# Blocks of a cluster that share rows, and columns. Of four that share, too few clusters run at once.
_SHARED = {128: ((2, 1), (1, 2), (1, 1)), 256: ((2, 1), (1, 2))}


def ways_to_share(device: torch.Tensor, rows: int, filters: int, steps: int, *, split: bool = True) -> Sequence[Config]:
    """Ways to make `rows` x `filters` results of so many steps of the depth, best first by an estimate.

    device: a tensor there. rows: of a block's results; across, along: blocks of a cluster that share rows, and columns;
    splits: those that share the steps along the depth, where they may (`split`).
    """
    columns = math.ceil(filters / _COLUMNS)
    estimates: list[tuple[float, int, int, int, int]] = []
    for height, shared in _SHARED.items():
        tiles = math.ceil(rows / height)
        for splits in (1, 2, 4, 8) if split and height == 128 else (1,):
            for across, along in shared:
                size = across * along * splits
                if size > _LARGEST_CLUSTER or across > columns or along > tiles or 1 < splits > steps // 4:
                    continue
                clusters = math.ceil(tiles / along) * math.ceil(columns / across)
                turns = math.ceil(clusters / max(1, torch.ops.rewriter_cuda.clusters(device, size)))
                product = _PRODUCT * height / 128
                step = max(product, 2 * (height / across + _COLUMNS / along) * _DEPTH / _BYTES)
                end = _END * height / 128 + (splits > 1) * _SPLIT
                estimates.append((turns * (step * steps / splits + end), height, across, along, splits))
    names = ("rows", "across", "along", "splits")
    return [dict(zip(names, way, strict=True)) for _, *way in sorted(estimates)[:_CONFIGS]]


def steps_of(depth: int) -> int:
    """How many steps of the depth so many elements are."""
    return math.ceil(depth / _DEPTH)


def refusal(x: torch.Tensor, weight: torch.Tensor, bias: Optional) -> str | None:
    """Why no kernel here takes the operands, whatever their shapes; None where that is no hindrance."""
    operands = [x, weight] if bias is None else [x, weight, bias]
    reason = elsewhere(*operands)
    if reason is not None:
        return reason
    if x.dtype not in NARROW or any(operand.dtype != x.dtype for operand in operands):
        return "only f16 and bf16 have tensor cores that keep their precision"
    if 0 in (x.numel(), weight.numel()):
        return "an empty product"
    if not (aligned(x) and aligned(weight)):
        return "operands that do not start at a multiple of 16 bytes"
    if max(x.numel(), weight.numel()) >= 2**31:
        return "more than 2^31 elements"
    if bias is not None and (bias.shape != weight.shape[:1] or bias.stride(0) != 1):
        return "the bias is not a dense vector"
    if bias is not None and bias.data_ptr() % 4:
        return "a bias that does not start at a multiple of 4 bytes"
    return None


def elsewhere(*operands: torch.Tensor) -> str | None:
    """Why the operands lie where no kernel for Hopper runs, or None."""
    device = operands[0].device
    if not all(operand.is_cuda and operand.device == device for operand in operands):
        return "the operands are not all on one CUDA device"
    if torch.cuda.get_device_capability(device) != (9, 0):
        return "only for GPUs of compute capability 9.0"
    return None


def aligned(tensor: torch.Tensor) -> bool:
    """Whether the tensor starts at a multiple of 16 bytes, as the copy engine wants it."""
    return tensor.data_ptr() % 16 == 0
