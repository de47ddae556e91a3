"""Where Triton kernels run: on CUDA devices, or on any device under Triton's interpreter."""

from __future__ import annotations

import dataclasses
import functools

import torch
from triton import knobs

# What `@triton.jit` made of the kernels when they were defined: a later change of the variable changes nothing.
INTERPRETED: bool = knobs.runtime.interpret
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# Triton's own minimum.
_OLDEST = (8, 0)


def unavailable(tensor: torch.Tensor) -> str | None:
    """Why no Triton kernel takes the tensor, or None: its dtype (f16, bf16 and f32 are taken) or its device."""
    if tensor.dtype not in DTYPES:
        return f"no kernel for {str(tensor.dtype).removeprefix('torch.')}"
    if INTERPRETED:
        return None
    if not tensor.is_cuda:
        return f"no kernel for {tensor.device.type} outside Triton's interpreter (TRITON_INTERPRET=1)"
    found = capability(tensor.device)
    if found < _OLDEST:
        return "compute capability {}.{}, expected 8.0 or newer".format(*found)
    return None


@dataclasses.dataclass(frozen=True, slots=True)
class _Gpu:
    capability: tuple[int, int]
    multiprocessors: int


# What kernels are compiled or interpreted for where tensors are on the CPU; an H100 unless said otherwise.
_assumed = _Gpu((9, 0), 132)


def assume(capability: tuple[int, int], multiprocessors: int) -> None:
    """From here on tensors on the CPU stand for tensors on such a GPU."""
    global _assumed
    _assumed = _Gpu(capability, multiprocessors)


def capability(device: torch.device) -> tuple[int, int]:
    """The compute capability, major and minor, that kernels for tensors on the device are compiled for."""
    return _gpu(device).capability if device.type == "cuda" else _assumed.capability


def multiprocessors(device: torch.device) -> int:
    """How many multiprocessors share a kernel's programs."""
    return _gpu(device).multiprocessors if device.type == "cuda" else _assumed.multiprocessors


@functools.cache
def _gpu(device: torch.device) -> _Gpu:
    properties = torch.cuda.get_device_properties(device)
    return _Gpu((properties.major, properties.minor), properties.multi_processor_count)
