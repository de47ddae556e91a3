"""Circumstances of a call in which a captured graph must not stand in for the module."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from rewriter import torch_ir

_PLAIN_TENSORS = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)


def in_foreign_capture() -> str | None:
    """Why nothing at all may be done in this call: somebody else is recording it."""
    if torch.compiler.is_compiling():
        return "torch.compile is tracing this call"
    if torch_ir.is_tracing():
        return "torch.jit is tracing this call"
    return None


def circumstance(module: torch.nn.Module) -> str | None:
    """Why this call must run eagerly whatever its arguments are, or None."""
    if module.training:
        return "the module is in training mode (call .eval())"
    if torch_ir.function_modes():
        return "a torch function mode is active (torch.set_default_device and `with torch.device(...)` are such modes)"
    if torch_ir.dispatch_modes():
        return "a torch dispatch mode is active"
    if torch_ir.innermost_transform() is not None:
        return "a transform of torch.func is active"
    if torch_ir.has_global_hook():
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
