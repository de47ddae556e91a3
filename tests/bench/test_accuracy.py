from __future__ import annotations

import math

import pytest
import torch

from rewriter.bench import accuracy, runs
from rewriter.bench.modes import Mode, Running, of
from rewriter.bench.step import Step
from rewriter.language import RuleSet

CPU = torch.device("cpu")


def _step(dtype: torch.dtype) -> Step:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.BatchNorm1d(64)).eval().to(dtype)
    args = (torch.randn(8, 64, dtype=dtype),)
    return Step(component="net", module=module, method="forward", args=args, kwargs={}, device=CPU)


def test_relative_error() -> None:
    reference = {"a": torch.tensor([3.0, 0.0]), "b": (torch.tensor([4.0]), None)}
    assert accuracy.relative_error(reference, reference) == 0
    off = {"a": torch.tensor([3.0, 0.5]), "b": (torch.tensor([4.0]), None)}
    assert accuracy.relative_error(off, reference) == pytest.approx(0.1)
    assert accuracy.relative_error(torch.tensor([math.nan]), torch.ones(1)) == math.inf
    with pytest.raises(ValueError, match="zip"):
        accuracy.relative_error((torch.ones(1),), (torch.ones(1), torch.ones(1)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_float32_run_leaves_the_weights_as_they_were(dtype: torch.dtype) -> None:
    step = _step(dtype)
    before = {name: tensor.clone() for name, tensor in step.module.state_dict().items()}
    (wide,) = accuracy.float32_result(step)
    assert wide.dtype == torch.float32
    assert all(torch.equal(tensor, before[name]) for name, tensor in step.module.state_dict().items())
    assert all(tensor.dtype == before[name].dtype for name, tensor in step.module.state_dict().items())
    exact = _step(dtype)
    exact.module.double()
    with torch.no_grad():
        expected = exact.module(exact.args[0].double())
    assert accuracy.relative_error(wide, expected) < 1e-6


def test_weights_come_back_from_a_failing_float32_run() -> None:
    step = _step(torch.float16)
    step.module.register_forward_pre_hook(lambda *_: pytest.fail("no luck"))
    with pytest.raises(pytest.fail.Exception, match="no luck"):
        accuracy.float32_result(step)
    assert {parameter.dtype for parameter in step.module.parameters()} == {torch.float16}


def test_each_mode_is_compared_with_both_references() -> None:
    step = _step(torch.float16)
    reference = runs.reference_of(step, f32=True)
    (result,) = runs.run_modes(step, of(["eager"], CPU), RuleSet(()), reference, seconds=0.01)
    assert result.failure is None
    assert result.error_eager == 0
    assert result.error_f32 is not None
    assert 1e-5 < result.error_f32 < 1e-2
    assert runs.reference_of(step, f32=False).f32 is None


@pytest.mark.parametrize("alone", [True, False])
def test_a_mode_that_fails_does_not_stop_the_others(alone: bool) -> None:
    def broken(_: Step, __: RuleSet) -> Running:
        raise torch.cuda.OutOfMemoryError("out of luck\nand more")

    step = _step(torch.float32)
    (eager,) = of(["eager"], CPU)
    failing = Mode(key="broken", title="broken", running=broken)  # type: ignore[arg-type]
    heard: list[list[str | None]] = []
    reference = runs.reference_of(step, f32=False)
    first, second = runs.run_modes(
        step,
        [failing, eager],
        RuleSet(()),
        reference,
        seconds=0.01,
        alone=alone,
        notice=lambda results: heard.append([result.failure for result in results]),
    )
    assert first.failure == "OutOfMemoryError: out of luck"
    assert second.failure is None
    assert second.times is not None
    assert second.ready_seconds is not None
    assert second.times.speed == 1
    assert heard[0] == [runs.NOT_RUN, runs.NOT_RUN]
    assert heard[-1] == [first.failure, None]
