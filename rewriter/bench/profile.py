"""Where the time of a step goes: by kernel, and by kind of kernel."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import torch

_CALLS = 3
_MOST_KERNELS = 80
_WIDEST_NAME = 160
_OPS = ("aten::", "rewriter::")
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

    On a CPU the same of ops. On a GPU also by op of the graph, where all that a replay keeps from call to call is
    computed in each. Raises RuntimeError where torch cannot profile.
    """
    from torch.autograd import DeviceType  # type: ignore[attr-defined]

    on_cuda = device.type == "cuda"
    call()
    spent: collections.Counter[str] = collections.Counter()
    count: collections.Counter[str] = collections.Counter()
    for event in _events(call, device, cuda_only=on_cuda):
        if on_cuda and event.device_type == DeviceType.CUDA:
            spent[event.name] += event.self_device_time_total
            count[event.name] += 1
        elif not on_cuda:
            spent[event.name] += event.self_cpu_time_total
            count[event.name] += 1
    return "\n".join([*_by_kind(spent, count), *(_by_op(call, device) if on_cuda else ())])


def _by_op(call: Callable[[], Any], device: torch.device) -> list[str]:
    """Kernels by the op of the rewritten graph that launches them: an op of ours stands for the rules that make it."""
    from rewriter.runtime.cuda_graphs import launching

    spent: collections.Counter[str] = collections.Counter()
    count: collections.Counter[str] = collections.Counter()
    with launching():
        call()
        for event in _events(call, device, cuda_only=False):
            if event.kernels:
                name = _outermost(event)
                spent[name] += sum(kernel.duration for kernel in event.kernels)
                count[name] += len(event.kernels)
    lines = ["", "launched op by op:", _line(sum(spent.values()), sum(count.values()), "in all"), ""]
    return [*lines, *(_line(spent[name], count[name], name) for name, _ in spent.most_common(_MOST_KERNELS))]


def _outermost(event: Any) -> str:
    """The op that a graph has: it calls others."""
    name = event.name
    while event is not None:
        if event.name.startswith(_OPS):
            name = event.name
        event = event.cpu_parent
    return str(name)


def _events(call: Callable[[], Any], device: torch.device, *, cuda_only: bool) -> list[Any]:
    from torch.profiler import ProfilerActivity, profile

    on_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CUDA] if on_cuda else []
    with profile(activities=[*activities, *(() if cuda_only else (ProfilerActivity.CPU,))]) as found:
        for _ in range(_CALLS):
            call()
        if on_cuda:
            torch.cuda.synchronize(device)
    return list(found.events() or ())


def kind_of(kernel: str) -> str:
    """What a kernel of this name does, as far as its name tells."""
    name = kernel.lower()
    return next((kind for kind, words in _KINDS.items() if any(word in name for word in words)), "other")


def _by_kind(spent: collections.Counter[str], count: collections.Counter[str]) -> list[str]:
    kinds: collections.Counter[str] = collections.Counter()
    numbers: collections.Counter[str] = collections.Counter()
    for name in spent:
        kinds[kind_of(name)] += spent[name]
        numbers[kind_of(name)] += count[name]
    lines = [_line(sum(spent.values()), sum(count.values()), "in all"), ""]
    lines += [_line(microseconds, numbers[kind], kind) for kind, microseconds in kinds.most_common()]
    lines.append("")
    lines += [_line(spent[name], count[name], name[:_WIDEST_NAME]) for name, _ in spent.most_common(_MOST_KERNELS)]
    return lines


def _line(microseconds: float, count: int, name: str) -> str:
    return f"{microseconds / 1e3 / _CALLS:9.3f} ms {count / _CALLS:7.0f}  {name}"
