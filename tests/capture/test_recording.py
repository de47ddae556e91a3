"""From a call to a graph: what is traced, what is refused, what is left as it was."""

# ruff: noqa: ARG001, ARG005 (what is called here has a signature given from outside)

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from rewriter.capture.recording import Recording, record
from rewriter.capture.state import Snapshot
from rewriter.capture.structure import flatten_arguments
from rewriter.errors import CaptureError


class Module(torch.nn.Module):
    def __init__(self, body: Callable[..., Any]) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
        self.register_buffer("gate", torch.ones(1))
        self.table = torch.arange(4.0)
        self.scaling = {"adapter": 1.0}
        self.body = body

    def forward(self, x: torch.Tensor, number: float = 1.0) -> Any:
        return self.body(self, x, number)


def recorded(body: Callable[..., Any], *, number: float | None = None, live: Sequence[bool] = (True,)) -> Recording:
    module = Module(body).eval()
    arguments: dict[str, Any] = {"x": torch.randn(3, 4)}
    if number is not None:
        arguments["number"] = number
    flat = flatten_arguments(arguments)
    with torch.no_grad():
        return record(
            module,
            lambda arguments: module(**arguments),
            flat.structure,
            flat.tensors,
            flat.numbers,
            live if number is not None else (),
            Snapshot(module),
        )


def test_weights_are_slots_of_the_snapshot() -> None:
    recording = recorded(lambda self, x, _: self.linear(x) * self.gate)
    # 0 is the buffer of the root, then the linear layer's weight and bias.
    assert sorted(slot for slot in recording.weights if isinstance(slot, int)) == [0, 1, 2]
    assert len(list(recording.graph.inputs())) == 4
    assert recording.baked_data is None
    assert not recording.reads_shapes


def decide(self: Module, x: torch.Tensor, number: float) -> torch.Tensor:
    return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    "body",
    [
        decide,
        lambda self, x, _: x * x.max().item(),
        lambda self, x, _: x * float(x[0, 0]),
        lambda self, x, _: x + torch.tensor([x[0, 0]]),
        lambda self, x, _: x if torch.equal(x, x + 1) else -x,
        lambda self, x, _: x if self.gate > 0 else -x,
    ],
)
def test_code_that_depends_on_elements_is_found_and_located(body: Callable[..., Any]) -> None:
    assert "test_recording.py" in str(recorded(body).baked_data)


def test_code_that_depends_on_extents_is_found() -> None:
    recording = recorded(lambda self, x, _: x + 1 if x.shape[0] % 2 else x)
    assert recording.reads_shapes
    assert recording.baked_data is None
    assert not recorded(lambda self, x, _: x.reshape(x.shape[0], 2, -1)).reads_shapes


@pytest.mark.parametrize(
    ("body", "stays_live"),
    [
        (lambda self, x, number: x * number, True),
        (lambda self, x, number: x * (number + 1) ** 2, True),
        (lambda self, x, number: x * math.sqrt(number), False),
        (lambda self, x, number: x if number > 1 else -x, False),
        (lambda self, x, number: x + torch.tensor([number]).float(), False),
        (lambda self, x, number: x, False),
    ],
)
def test_numbers_stay_live_or_are_reported(body: Callable[..., Any], stays_live: bool) -> None:
    recording = recorded(body, number=2.0)
    assert (not recording.baked_numbers) is stays_live
    assert recorded(body, number=2.0, live=(False,)).baked_numbers == {}


def test_an_integer_that_shapes_a_tensor_stays_live() -> None:
    assert not recorded(lambda self, x, number: x.reshape(3, number, -1), number=2).baked_numbers


def remember(self: Module, x: torch.Tensor, number: float) -> torch.Tensor:
    self.calls = getattr(self, "calls", 0) + 1
    return x


def test_a_module_that_changes_itself_is_refused_and_put_back() -> None:
    module = Module(remember).eval()
    flat = flatten_arguments({"x": torch.randn(3, 4)})
    snapshot = Snapshot(module)
    with pytest.raises(CaptureError, match="changes itself on each call: calls"):
        record(module, lambda arguments: module(**arguments), flat.structure, flat.tensors, (), (), snapshot)
    assert "calls" not in vars(module)


def rescale(self: Module, x: torch.Tensor, number: float) -> torch.Tensor:
    self.scaling["adapter"] *= number
    result = x * self.scaling["adapter"]
    self.scaling["adapter"] /= number
    return result


def test_a_number_that_passes_through_an_attribute_is_reported_and_the_attribute_put_back() -> None:
    module = Module(rescale).eval()
    flat = flatten_arguments({"x": torch.randn(3, 4), "number": 0.5})
    recording = record(
        module,
        lambda arguments: module(**arguments),
        flat.structure,
        flat.tensors,
        flat.numbers,
        (True,),
        Snapshot(module),
    )
    assert recording.baked_numbers
    assert module.scaling == {"adapter": 1.0}
    assert isinstance(module.scaling["adapter"], float)


def test_a_trace_that_fails_says_so_in_one_line() -> None:
    def fail(self: Module, x: torch.Tensor, number: float) -> torch.Tensor:
        raise ValueError("no such block\nand more")

    with pytest.raises(CaptureError, match=r"^the trace failed: ValueError: no such block$"):
        recorded(fail)


def test_a_call_without_tensors_in_or_out_is_refused() -> None:
    with pytest.raises(CaptureError, match="returns no tensor"):
        recorded(lambda self, x, _: None)
