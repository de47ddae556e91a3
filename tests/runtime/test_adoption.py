"""A network whose weights lie in what the default rules prepared from them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

import rewriter

pytestmark = pytest.mark.usefixtures("weights_move")


@pytest.fixture
def ready(make_unet: Any, inputs: Any) -> tuple[Any, Any, dict[str, Any]]:
    """An optimised UNet, its eager twin, and inputs that it has been called with."""
    unet = make_unet()
    twin = copy.deepcopy(unet)
    rewriter.optimize(unet, measure=False)
    given = inputs()
    with torch.no_grad():
        unet(**given)
    return unet, twin, given


def close(unet: Any, twin: Any, given: dict[str, Any]) -> None:
    with torch.no_grad():
        found, wanted = unet(**given)[0], twin(**given)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_prepared_weights_cost_next_to_nothing(ready: tuple[Any, Any, dict[str, Any]]) -> None:
    unet, twin, given = ready
    close(unet, twin, given)
    (part,) = rewriter.report(unet).components.values()
    assert part.status == "optimised"
    total = sum(weight.numel() * weight.element_size() for weight in twin.parameters())
    assert part.memory < 0.05 * total
    moved = [weight for weight in unet.parameters() if weight.untyped_storage().nbytes() > weight.nbytes]
    assert moved


def test_restoring_gives_each_weight_its_own_memory_again(ready: tuple[Any, Any, dict[str, Any]]) -> None:
    unet, twin, _ = ready
    objects = list(unet.parameters())
    rewriter.restore(unet)
    for weight, kept, other in zip(unet.parameters(), objects, twin.parameters(), strict=True):
        assert weight is kept
        assert torch.equal(weight, other)
        assert weight.stride() == other.stride()
        assert weight.untyped_storage().nbytes() == weight.nbytes


def test_every_way_to_change_weights_is_seen(ready: tuple[Any, Any, dict[str, Any]]) -> None:
    unet, twin, given = ready
    for module in (unet, twin):
        generator = torch.Generator().manual_seed(1)
        fresh = {
            key: value + 0.1 * torch.randn(value.shape, generator=generator)
            for key, value in module.state_dict().items()
        }
        module.load_state_dict(fresh)
    close(unet, twin, given)
    for module in (unet, twin):
        for weight in module.parameters():
            weight.data.mul_(0.9)
    close(unet, twin, given)
    for module in (unet, twin):
        for weight in module.parameters():
            weight.data = weight.data * 1.1
    close(unet, twin, given)
    (part,) = rewriter.report(unet).components.values()
    assert part.captures == 1
    assert part.memory < 0.05 * sum(weight.nbytes for weight in twin.parameters())


def test_saved_weights_are_the_networks(ready: tuple[Any, Any, dict[str, Any]], tmp_path: Path) -> None:
    unet, twin, _ = ready
    unet.save_pretrained(tmp_path)
    loaded = UNet2DConditionModel.from_pretrained(tmp_path)
    for (name, weight), other in zip(loaded.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(weight, other), name


def test_a_copy_is_independent(ready: tuple[Any, Any, dict[str, Any]]) -> None:
    unet, twin, given = ready
    second = copy.deepcopy(unet)
    with torch.no_grad():
        for weight in second.parameters():
            weight.zero_()
    close(unet, twin, given)


def swap_data(module: Any) -> Callable[[], None]:
    """As for a moving average: each parameter gets the other's memory, and back."""
    other = [weight.data * 1.5 for weight in module.parameters()]

    def swap() -> None:
        for index, weight in enumerate(module.parameters()):
            weight.data, other[index] = other[index], weight.data

    swap()
    return swap


def assign(module: Any) -> Callable[[], None]:
    before = dict(module.named_parameters())
    module.load_state_dict({name: weight * 1.5 for name, weight in before.items()}, assign=True)
    return lambda: module.load_state_dict(before, assign=True) and None


def replace_one_of_three(module: Any) -> Callable[[], None]:
    (projection, *_) = [child for name, child in module.named_modules() if name.endswith("attn1.to_q")]
    before = projection.weight
    projection.weight = torch.nn.Parameter(before * 1.5)
    return lambda: setattr(projection, "weight", before)


@pytest.mark.parametrize("change", [swap_data, assign, replace_one_of_three])
def test_weights_that_are_put_back_are_as_they_were(
    ready: tuple[Any, Any, dict[str, Any]], change: Callable[[Any], Callable[[], None]]
) -> None:
    unet, twin, given = ready
    saved = {name: weight.clone() for name, weight in unet.state_dict().items()}
    back = [change(module) for module in (unet, twin)]
    close(unet, twin, given)
    for undo in back:
        undo()
    assert all(torch.equal(weight, saved[name]) for name, weight in unet.state_dict().items())
    close(unet, twin, given)


def test_a_call_with_other_weights_leaves_the_modules_own_alone(ready: tuple[Any, Any, dict[str, Any]]) -> None:
    unet, twin, given = ready
    others = {name: weight * 1.5 for name, weight in twin.state_dict().items()}
    with torch.no_grad():
        found, wanted = (
            torch.func.functional_call(module, copy.deepcopy(others), (), given)[0] for module in (unet, twin)
        )
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    close(unet, twin, given)
