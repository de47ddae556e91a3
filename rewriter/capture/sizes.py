"""Lets one trace serve all sizes where a network computes with sizes in Python, or decides by them.

While a module is traced, its sizes are 0-dim tensors. Python's `len`, `int` and `max` make plain numbers of them,
caches take them for keys, and an `if` goes the way of one size. Where it is known that another form gives the same
result for every size, that form is traced; like every trace it is compared with eager before it is used.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import operator
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from rewriter import torch_ir

_QWEN = "diffusers.models.transformers.transformer_qwenimage"
_Z_IMAGE = "diffusers.models.transformers.transformer_z_image"
_EMBEDDINGS = "diffusers.models.embeddings"


@contextlib.contextmanager
def followed(module: torch.nn.Module) -> Iterator[None]:
    """Active while `module` is traced, by one thread at a time; calls of other threads go on as before."""
    with contextlib.ExitStack() as stack:
        for name, functions in _FUNCTIONS.items():
            if name in sys.modules:
                stack.enter_context(_replaced(sys.modules[name], functions))
        for name, kinds in _METHODS.items():
            for kind, methods in kinds.items():
                if hasattr(sys.modules.get(name), kind):
                    found = getattr(sys.modules[name], kind)
                    changed = {key: wrap(vars(found)[key]) for key, wrap in methods.items() if key in vars(found)}
                    stack.enter_context(_replaced(found, changed))
        for child in module.modules():
            if _keeps_positions(child):
                # No size is this one, so the positions of each are computed.
                stack.enter_context(_replaced(child, {"height": -1}))
        yield


def _keeps_positions(module: torch.nn.Module) -> bool:
    """Whether it keeps the positions for one size, and computes those for others in the same way."""
    kind = getattr(sys.modules.get(_EMBEDDINGS), "PatchEmbed", None)
    if type(module) is not kind or getattr(module, "pos_embed_max_size", None):
        return False
    patches: Any = module
    kept = patches.pos_embed
    return patches.height == patches.width and kept is not None and kept.shape[1] == patches.height * patches.width


@contextlib.contextmanager
def _replaced(owner: Any, attributes: Mapping[str, Any]) -> Iterator[None]:
    own = vars(owner)
    before = {name: own[name] for name in attributes if name in own}
    for name, value in attributes.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name in attributes:
            if name in before:
                setattr(owner, name, before[name])
            else:
                delattr(owner, name)


def _is_size(value: Any) -> bool:
    """Whether a trace has it for an integer."""
    if not isinstance(value, torch.Tensor) or not torch_ir.is_tracing():
        return False
    return value.dim() == 0 and value.dtype == torch.int64


def _length(value: Any) -> Any:
    traced = isinstance(value, torch.Tensor) and torch_ir.is_tracing()
    return value.shape[0] if traced and value.dim() else builtins.len(value)


def _integer(*args: Any) -> Any:
    return args[0] if len(args) == 1 and _is_size(args[0]) else builtins.int(*args)


def _largest(*args: Any, **kwargs: Any) -> Any:
    values = list(args[0]) if len(args) == 1 else list(args)
    if kwargs or not any(map(_is_size, values)) or not all(_is_size(each) or type(each) is int for each in values):
        return builtins.max(values, **kwargs) if len(args) == 1 else builtins.max(*args, **kwargs)
    return functools.reduce(torch.maximum, (each if _is_size(each) else torch.tensor(each) for each in values))


def _uncached(method: Callable[..., Any]) -> Callable[..., Any]:
    """Without the cache around it, in which sizes under trace would stay."""
    inner = getattr(method, "__wrapped__", method)

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        return (inner if torch_ir.is_tracing() else method)(*args, **kwargs)

    return call


class _AlsoZero(TorchFunctionMode):
    """`n > 0` as `n >= 0`."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        greater = getattr(func, "__name__", "") in ("gt", "__gt__")
        if greater and _is_size(args[0]) and type(args[1]) is int and args[1] == 0:
            return operator.ge(args[0], 0)
        return func(*args, **(kwargs or {}))


def _padding_always(method: Callable[..., Any]) -> Callable[..., Any]:
    """With rows added at the end even where that is none of them, which changes nothing."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _AlsoZero() if torch_ir.is_tracing() else contextlib.nullcontext():
            return method(*args, **kwargs)

    return call


# Modules whose functions call Python's own under these names, for nothing but what the replacements understand.
_FUNCTIONS: dict[str, dict[str, Callable[..., Any]]] = {
    _QWEN: {"int": _integer, "max": _largest},
    _Z_IMAGE: {"len": _length, "max": _largest},
}
_METHODS: dict[str, dict[str, dict[str, Callable[..., Any]]]] = {
    _QWEN: {
        "QwenEmbedRope": {"_compute_video_freqs": _uncached},
        "QwenEmbedLayer3DRope": {"_compute_video_freqs": _uncached, "_compute_condition_freqs": _uncached},
    },
    _Z_IMAGE: {"ZImageTransformer2DModel": {"_pad_with_ids": _padding_always}},
}
