"""A component gives what the module gives, whatever is called how, and says when it could not."""

# ruff: noqa: ARG001, ARG005 (what is called here has a signature given from outside)

from __future__ import annotations

import copy
import inspect
import pickle
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

import rewriter
from rewriter import torch_ir
from rewriter.capture.structure import flatten
from rewriter.runtime.report import ComponentReport
from rewriter.runtime.session import components_of


class Net(torch.nn.Module):
    """A linear layer around which a test puts what it wants to know."""

    def __init__(self, body: Callable[..., Any]) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
        self.body = body

    def forward(self, x: torch.Tensor, *others: Any, scale: float = 1.0, **options: Any) -> Any:
        return self.body(self.linear(x), *others, scale=scale, **options)


def net(body: Callable[..., Any]) -> Net:
    return Net(body).eval()


def status(module: torch.nn.Module) -> ComponentReport:
    (part,) = rewriter.report(module).components.values()
    return part


def plain(y: torch.Tensor, scale: float) -> torch.Tensor:
    return y * scale


def x(rows: int = 3) -> torch.Tensor:
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(rows))


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


def test_other_extents_need_no_new_trace(optimized: Any) -> None:
    module = net(plain)
    twin = copy.deepcopy(module)
    optimized(module)
    for rows in (3, 1, 7, 7, 1, 5, 6, 6):
        torch.testing.assert_close(module(x(rows)), twin(x(rows)))
    assert status(module).captures == 1


def test_a_decision_on_extents_is_found_out_and_captured_again(optimized: Any) -> None:
    module = net(lambda y, scale: y + 1 if y.shape[0] % 2 else y - 1)
    twin = copy.deepcopy(module)
    optimized(module)
    for rows in (3, 4, 4, 4, 3, 5, 5, 6, 6):
        assert torch.equal(module(x(rows)), twin(x(rows)))
    part = status(module)
    assert (part.status, part.captures) == ("optimised", 2)
    assert any("does not hold for the shapes [4, 4]" in message for message in part.messages)


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


@pytest.mark.parametrize(
    ("body", "extra", "reason"),
    [
        (lambda y, other, scale: y, (torch.Generator(),), "argument others[0] is a torch"),
        (lambda y, items, scale: (items.append(y), y)[1], ([],), "the argument others in more than the items"),
        (lambda y, other, scale: other.add_(y), (torch.zeros(3, 4),), "writes to one of its tensor arguments"),
        (lambda y, scale: y if y.sum() > 0 else -y, (), "depends on the elements of a tensor at test_component.py"),
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


def test_a_failure_of_the_rules_falls_back(optimized: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rewriter.graph.engine.rewrite", Failing(ZeroDivisionError("in the engine")))
    module = net(plain)
    expected = module(x())
    optimized(module)
    assert torch.equal(module(x()), expected)
    assert status(module).reason == "ZeroDivisionError: in the engine"


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


def test_a_pickled_module_comes_back_without_component(optimized: Any) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 4)).eval()
    optimized(module)
    expected = module(x())
    again = pickle.loads(pickle.dumps(module))
    assert torch.equal(again(x()), expected)
    assert again.forward.__self__ is again


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
