"""Circumstances of a call in which a captured graph must not stand in for the module."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.nn.modules import module as module_internals

from rewriter.errors import UnsupportedTorch

_PLAIN_TENSORS = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)


def _probe(owner: Any, name: str) -> Any:
    found = getattr(owner, name, None)
    if found is None:
        raise UnsupportedTorch(
            f"torch {torch.__version__} lacks {owner.__name__}.{name}. Supported: torch 2.11 to 2.14."
        )
    return found


_function_modes = _probe(torch._C, "_len_torch_function_stack")
_dispatch_modes = _probe(torch._C, "_len_torch_dispatch_stack")
_jit_is_tracing = _probe(torch.jit, "is_tracing")
_has_global_hook = _probe(module_internals, "_has_any_global_hook")


def in_foreign_capture() -> str | None:
    """Why nothing at all may be done in this call: somebody else is recording it."""
    if torch.compiler.is_compiling():
        return "torch.compile is tracing this call"
    if _jit_is_tracing():
        return "torch.jit is tracing this call"
    return None


def circumstance(module: torch.nn.Module) -> str | None:
    """Why this call must run eagerly whatever its arguments are, or None."""
    if module.training:
        return "the module is in training mode (call .eval())"
    if _function_modes():
        return "a torch function mode is active (torch.set_default_device and `with torch.device(...)` are such modes)"
    if _dispatch_modes():
        return "a torch dispatch mode is active"
    if _has_global_hook():
        return "a global module hook is registered"
    return None


def tensor_circumstance(tensors: Sequence[torch.Tensor], weights: Iterable[torch.Tensor | None]) -> str | None:
    """Why this call must run eagerly because of what its tensors are, or None.

    `weights` is read only where gradients are on.
    """
    kinds = set()
    for tensor in tensors:
        if type(tensor) not in _PLAIN_TENSORS:
            return f"an argument is a {type(tensor).__qualname__}, not a plain tensor"
        if tensor.is_meta or tensor.layout is not torch.strided or tensor.is_quantized:
            return f"an argument is a {'meta' if tensor.is_meta else 'non-strided'} tensor"
        kinds.add(tensor.device.type)
    for kind in kinds or {"cpu"}:
        if torch.is_autocast_enabled(kind):
            return f"autocast is on for {kind}"
    if torch.is_grad_enabled():
        if any(tensor.requires_grad for tensor in tensors):
            return "gradients are on and an argument requires them (call under torch.no_grad())"
        if any(weight is not None and weight.requires_grad for weight in weights):
            return "gradients are on and the module's parameters require them (call under torch.no_grad())"
    return None


def plain_weight(weight: torch.Tensor) -> bool:
    """True for a dense parameter or buffer of no special class (quantised weights are special)."""
    return type(weight) in _PLAIN_TENSORS and weight.layout is torch.strided and not weight.is_quantized
