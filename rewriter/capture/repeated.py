"""Arguments that repeat for each picture of a batch what a network reads once."""

from __future__ import annotations

import sys
from typing import Any

import torch

# (module of diffusers, class, argument) -> attribute that says that all entries are read after all, or None.
_READ_ONCE = {
    ("diffusers.models.transformers.transformer_qwenimage", "QwenImageTransformer2DModel", "img_shapes"): "zero_cond_t",
    ("diffusers.models.controlnets.controlnet_qwenimage", "QwenImageControlNetModel", "img_shapes"): None,
}


def without_repeats(module: torch.nn.Module, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with one entry in the place of equal ones, where `module` makes the same of it."""
    for (place, kind, name), exception in _READ_ONCE.items():
        if type(module) is not getattr(sys.modules.get(place), kind, None):
            continue
        value = arguments.get(name)
        if type(value) is not list or len(value) < 2 or (exception and getattr(module, exception, True)):
            continue
        if all(map(_plain, value)) and all(each == value[0] for each in value):
            return {**arguments, name: value[:1]}
    return arguments


def _plain(entry: Any) -> bool:
    """Whether it is made of integers, so that equal ones are alike."""
    return type(entry) is int or (type(entry) in (list, tuple) and all(map(_plain, entry)))
