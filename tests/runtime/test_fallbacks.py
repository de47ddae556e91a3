"""What cannot be captured, is wrong or fails runs eagerly, and the report says why."""

# ruff: noqa: ARG001, ARG005 (what is called here has a signature given from outside)

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_nets import net, plain, status, x

import rewriter
from rewriter import torch_ir
from rewriter.graph import engine
from rewriter.runtime.session import components_of


@pytest.mark.parametrize(
    ("body", "extra", "reason"),
    [
        (lambda y, other, scale: y, (torch.Generator(),), "argument others[0] is a torch"),
        (lambda y, items, scale: (items.append(y), y)[1], ([],), "the argument others in more than the items"),
        (lambda y, other, scale: other.add_(y), (torch.zeros(3, 4),), "writes to one of its tensor arguments"),
        (lambda y, scale: y if y.sum() > 0 else -y, (), "depends on the elements of a tensor at test_fallbacks.py"),
        (lambda y, scale: (y, 3), (), "returns Python numbers"),
        (lambda y, scale: (y, object()), (), "output [1] is a builtins.object"),
    ],
)
def test_what_a_graph_cannot_do_runs_eagerly(optimized: Any, body: Any, extra: Any, reason: str) -> None:
    module = net(body)
    optimized(module)
    module(x(), *extra)
    module(x(), *extra)
    part = status(module)
    assert (part.status, part.calls, part.eager_calls) == ("eager", 2, 2)
    assert reason in str(part.reason)
    strict = net(body)
    optimized(strict, strict=True)
    for _ in range(2):
        with pytest.raises(rewriter.CaptureError) as raised:
            strict(x(), *extra)
        assert reason in str(raised.value)


def negate_output(graph: Any) -> None:
    output = next(iter(graph.outputs()))
    node = graph.insertNode(graph.create("aten::neg", [output], 1))
    graph.eraseOutput(0)
    graph.registerOutput(node.output())


def test_a_wrong_rewrite_is_not_used(optimized: Any, rewriting: Any) -> None:
    rewriting(negate_output)
    module = net(plain)
    expected = module(x())
    optimized(module)
    for _ in range(2):
        assert torch.equal(module(x()), expected)
    reason = "the rewritten graph does not reproduce eager: relative L2 error 2 on output 0 (limit 1e-05)"
    assert (status(module).status, status(module).reason) == ("eager", reason)


def test_a_wrong_rewrite_raises_if_strict_and_runs_if_unverified(optimized: Any, rewriting: Any) -> None:
    rewriting(negate_output)
    module = net(plain)
    expected = module(x())
    optimized(module, strict=True)
    with pytest.raises(rewriter.VerificationError, match="relative L2 error 2 on output 0"):
        module(x())
    optimized(module, verify=False)
    assert torch.equal(module(x()), -expected)
    assert status(module).error is None


def scaled(factor: float) -> Callable[[Any], None]:
    """An edit that multiplies the graph's first input."""

    def edit(graph: Any) -> None:
        value = next(iter(graph.inputs()))
        users = [use.user for use in value.uses()]
        node = torch_ir.insert_before(graph, users[0], "aten::mul", [value, torch_ir.insert_constant(graph, factor)])
        value.replaceAllUsesAfterNodeWith(node, node.output())

    return edit


def chaotic(y: torch.Tensor, scale: float) -> torch.Tensor:
    return (y * 1e4).frac()


@pytest.mark.parametrize(
    ("body", "factor", "accepted"),
    [(plain, 1 + 1e-6, True), (plain, 1 + 1e-4, False), (chaotic, 1 + 2e-7, True), (chaotic, 1.001, False)],
)
def test_an_error_is_judged_by_what_rounding_does_to_the_network(
    optimized: Any, rewriting: Any, body: Callable[..., Any], factor: float, accepted: bool
) -> None:
    module = net(body)
    rewriting(scaled(factor))
    optimized(module)
    module(x(64))
    part = status(module)
    assert (part.status == "optimised") is accepted
    if body is chaotic and accepted:
        assert part.error is not None
        assert part.error > 1e-5
        assert any("rounding alone changes this network's result" in message for message in part.messages)


def test_a_specialised_rewrite_is_used_for_its_shapes_only(optimized: Any, rewriting: Any) -> None:
    rewriting(lambda graph: None, specialised=True)
    module = net(plain)
    optimized(module)
    for rows in (3, 3, 5, 5, 3):
        module(x(rows))
    assert (status(module).captures, status(module).eager_calls) == (2, 2)


class Failing:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError("kernel\nmisaligned address"), torch.cuda.OutOfMemoryError("full")])
def test_a_failing_graph_costs_one_warning(optimized: Any, error: Exception) -> None:
    module = net(plain)
    expected = module(x())
    optimized(module)
    module(x())
    (component,) = components_of(module).values()
    component.programs[0]._runner = Failing(error)
    with pytest.warns(rewriter.RewriterWarning, match="runs calls like this one eagerly from now on") as caught:
        assert torch.equal(module(x()), expected)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(module(x()), expected)
    part = status(module)
    assert part.status == "eager"
    assert "the rewritten graph failed with" in str(part.reason)


def test_a_failing_graph_raises_if_strict(optimized: Any) -> None:
    module = net(plain)
    optimized(module, strict=True)
    module(x())
    (component,) = components_of(module).values()
    component.programs[0]._runner = Failing(RuntimeError("kernel"))
    with (
        pytest.warns(rewriter.RewriterWarning, match="runs calls like this one eagerly"),
        pytest.raises(rewriter.VerificationError, match="the rewritten graph failed with RuntimeError: kernel"),
    ):
        module(x())


def test_an_interrupt_passes_through(optimized: Any) -> None:
    module = net(plain)
    optimized(module)
    module(x())
    (component,) = components_of(module).values()
    component.programs[0]._runner = Failing(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        module(x())
    assert component.programs


def test_the_callers_mistakes_stay_the_callers(optimized: Any, unet: Any, inputs: Any) -> None:
    optimized(unet)
    unet(**inputs())
    unet(**inputs())
    for wrong in ({"sample": torch.zeros(2, 5, 8, 8)}, {"timestep": "now"}, {"unknown": 1}):
        with pytest.raises((RuntimeError, TypeError, ValueError)):
            unet(**inputs(**wrong))
    unet(**inputs())
    assert status(unet).status == "optimised"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ZeroDivisionError("in the engine"), "ZeroDivisionError: in the engine"),
        (engine.EndlessRules("no end"), "no end"),
    ],
)
def test_a_failure_of_the_rules_falls_back(
    optimized: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    monkeypatch.setattr("rewriter.graph.engine.rewrite", Failing(error))
    module = net(plain)
    expected = module(x())
    optimized(module)
    assert torch.equal(module(x()), expected)
    assert status(module).reason == reason
    optimized(module, strict=True)
    with pytest.raises(rewriter.CaptureError, match=f"^Net: {reason}$"):
        module(x())
