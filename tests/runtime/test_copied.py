"""A look for writes that torch does not count is a look at what something was computed from ahead, and at no more."""

from __future__ import annotations

import copy
import types
from typing import Any

import pytest
import torch

import rewriter
from rewriter import torch_ir
from rewriter.runtime import building
from rewriter.runtime.cuda_graphs import CudaGraphRunner
from rewriter.runtime.probes import Probes
from rewriter.runtime.program import Program
from rewriter.runtime.session import components_of


class Step(torch.nn.Module):
    """Two projections of the text, which are merged, and a layer of the sample's own."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.value, self.own = (torch.nn.Linear(8, 8) for _ in range(3))

    def forward(self, sample: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return self.own(sample) + self.key(text).relu() * self.value(text)  # type: ignore[no-any-return]


class Recorded(CudaGraphRunner):
    def __init__(self, graph: torch_ir.Graph, _: str) -> None:
        def record(function: Any) -> Any:
            results = function()

            def play() -> None:
                for held, fresh in zip(results, function(), strict=True):
                    held.copy_(fresh)

            return play, results

        super().__init__(graph, record=record, pays=lambda *_: True, refusal=lambda *_: None)


def _replayed(module: torch.nn.Module, text: torch.Tensor) -> Any:
    rewriter.optimize(module, measure=False)
    for _ in range(5):
        module(torch.randn(2, 8), text)
    (component,) = components_of(module).values()
    assert component.programs[0].replays == 1
    return component


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    monkeypatch.setattr(building, "_runner", Recorded)
    return Step().eval().requires_grad_(False)


def test_what_a_replay_keeps_is_looked_at(module: Any) -> None:
    component = _replayed(module, torch.randn(2, 8))
    names = component._reader.snapshot.names
    assert {names[slot].partition(".")[0] for slot in component._library.copied()} == {"key", "value"}


@pytest.mark.parametrize("layer", ["key", "value", "own"])
def test_a_write_that_is_not_counted_is_seen_after_a_pause(
    module: Any, layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = torch.randn(2, 8)
    _replayed(module, text)
    getattr(module, layer).weight.data.mul_(2)
    twin = copy.deepcopy(module)
    monkeypatch.setattr("rewriter.runtime.watched._PAUSE", -1.0)
    for _ in range(2):
        sample = torch.randn(2, 8)
        torch.testing.assert_close(module(sample, text), twin(sample, text))


def test_a_step_that_takes_long_is_no_pause(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at each step of a large network, which waits for the device, had cost 6 % of its time."""
    text, looks, clock = torch.randn(2, 8), list[None](), [0.0]
    _replayed(module, text)
    run = Program.run

    def long(*given: Any) -> Any:
        clock[0] += 1
        return run(*given)

    monkeypatch.setattr(Program, "run", long)
    monkeypatch.setattr("rewriter.runtime.watched.time", types.SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(Probes, "same", lambda *_: looks.append(None) or True)
    for pause, expected in ((0.05, 0), (0.05, 0), (0.2, 1), (0.05, 1)):
        clock[0] += pause
        module(torch.randn(2, 8), text)
        assert len(looks) == expected


def test_without_anything_of_that_kind_nothing_is_read() -> None:
    tensors = [torch.ones(3), torch.ones(4, 5), torch.ones(2, dtype=torch.float64)]
    probes = Probes(tensors)
    tensors[1].data.add_(1)
    assert not probes.same()
    assert not probes.same({1, 2})
    assert probes.same({0, 2})
    probes._view = None  # type: ignore[assignment,method-assign]
    assert probes.same(frozenset())
