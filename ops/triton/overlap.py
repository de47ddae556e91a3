"""Launches that begin while the kernel before them still runs: programmatic dependent launch, on sm_90 and newer.

Between the end of a kernel and the first instruction of the next one lies about a microsecond, in a CUDA graph too: a
fifth of a small norm. A kernel launched with the attribute is set up in that time: its programs take their places once
every program of the kernel before has ended or called `let_next_begin`. What that kernel writes is not there for
certain then, hence the rules that every kernel here keeps:

- `wait_for_earlier` stands before the first access to memory, on the way of every program. Before reads, because an
  earlier kernel may still be writing; before writes, because an earlier kernel may still be reading what lay there: the
  allocator hands the memory of a tensor that is no longer needed to the next one. Weights are no exception, since the
  kernel before may be one that prepares them anew.
- The wait returns when the kernel before has ended as a whole and what it wrote can be read. That one has waited in
  turn, so all kernels before it have ended as well. A kernel that does not wait would break this for those behind it:
  none is launched with the attribute.
- `let_next_begin` stands before the last stores of a kernel that its own op follows up with another one, and promises
  nothing about what is written. Elsewhere the end of each program counts as the call: what is let in much earlier takes
  the places that happen to be free, which shares out its work badly, and long kernels need more registers for the call.

Kernels without the attribute (those of torch, cuBLAS and cuDNN) begin when the kernel before has ended, whatever it has
called. A kernel with it gains behind them too.

Recorded into a CUDA graph, the attribute becomes the kind of the edge from the kernel before on the same stream (CUDA
Programming Guide, "Programmatic Dependent Launch and Synchronization"). Only an edge between two kernels can be of that
kind: behind a copy, and towards other streams, edges mean a complete end, as ever. Where streams join, the wait is for
all kernels that the launch depends on. Edges of that kind are lost on functions that list a graph's edges without their
data, which fail with cudaErrorLossyQuery.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools

import torch
import triton
import triton.language as tl

from rewriter.ops.triton.device import INTERPRETED, capability

_OLDEST = (9, 0)
# Graphs of older drivers have no edges of another kind: CUDA 12.3 brought them.
_OLDEST_DRIVER = 12030


def overlapping(device: torch.device) -> dict[str, bool]:
    """What a kernel that keeps the rules above is launched with for tensors on the device.

    Its constant OVERLAP, and the attribute where there is one: neither that nor the instructions exist before sm_90 and
    in the interpreter. Triton compiles for both, so compiling ahead has to ask for the same.
    """
    if INTERPRETED or torch.version.hip is not None or capability(device) < _OLDEST or 0 < _driver() < _OLDEST_DRIVER:
        return {"OVERLAP": False}
    return {"OVERLAP": True, "launch_pdl": True}


@functools.cache
def _driver() -> int:
    """The newest CUDA that the driver knows, as 1000 * major + 10 * minor; 0 where there is no driver."""
    version = ctypes.c_int(0)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    return version.value


@triton.jit
def wait_for_earlier(OVERLAP: tl.constexpr):  # type: ignore[no-untyped-def]
    """Nothing in memory is read or written before this."""
    if OVERLAP:
        tl.extra.cuda.gdc_wait()


@triton.jit
def let_next_begin(OVERLAP: tl.constexpr):  # type: ignore[no-untyped-def]
    """The next kernel may begin, and wait, once all programs have come here or have ended."""
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
