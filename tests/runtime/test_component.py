"""A component gives what the module gives, whatever it is called with and from where."""

# ruff: noqa: ARG001, ARG005 (what is called here has a signature given from outside)

from __future__ import annotations

import copy
import inspect
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_nets import net, plain, status, x

from rewriter import torch_ir
from rewriter.capture.structure import flatten
from rewriter.runtime import building
from rewriter.runtime.cuda_graphs import CudaGraphRunner
from rewriter.runtime.session import components_of


def test_the_second_call_runs_the_graph(optimized: Any) -> None:
    calls: list[int] = []

    def body(y: torch.Tensor, scale: float) -> torch.Tensor:
        calls.append(1)
        return y.tanh()

    module = net(body)
    expected = module(x())
    optimized(module)
    assert status(module).status == "pending"
    assert torch.equal(module(x()), expected)
    before = len(calls)
    assert torch.equal(module(x()), expected)
    assert len(calls) == before
    part = status(module)
    assert (part.status, part.captures, part.calls, part.eager_calls, part.error) == ("optimised", 1, 2, 1, 0.0)


@pytest.mark.parametrize("long", [True, False])
def test_a_first_call_that_takes_long_says_why(
    optimized: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, long: bool
) -> None:
    words = "choosing what is fastest on this machine, once"
    make = building._build

    def slowly(*arguments: Any) -> Any:
        end = time.monotonic() + 10
        while long and words not in caplog.text and time.monotonic() < end:
            time.sleep(0.01)
        return make(*arguments)

    monkeypatch.setattr(building, "_build", slowly)
    monkeypatch.setattr(building, "_SILENT_SECONDS", 0.0 if long else 600.0)
    module = optimized(net(plain))
    module(x())
    assert (words in caplog.text) is long
    assert status(module).status == "optimised"


def test_other_extents_need_no_new_trace(optimized: Any) -> None:
    module = net(plain)
    twin = copy.deepcopy(module)
    optimized(module)
    for rows in (3, 1, 7, 7, 1, 5, 6, 6):
        torch.testing.assert_close(module(x(rows)), twin(x(rows)))
    assert status(module).captures == 1


def test_a_program_says_for_how_many_extents_it_replays(optimized: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def runner(graph: torch_ir.Graph, _: str) -> CudaGraphRunner:
        return CudaGraphRunner(
            graph,
            record=lambda function: (lambda: None, function()),
            pays=lambda *_: True,
            refusal=lambda *_: None,
        )

    found = []
    for chosen in (building._runner, runner):
        monkeypatch.setattr(building, "_runner", chosen)
        module = net(plain)
        optimized(module)
        for _ in range(5):
            module(x())
        (component,) = components_of(module).values()
        found.append([program.replays for program in component.programs])
    assert found == [[0], [1]]


def test_a_decision_on_extents_is_found_out_and_captured_again(optimized: Any) -> None:
    module = net(lambda y, scale: y + 1 if y.shape[0] % 2 else y - 1)
    twin = copy.deepcopy(module)
    optimized(module)
    for rows in (3, 4, 4, 4, 3, 5, 5, 6, 6):
        assert torch.equal(module(x(rows)), twin(x(rows)))
    part = status(module)
    assert (part.status, part.captures) == ("optimised", 2)
    assert any("does not hold for the shapes [4, 4]" in message for message in part.messages)


def test_arguments_may_come_by_position_or_by_name(optimized: Any, unet: Any, inputs: Any) -> None:
    optimized(unet)
    given = inputs()
    first = unet(**given).sample
    second = unet(given["sample"], given["timestep"], given["encoder_hidden_states"]).sample
    assert torch.equal(first, second)
    (third,) = unet(*given.values(), return_dict=False)
    assert torch.equal(first, third)
    assert status(unet).captures == 2


def test_constants_are_part_of_the_key(optimized: Any) -> None:
    module = net(lambda y, scale, mode, dtype: (y + 1 if mode == "a" else y - 1).to(dtype))
    twin = copy.deepcopy(module)
    optimized(module)
    for _ in range(2):
        for mode in ("a", "b"):
            for dtype in (torch.float32, torch.float64):
                assert torch.equal(module(x(), mode=mode, dtype=dtype), twin(x(), mode=mode, dtype=dtype))
    assert status(module).captures == 4


def test_captures_are_bounded(optimized: Any) -> None:
    module = net(lambda y, scale, mode: y + len(mode))
    optimized(module)
    for length in range(12):
        module(x(), mode="m" * length)
    (component,) = components_of(module).values()
    assert len(component.programs) == 8


@pytest.mark.parametrize(
    "body",
    [
        lambda y, scale: {"a": [y, (y + 1, None)], "b": y, "flag": True, "text": "t"},
        lambda y, scale: [y, y],
        lambda y, scale: (y, y[0], y.argmax(), y > 0),
        lambda y, scale: y,
    ],
)
def test_every_form_of_result_is_rebuilt(optimized: Any, body: Callable[..., Any]) -> None:
    module = net(body)
    expected = flatten(module(x()), what="result")
    optimized(module)
    for _ in range(3):
        actual = flatten(module(x()), what="result")
        assert actual.structure == expected.structure
        assert all(map(torch.equal, actual.tensors, expected.tensors))
    assert status(module).status == "optimised"


def test_a_result_that_is_an_argument_or_a_weight_is_that_very_tensor(optimized: Any) -> None:
    module = net(lambda y, other, scale: (y, other))
    optimized(module)
    for _ in range(2):
        other = torch.randn(2)
        assert module(x(), other)[1] is other

    class Weight(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(3))

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x * self.weight, self.weight

    holder = Weight().eval()
    optimized(holder)
    for _ in range(2):
        assert holder(torch.randn(3))[1] is holder.weight


def test_one_tensor_in_two_places_is_not_two_tensors(optimized: Any) -> None:
    module = net(lambda y, a, b, scale: y + a - 2 * b)
    twin = copy.deepcopy(module)
    optimized(module)
    a, b = torch.randn(4), torch.randn(4)
    for pair in ((a, a), (a, b), (b, b), (b, a)):
        assert torch.equal(module(x(), *pair), twin(x(), *pair))


def test_random_numbers_are_those_of_eager(optimized: Any) -> None:
    module = net(lambda y, scale: y + torch.randn_like(y))
    twin = copy.deepcopy(module)
    optimized(module)
    for seed in range(3):
        torch.manual_seed(seed)
        expected, after = twin(x()), torch.rand(1)
        torch.manual_seed(seed)
        assert torch.equal(module(x()), expected)
        assert torch.equal(torch.rand(1), after)
    assert status(module).status == "optimised"


def test_threads_get_their_own_results(optimized: Any, unet: Any, inputs: Any) -> None:
    twin = copy.deepcopy(unet)
    given = [inputs(batch=batch, size=size) for batch in (1, 2) for size in (8, 16)]
    expected = [twin(**each).sample for each in given]
    optimized(unet)
    wrong: list[Any] = []

    def work(offset: int) -> None:
        with torch.no_grad():
            for step in range(8):
                index = (offset + step) % len(given)
                try:
                    torch.testing.assert_close(unet(**given[index]).sample, expected[index])
                except BaseException as error:
                    wrong.append(error)

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert (status(unet).status, status(unet).calls) == ("optimised", 32)


def test_a_component_shows_the_signature_of_forward(optimized: Any, unet: Any) -> None:
    expected = inspect.signature(unet.forward)
    optimized(unet)
    assert inspect.signature(unet.forward) == expected
    assert "UNet2DConditionModel" in repr(unet.forward)
