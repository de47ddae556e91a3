"""Circumstances of a call in which a captured graph must not stand in for the module."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

import torch

from rewriter import torch_ir

# What computes something else in training mode, beside code that asks for the mode itself, which a trace records.
_ACTING = (
    torch.nn.modules.dropout._DropoutNd,
    torch.nn.modules.batchnorm._NormBase,
    torch.nn.RReLU,
)
_PLAIN_TENSORS = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)


def in_foreign_capture() -> str | None:
    """Why nothing at all may be done in this call: somebody else is recording it."""
    if torch.compiler.is_compiling():
        return "torch.compile is tracing this call"
    if torch_ir.is_tracing():
        return "torch.jit is tracing this call"
    return None


def attention_backend() -> str | None:
    """The kernels that diffusers uses in attention layers to which none were given: a setting for all networks.

    A trace records the kernels that were used. None where diffusers has no such setting.
    """
    module = sys.modules.get("diffusers.models.attention_dispatch")
    backend = getattr(getattr(module, "_AttentionBackendRegistry", None), "_active_backend", None)
    return None if backend is None else str(getattr(backend, "value", backend))


def circumstance(module: torch.nn.Module) -> str | None:
    """Why this call must run eagerly whatever its arguments are, or None."""
    if module.training and (reason := _training(module)):
        return reason
    if torch_ir.function_modes():
        return "a torch function mode is active (torch.set_default_device and `with torch.device(...)` are such modes)"
    if torch_ir.dispatch_modes():
        return "a torch dispatch mode is active"
    if torch_ir.innermost_transform() is not None:
        return "a transform of torch.func is active"
    if torch_ir.has_global_hook():
        return "a global module hook is registered"
    return None


def _training(module: torch.nn.Module) -> str | None:
    """Why a module in training mode must run eagerly, or None.

    Without gradients, and without anything that acts differently, the mode is a flag that nobody has reset: diffusers
    leaves networks that it builds from others, such as AnimateDiff's, in it.
    """
    if torch.is_grad_enabled():
        return "the module is in training mode (call .eval())"
    for path, child in module.named_modules():
        if child.training and isinstance(child, _ACTING) and _acts(child):
            return f"the module is in training mode (call .eval()), in which {path} ({type(child).__name__}) acts"
    return None


def _acts(module: torch.nn.Module) -> bool:
    if isinstance(module, torch.nn.modules.dropout._DropoutNd):
        return module.p > 0
    return not isinstance(module, torch.nn.modules.instancenorm._InstanceNorm) or module.track_running_stats


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
