"""Where the time of a step goes: by kernel, and by kind of kernel."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import torch

_CALLS = 3
_MOST_KERNELS = 80
_WIDEST_NAME = 160
# The first word that a kernel's name contains decides. On a CPU the names are those of ops.
_KINDS = {
    "attention": ("fmha", "flash", "attention", "sdpa"),
    "convolution": ("conv", "fprop", "implicit", "winograd"),
    "normalisation": ("norm", "welford"),
    "matrix product": ("gemm", "nvjet", "cutlass", "cublas", "matmul", "linear", "addmm", "aten::mm", "aten::bmm"),
    "copy and layout": ("memcpy", "copy", "cat", "nchw", "nhwc", "transpose", "memset", "fill", "clone"),
    "elementwise": ("elementwise", "silu", "gelu", "add", "mul", "div", "sub", "geglu", "blend", "rotary"),
}


def profiled(call: Callable[[], Any], device: torch.device) -> str:
    """Milliseconds and number of kernels per call, as text: in all, by kind, and by kernel with the longest first.

    On a CPU the same of ops. Raises RuntimeError where torch cannot profile.
    """
    from torch.autograd import DeviceType  # type: ignore[attr-defined]
    from torch.profiler import ProfilerActivity, profile

    on_cuda = device.type == "cuda"
    call()
    with profile(activities=[ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU]) as found:
        for _ in range(_CALLS):
            call()
        if on_cuda:
            torch.cuda.synchronize(device)
    spent: collections.Counter[str] = collections.Counter()
    count: collections.Counter[str] = collections.Counter()
    for event in found.events() or ():
        if on_cuda and event.device_type == DeviceType.CUDA:
            spent[event.name] += event.self_device_time_total
            count[event.name] += 1
        elif not on_cuda:
            spent[event.name] += event.self_cpu_time_total
            count[event.name] += 1
    return _text(spent, count)


def kind_of(kernel: str) -> str:
    """What a kernel of this name does, as far as its name tells."""
    name = kernel.lower()
    return next((kind for kind, words in _KINDS.items() if any(word in name for word in words)), "other")


def _text(spent: collections.Counter[str], count: collections.Counter[str]) -> str:
    kinds: collections.Counter[str] = collections.Counter()
    numbers: collections.Counter[str] = collections.Counter()
    for name in spent:
        kinds[kind_of(name)] += spent[name]
        numbers[kind_of(name)] += count[name]
    lines = [_line(sum(spent.values()), sum(count.values()), "in all"), ""]
    lines += [_line(microseconds, numbers[kind], kind) for kind, microseconds in kinds.most_common()]
    lines.append("")
    lines += [_line(spent[name], count[name], name[:_WIDEST_NAME]) for name, _ in spent.most_common(_MOST_KERNELS)]
    return "\n".join(lines)


def _line(microseconds: float, count: int, name: str) -> str:
    return f"{microseconds / 1e3 / _CALLS:9.3f} ms {count / _CALLS:7.0f}  {name}"
