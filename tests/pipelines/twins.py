"""An optimised pipeline beside an eager one: the same picture, and the same from every network on the same inputs."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from rewriter.capture.compare import relative_error
from rewriter.runtime.networks import find_networks


def draw(pipe: Any, seed: int = 0, **call: Any) -> np.ndarray:
    """The pictures or frames of a call, as floats between 0 and 1."""
    torch.manual_seed(seed)
    arguments = {
        "num_inference_steps": 2,
        "output_type": "np",
        "generator": torch.Generator().manual_seed(seed),
        **call,
    }
    result = pipe(**copy.deepcopy(arguments))
    return np.asarray(result.images if hasattr(result, "images") else result.frames)


def picture_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Relative L2 distance of two results of `draw`."""
    assert actual.shape == expected.shape
    assert np.isfinite(expected).all()
    distance = np.linalg.norm(actual.astype(np.float64) - expected.astype(np.float64))
    return float(distance / np.linalg.norm(expected.astype(np.float64)))


def tensors_of(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if hasattr(value, "to_tuple"):
        value = value.to_tuple()
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for item in value for tensor in tensors_of(item)] if isinstance(value, list | tuple) else []


@contextlib.contextmanager
def compared(pipe: Any, twin: Any) -> Iterator[dict[str, float]]:
    """Repeats each network's call in the twin's network; yields the largest relative L2 error of each."""
    errors: dict[str, float] = {}
    handles = []
    for name, (module, original) in pairs(pipe, twin).items():
        expected: list[Any] = []

        # Before the call, which may take things out of the lists that it is given.
        def before(_: Any, args: Any, kwargs: Any, original: Any = original, expected: list[Any] = expected) -> None:
            state = torch.get_rng_state()
            expected.append(original(*copy.deepcopy(args), **copy.deepcopy(kwargs)))
            torch.set_rng_state(state)

        def after(_: Any, __: Any, output: Any, name: str = name, expected: list[Any] = expected) -> None:
            both = zip(tensors_of(output), tensors_of(expected.pop()), strict=True)
            found = max((relative_error(a, b) for a, b in both if b.is_floating_point()), default=0.0)
            errors[name] = max(errors.get(name, 0.0), found)

        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after))
    try:
        yield errors
    finally:
        for handle in handles:
            handle.remove()


def pairs(pipe: Any, twin: Any) -> dict[str, tuple[torch.nn.Module, torch.nn.Module]]:
    """Each network and the one in the twin that it is a copy of."""
    originals = find_networks(twin)
    return {name: (module, originals[name]) for name, module in find_networks(pipe).items()}
