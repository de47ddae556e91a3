"""The scales of IP-Adapters as numbers of a call."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

from rewriter.capture.state import Snapshot


def network(*scales: Any) -> torch.nn.ModuleList:
    layers = [IPAdapterAttnProcessor2_0(4, 4, num_tokens=[4] * len(scale), scale=list(scale)) for scale in scales]
    return torch.nn.ModuleList(layers).eval()


def scales_of(module: Any) -> list[Any]:
    return [layer.scale for layer in module]


def test_equal_scales_are_one_number() -> None:
    snapshot = Snapshot(network([0.5, 1], [1.0, 0.5], [0, 0.25]))
    assert snapshot.scales.values == [0.5, 1.0, 0.25]
    assert snapshot.scales.paths == ["0.scale[0]", "0.scale[1]", "2.scale[1]"]


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ([[0.5], [0.5]], [[0.7], [0.7]], True),
        ([[0.5], [0.5]], [[1], [1]], True),
        ([[0.5], [0.25]], [[-2.0], [4.0]], True),
        ([[0.5], [0.5]], [[0.5], [0.7]], False),
        ([[0.5], [0.0]], [[0.5], [0.5]], False),
        ([[0.5], [0.5]], [[0.0], [0.0]], False),
        ([[0.5], [0.5]], [[float("inf")], [float("inf")]], False),
        ([[[0.5]], [0.5]], [[[0.7]], [0.5]], False),
    ],
)
def test_one_trace_serves_scales_that_are_equal_and_zero_in_the_same_places(
    before: Any, after: Any, same: bool
) -> None:
    module: Any = network(*before)
    first = Snapshot(module)
    for layer, scale in zip(module, after, strict=True):
        layer.scale[:] = scale
    assert not first.unchanged(module)
    assert (Snapshot(module).fingerprint == first.fingerprint) is same


class Other(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = [0.5]


def test_the_scales_of_other_classes_are_a_part_of_the_trace() -> None:
    for module in (Other(), type("Derived", (IPAdapterAttnProcessor2_0,), {})(4, 4, scale=0.5)):
        first = Snapshot(module)
        assert first.scales.values == []
        module.scale[0] = 0.7
        assert Snapshot(module).fingerprint != first.fingerprint


def test_scales_are_put_back_even_after_an_error() -> None:
    module: Any = network([0.5, 1], [0.5, 0])
    snapshot = Snapshot(module)
    given = [torch.tensor(3.0), torch.tensor(0.0)]
    with contextlib.suppress(ValueError), snapshot.scales.given(given):
        assert scales_of(module)[0] == given
        # Known to be other than zero, whatever the tensor holds.
        assert [scale == 0 for scale in scales_of(module)[0]] == [False, False]
        assert scales_of(module)[1][1] == 0
        raise ValueError
    assert scales_of(module) == [[0.5, 1], [0.5, 0]]
    assert snapshot.unchanged(module)
