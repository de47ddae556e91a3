"""A hundred sizes, one trace, and no memory that grows."""

from __future__ import annotations

import copy
import gc
import random
from typing import Any

import pytest
import tiny_parts as parts
import torch
from tiny_pipelines import CASES
from twins import draw

import rewriter
from rewriter.capture.compare import relative_error
from rewriter.runtime.session import components_of

# diffusers' Euler scheduler and numpy 2 disagree about a keyword; nothing here can change that.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


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


def test_a_pipeline_of_a_hundred_sizes_holds_no_more_memory() -> None:
    case = CASES["sd15"]
    pipe = case.build()
    rewriter.optimize(pipe, measure=False)
    choice = random.Random(0)

    def call() -> None:
        given = {**case.call, "height": 8 * choice.randint(1, 6), "width": 8 * choice.randint(1, 6)}
        draw(pipe, num_inference_steps=1, **given, num_images_per_prompt=choice.randint(1, 2))

    for _ in range(20):
        call()
    before = held()
    for _ in range(80):
        call()
    assert all(now <= then for now, then in zip(held(), before, strict=True))
    captures = {name: part.journal.captures for name, part in components_of(pipe).items()}
    assert captures == {"text_encoder": 1, "unet": 1, "vae.decoder": 1, "vae.encoder": 0}


def _tensors(value: Any) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else list(value.values())
