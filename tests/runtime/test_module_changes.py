"""What is done to an optimised module takes effect, and what it does to itself happens once."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_nets import net, plain, status, x

import rewriter


@pytest.mark.parametrize(
    ("change", "same_graph"),
    [
        (lambda module: module.linear.weight.mul_(2), True),
        (lambda module: module.linear.weight.data.mul_(2), True),
        (lambda module: module.load_state_dict({k: v + 1 for k, v in module.state_dict().items()}), True),
        (lambda module: setattr(module.linear, "weight", torch.nn.Parameter(torch.randn(4, 4))), True),
        (lambda module: setattr(module, "linear", torch.nn.Linear(4, 4).eval()), True),
        (lambda module: setattr(module.linear, "bias", None), False),
        (lambda module: module.linear.register_forward_hook(lambda *given: given[2] + 1), False),
    ],
)
def test_changes_of_the_module_take_effect(optimized: Any, change: Callable[[Any], Any], same_graph: bool) -> None:
    module = net(plain)
    before = optimized(module)(x())
    module(x())
    change(module)
    twin = copy.deepcopy(module)
    assert not torch.equal(twin(x()), before)
    assert torch.equal(module(x()), twin(x()))
    assert torch.equal(module(x()), twin(x()))
    part = status(module)
    assert (part.status == "optimised" and part.captures == 1) is same_graph


def test_a_dtype_change_makes_another_graph_and_the_way_back_none(optimized: Any) -> None:
    module = net(plain)
    optimized(module)
    module(x())
    module.double()
    assert module(x().double()).dtype is torch.float64
    module.float()
    module(x())
    assert status(module).captures == 2


class Kept(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        return self.linear(x)


def test_a_module_that_writes_to_its_buffers_runs_eagerly_once_per_call(optimized: Any) -> None:
    module = Kept().eval()
    optimized(module)
    for _ in range(3):
        module(x())
    assert module.seen == 3
    assert status(module).reason == "the call writes to the module's own seen"


def test_a_class_that_is_patched_later_is_noticed(optimized: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Halved(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) / 2

    class Negated(torch.nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return -super().forward(x)

    module = torch.nn.Sequential(Halved(4, 4)).eval()
    twin = copy.deepcopy(module)
    optimized(module)
    module(x())
    monkeypatch.setattr(Halved, "forward", lambda self, y: torch.nn.Linear.forward(self, y) * 3)
    for _ in range(2):
        assert torch.equal(module(x()), twin(x()))
    module[0].__class__ = twin[0].__class__ = torch.nn.Linear
    for _ in range(2):
        assert torch.equal(module(x()), twin(x()))
    module.__class__ = twin.__class__ = Negated
    for _ in range(2):
        assert torch.equal(module(x()), twin(x()))
    assert status(module).status == "optimised"


def test_a_class_of_processors_that_is_patched_later_is_noticed(
    optimized: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Processor:
        def __call__(self, y: torch.Tensor) -> torch.Tensor:
            return y * 2

    module = net(lambda y, **_: module.processor(y))
    module.processor = Processor()
    optimized(module)
    expected = module(x())
    with monkeypatch.context() as patched:
        patched.setattr(Processor, "__call__", lambda _, y: y * 3)
        for _ in range(2):
            assert torch.allclose(module(x()), expected * 1.5)
    assert torch.equal(module(x()), expected)
    assert (status(module).status, status(module).captures) == ("optimised", 2)


def test_a_pickled_module_comes_back_without_component(optimized: Any) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 4)).eval()
    optimized(module)
    expected = module(x())
    saved = pickle.dumps(module)
    again = pickle.loads(saved)
    assert torch.equal(again(x()), expected)
    assert again.forward.__self__ is again
    # It can be loaded where this package is not installed.
    assert b"rewriter" not in saved


def test_a_part_and_the_whole_may_both_be_optimised(optimized: Any, unet: Any, inputs: Any) -> None:
    expected = unet(**inputs()).sample
    optimized(unet.mid_block)
    optimized(unet)
    for _ in range(3):
        assert torch.equal(unet(**inputs()).sample, expected)
    assert status(unet).status == "optimised"
    rewriter.restore(unet)
    assert torch.equal(unet(**inputs()).sample, expected)
    assert status(unet.mid_block).status == "optimised"
    rewriter.restore(unet.mid_block)
    assert "forward" not in vars(unet.mid_block)
