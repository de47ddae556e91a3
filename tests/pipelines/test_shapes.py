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
    torch.manual_seed(0)

    def call(batch: int, height: int, width: int, tokens: int) -> None:
        given: dict[str, Any] = {"sample": torch.randn(batch, 4, 2 * height, 2 * width)}
        if kind == "unet":
            given |= {"timestep": 7, "encoder_hidden_states": torch.randn(batch, tokens, 16)}
        (actual,), (expected,) = (_tensors(net(**given)) for net in (module, twin))
        assert relative_error(actual, expected) <= 1e-5

    def held_after(calls: int) -> tuple[int, int]:
        for _ in range(calls):
            call(choice.randint(1, 3), choice.randint(1, 6), choice.randint(1, 6), choice.randint(1, 9))
        # A call of a new size, which is compared with eager, leaves other views of weights behind than later ones.
        for _ in range(3):
            call(1, 7, 7, 9)
        return held()

    before = held_after(10)
    assert all(now <= then for now, then in zip(held_after(90), before, strict=True))
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


# Latent heights and widths: the size of the configuration, smaller and larger ones, odd numbers of tokens, and numbers
# of tokens that are and are not multiples of what Z-Image fills its sequences up to.
SIZES = ((8, 8), (8, 16), (16, 8), (4, 4), (6, 10), (16, 16), (2, 14), (24, 12))


def _pixart(batch: int, height: int, width: int, tokens: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(batch, 4, height, width),
        "encoder_hidden_states": torch.randn(batch, tokens, 16),
        "timestep": torch.full((batch,), 500),
        "encoder_attention_mask": torch.ones(batch, tokens),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def _qwen_image(batch: int, height: int, width: int, tokens: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(batch, height * width // 4, 16),
        "encoder_hidden_states": torch.randn(batch, tokens, 16),
        "encoder_hidden_states_mask": torch.ones(batch, tokens, dtype=torch.long),
        "timestep": torch.rand(batch),
        "img_shapes": [[(1, height // 2, width // 2)]] * batch,
    }


def _z_image(batch: int, height: int, width: int, tokens: int) -> dict[str, Any]:
    return {
        "x": [torch.randn(4, 1, height, width) for _ in range(batch)],
        "t": torch.rand(batch),
        "cap_feats": [torch.randn(tokens, 16) for _ in range(batch)],
    }


def _transformers(case: str) -> tuple[Any, Any]:
    """A pipeline's transformer and a copy; no weight is zero, so that what is filled up shows."""
    network = CASES[case].build().transformer
    torch.manual_seed(0)
    for weight in network.parameters():
        weight.normal_(std=0.2)
    return network, copy.deepcopy(network)


@pytest.mark.parametrize("order", [1, -1], ids=["as listed", "reversed"])
@pytest.mark.parametrize(
    ("case", "arguments", "batches"),
    [("pixart-alpha", _pixart, (2, 1, 3)), ("qwen-image", _qwen_image, (2, 1, 3)), ("z-image", _z_image, (2, 2, 2))],
)
def test_one_trace_serves_every_size_where_positions_are_computed_in_python(
    case: str, arguments: Any, batches: tuple[int, ...], order: int
) -> None:
    network, twin = _transformers(case)
    rewriter.optimize(network, measure=False)
    (component,) = components_of(network).values()
    for index, (height, width) in enumerate(SIZES[::order]):
        # The first call may be one that is compared with eager, and what it returns eager's.
        for _ in range(2):
            given = arguments(batches[index % 3], height, width, (14, 32, 40, 5)[index % 4])
            results = [_tensors(net(**copy.deepcopy(given))) for net in (network, twin)]
            assert max(relative_error(a, b) for a, b in zip(*results, strict=True)) <= 1e-5, (height, width)
    assert (component.journal.captures, len(component.programs)) == (1, 1)
    assert component.journal.eager_calls <= len(SIZES)


@pytest.mark.parametrize("first", [0, 1])
def test_pictures_of_several_sizes_and_texts_of_several_lengths_in_one_call_are_right(first: int) -> None:
    network, twin = _transformers("z-image")
    rewriter.optimize(network, measure=False)
    shapes: list[list[tuple[int, int, int]]] = [[(8, 8, 14), (8, 8, 14)], [(8, 16, 14), (16, 16, 40)]]
    for pictures in (shapes[first], shapes[1 - first], shapes[first], shapes[1 - first]):
        given = {
            "x": [torch.randn(4, 1, height, width) for height, width, _ in pictures],
            "t": torch.rand(2),
            "cap_feats": [torch.randn(tokens, 16) for _, _, tokens in pictures],
        }
        results = [_tensors(net(**copy.deepcopy(given))) for net in (network, twin)]
        assert max(relative_error(a, b) for a, b in zip(*results, strict=True)) <= 1e-5


def _tensors(value: Any) -> list[torch.Tensor]:
    values = [value] if isinstance(value, torch.Tensor) else list(value.values())
    return values[0] if isinstance(values[0], list) else values
