"""How far a result is from another one, and what the same weights give in float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from rewriter.bench.step import Step

_HALVES = (torch.float16, torch.bfloat16)
# Of the memory that is free, float32 weights may take this share; the rest is for what the run itself needs.
_SHARE = 0.7


def tensors_of(value: Any) -> list[torch.Tensor]:
    """The tensors in a structure of plain containers, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors_of(item)]
    return []


def relative_error(output: Any, reference: Any) -> float:
    """The L2 norm of the difference of two results, relative to the reference; infinite if there is a NaN.

    Raises ValueError where they have not the same number of tensors.
    """
    pairs = list(zip(tensors_of(output), tensors_of(reference), strict=True))
    square = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
    scale = sum(float(b.double().square().sum()) for _, b in pairs)
    error = (square / scale) ** 0.5 if scale else square**0.5
    return error if error == error else float("inf")


def detached(output: Any) -> list[torch.Tensor]:
    """Copies of a result's tensors, which no later call overwrites."""
    return [tensor.detach().clone() for tensor in tensors_of(output)]


def float32_result(step: Step) -> list[torch.Tensor]:
    """What the step gives with its weights and inputs in float32 and float32 arithmetic throughout.

    The weights are widened in place, one by one, and narrowed again afterwards, which loses nothing.
    Raises torch.cuda.OutOfMemoryError.
    """
    args, kwargs = _widened((step.args, step.kwargs))
    with torch.no_grad(), _without_tf32(), _in_float32(step.module):
        return detached(step.function(*args, **kwargs))


def float32_refusal(step: Step) -> str | None:
    """Why the step cannot be run in float32 here, or None. Only a CUDA device knows its memory."""
    narrow = [tensor for tensor in _weights(step.module) if tensor.dtype in _HALVES]
    if step.device.type != "cuda" or not narrow:
        return None
    needed = sum(tensor.nbytes for tensor in narrow)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(step.device)
    if needed > _SHARE * free:
        return f"float32 weights need {needed / 2**30:.1f} GiB more, and {free / 2**30:.1f} GiB are free"
    return None


def _weights(module: torch.nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


@contextlib.contextmanager
def _in_float32(module: torch.nn.Module) -> Iterator[None]:
    narrow = [(tensor, tensor.dtype) for tensor in _weights(module) if tensor.dtype in _HALVES]
    try:
        for tensor, _ in narrow:
            tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, dtype in narrow:
            tensor.data = tensor.data.to(dtype)


@contextlib.contextmanager
def _without_tf32() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _widened(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.float() if value.dtype in _HALVES else value
    if isinstance(value, Mapping):
        return {key: _widened(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_widened(item) for item in value)
    if isinstance(value, list):
        return [_widened(item) for item in value]
    return value
