"""A number that changes between calls stays live or is part of the key: it is never ignored."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_nets import net, status, x


@pytest.mark.parametrize("positional", [True, False])
def test_a_number_stays_live(optimized: Any, positional: bool) -> None:
    module = net(lambda y, *others, scale: y * (others[0] if others else scale) + 1)
    twin = copy.deepcopy(module)
    optimized(module)
    for value in (0.5, 0.5, 0.7, 0.9, 1.1, 0.0, 1.0, 2.5, 3.5, 0.25):
        arguments: Any = ((x(), value), {}) if positional else ((x(),), {"scale": value})
        torch.testing.assert_close(module(*arguments[0], **arguments[1]), twin(*arguments[0], **arguments[1]))
    part = status(module)
    assert part.captures == 1
    assert part.eager_calls < part.calls


@pytest.mark.parametrize(
    "body",
    [
        lambda y, scale: y if scale == 1.0 else y * 2,
        lambda y, scale: y * float(scale),
        lambda y, scale: y + torch.full((1,), float(scale)),
        lambda y, scale: y.repeat(2, int(scale * 4)),
    ],
)
def test_a_number_that_cannot_stay_live_is_never_ignored(optimized: Any, body: Callable[..., Any]) -> None:
    module = net(body)
    twin = copy.deepcopy(module)
    optimized(module)
    for value in (1.0, 1.0, 0.5, 0.5, 1.0, 2.0, 2.0, 0.5):
        assert torch.equal(module(x(), scale=value), twin(x(), scale=value))
    part = status(module)
    assert part.status == "optimised"
    assert any("scale" in message for message in part.messages)


def test_a_number_hidden_from_the_trace_is_found_out_by_its_first_change(optimized: Any, monkeypatch: Any) -> None:
    from rewriter.capture import escapes

    monkeypatch.setattr(escapes, "_CONVERSIONS", frozenset())
    module = net(lambda y, scale: y * scale if scale > 0.5 else y * scale - 1)
    twin = copy.deepcopy(module)
    optimized(module)
    for value in (0.7, 0.7, 0.2, 0.2, 0.7, 0.3):
        assert torch.equal(module(x(), scale=value), twin(x(), scale=value))
    assert any("scale does not stay live" in message for message in status(module).messages)


def test_a_number_that_always_changes_ends_in_eager_calls(optimized: Any) -> None:
    module = net(lambda y, scale: y * float(scale))
    twin = copy.deepcopy(module)
    optimized(module)
    for step in range(40):
        assert torch.equal(module(x(), scale=step / 7), twin(x(), scale=step / 7))
    part = status(module)
    assert part.captures < 20
    assert any("too many graphs (one for each value of scale)" in message for message in part.messages)


@pytest.mark.parametrize("value", [7, 7.5, torch.tensor(7), torch.tensor([7, 7, 7])])
def test_a_timestep_in_any_form(optimized: Any, unet: Any, inputs: Any, equal_to_eager: Any, value: Any) -> None:
    twin = copy.deepcopy(unet)
    optimized(unet)
    for step in range(6):
        equal_to_eager(unet, twin, **inputs(batch=3, timestep=value - step))
    assert status(unet).captures == 1
