"""What the device can do at most, measured, and how much of that a step asks for."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from rewriter.bench.modes import plain_call
from rewriter.bench.step import Step
from rewriter.bench.timing import synchronise

# Rows of the square matrices and bytes of the copy; a CPU would take minutes for a GPU's.
_ROWS = {"cuda": 8192, "cpu": 512}
_BYTES = {"cuda": 2**31, "cpu": 2**26}
_RUNS = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ceilings:
    """tflops: 1e12 operations per second of a square matrix product. copy: 1e9 bytes per second, read and written."""

    tflops: float
    copy: float
    rows: int


def ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measures both on the device, the product in the dtype. Raises torch.cuda.OutOfMemoryError."""
    rows, size = _ROWS.get(device.type, 512), _BYTES.get(device.type, 2**26)
    left = torch.randn(rows, rows, device=device, dtype=dtype)
    right, product = torch.randn_like(left), torch.empty_like(left)
    source = torch.empty(size, device=device, dtype=torch.uint8)
    place = torch.empty_like(source)
    with torch.no_grad():
        gemm = _median(lambda: torch.mm(left, right, out=product), device)
        copy = _median(lambda: place.copy_(source), device)
    return Ceilings(tflops=2 * rows**3 / gemm / 1e12, copy=2 * size / copy / 1e9, rows=rows)


def flops_of(step: Step) -> int:
    """Operations of matrix products, convolutions and attention in one eager call, as torch's counter has them."""
    from torch.utils.flop_counter import FlopCounterMode

    call = plain_call(step)
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def _median(call: Callable[[], Any], device: torch.device) -> float:
    seconds = []
    for _ in range(2):
        call()
    for _ in range(_RUNS):
        synchronise(device)
        start = time.perf_counter()
        call()
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
