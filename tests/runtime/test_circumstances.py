"""Modes of torch around a call: where a graph would not do, the module itself runs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from small_nets import net, plain, status, x

from rewriter import torch_ir


def test_circumstances_that_ask_for_eager(optimized: Any) -> None:
    module = net(plain)
    optimized(module)
    module(x())

    def reason() -> str:
        return status(module).messages[-1]

    module.train()
    with torch.enable_grad():
        module(x())
    assert "training mode" in reason()
    module.eval()
    with torch.enable_grad():
        assert module(x()).requires_grad
    assert "gradients are on" in reason()
    with torch.autocast("cpu", torch.bfloat16):
        assert module(x()).dtype is torch.bfloat16
    assert "autocast" in reason()
    with torch.device("cpu"):
        module(x())
    assert "torch function mode" in reason()
    with pytest.raises((RuntimeError, NotImplementedError)):
        module(x().to("meta"))
    assert "meta tensor" in reason()
    assert status(module).status == "optimised"


def test_the_gradients_of_eager_are_kept(optimized: Any) -> None:
    module = net(plain)
    optimized(module)
    with torch.enable_grad():
        for _ in range(2):
            module(x()).sum().backward()
    assert module.linear.weight.grad is not None


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_somebody_elses_trace_sees_the_module(optimized: Any) -> None:
    module = net(plain)
    optimized(module)
    module(x())
    traced = torch.jit.trace(module, (x(),), check_trace=False)
    assert "aten::linear" in str(traced.inlined_graph)


def test_inference_mode_and_no_grad_take_turns(optimized: Any) -> None:
    module = net(plain)
    twin = copy.deepcopy(module)
    optimized(module)
    for _ in range(2):
        with torch.inference_mode():
            assert torch.equal(module(x()), twin(x()))
        assert torch.equal(module(x()), twin(x()))
    assert status(module).captures == 1


def test_the_executor_setting_is_left_alone(optimized: Any) -> None:
    module = net(plain)
    optimized(module)
    before = torch_ir._C["_get_graph_executor_optimize"]()
    module(x()), module(x())
    assert torch_ir._C["_get_graph_executor_optimize"]() == before


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_compiling_exporting_and_transforming_an_optimised_module_see_the_module(optimized: Any) -> None:
    module = net(plain)
    twin = copy.deepcopy(module)
    optimized(module)
    module(x()), module(x())
    compiled = torch.compile(module, backend="eager")
    torch.testing.assert_close(compiled(x()), twin(x()))
    exported = torch.export.export(module, (x(),)).module()
    torch.testing.assert_close(exported(x()), twin(x()))
    value, tangent = torch.func.jvp(module, (x(),), (torch.ones(3, 4),))
    torch.testing.assert_close(value, twin(x()))
    torch.testing.assert_close(tangent, torch.ones(3, 4) @ twin.linear.weight.T)
    doubled = {name: 2 * weight for name, weight in twin.state_dict().items()}
    torch.testing.assert_close(torch.func.functional_call(module, doubled, (x(),)), 2 * twin(x()))
    torch.testing.assert_close(module(x()), twin(x()))
