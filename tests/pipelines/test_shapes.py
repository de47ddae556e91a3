"""A hundred sizes, one trace, and no memory that grows."""

from __future__ import annotations

import copy
import gc
import random
from typing import Any

import pytest
import tiny_parts as parts
import torch

import rewriter
from rewriter.capture.compare import relative_error
from rewriter.runtime.session import components_of


def held() -> tuple[int, int]:
    """Number and bytes of all tensors alive."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if isinstance(each, torch.Tensor) and each.layout is torch.strided]
    return len(tensors), sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("kind", ["unet", "vae.decoder"])
def test_a_hundred_sizes_take_one_trace_and_no_memory(kind: str) -> None:
    module: Any = parts.unet() if kind == "unet" else parts.vae().decoder
    twin = copy.deepcopy(module)
    rewriter.optimize(module, measure=False)
    (component,) = components_of(module).values()
    choice = random.Random(0)

    def call() -> None:
        batch, height, width = choice.randint(1, 3), 2 * choice.randint(1, 6), 2 * choice.randint(1, 6)
        given: dict[str, Any] = {"sample": torch.randn(batch, 4, height, width)}
        if kind == "unet":
            given |= {"timestep": 7, "encoder_hidden_states": torch.randn(batch, choice.randint(1, 9), 16)}
        (actual,), (expected,) = (_tensors(net(**given)) for net in (module, twin))
        assert relative_error(actual, expected) <= 1e-5

    for _ in range(10):
        call()
    before = held()
    for _ in range(90):
        call()
    assert all(now <= then for now, then in zip(held(), before, strict=True))
    assert (component.journal.captures, len(component.programs)) == (1, 1)


def _tensors(value: Any) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else list(value.values())
