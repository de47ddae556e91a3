"""Where Triton kernels run: on CUDA devices, or on any device under Triton's interpreter."""

from __future__ import annotations

import functools

import torch
from triton import knobs

# What `@triton.jit` made of the kernels when they were defined: a later change of the variable changes nothing.
INTERPRETED: bool = knobs.runtime.interpret
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# Triton's own minimum.
_CAPABILITY = (8, 0)


def unavailable(tensor: torch.Tensor) -> str | None:
    """Why no Triton kernel takes the tensor, or None: its dtype (f16, bf16 and f32 are taken) or its device."""
    if tensor.dtype not in DTYPES:
        return f"no kernel for {str(tensor.dtype).removeprefix('torch.')}"
    if INTERPRETED:
        return None
    if not tensor.is_cuda:
        return f"no kernel for {tensor.device.type} outside Triton's interpreter (TRITON_INTERPRET=1)"
    capability = _capability(tensor.get_device())
    if capability < _CAPABILITY:
        return "compute capability {}.{}, expected 8.0 or newer".format(*capability)
    return None


@functools.cache
def _capability(device: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


# Of the GPU that kernels are compiled or interpreted for where tensors are on the CPU; an H100's unless said otherwise.
_assumed = 132


def assume_multiprocessors(count: int) -> None:
    """From here on tensors on the CPU stand for tensors on a GPU with so many multiprocessors."""
    global _assumed
    _assumed = count


def multiprocessors(device: torch.device) -> int:
    """How many multiprocessors share a kernel's programs."""
    return _of_gpu(device) if device.type == "cuda" else _assumed


@functools.cache
def _of_gpu(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
