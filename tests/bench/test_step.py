from __future__ import annotations

import argparse

import pytest
import torch

from rewriter.bench import runs
from rewriter.bench.modes import channels_last, modes, of, optimised, plain_call
from rewriter.bench.step import ControlledUNet, Step, twin
from rewriter.cli import targets
from rewriter.language import load_rules
from rewriter.models import Target

CPU = torch.device("cpu")


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 5, 3, padding=1)
        self.seen: list[tuple[torch.Tensor, ...]] = []

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        self.seen.append((sample, timestep, text))
        return self.conv(sample) * timestep + text.sum()


@pytest.fixture
def step() -> Step:
    args = (torch.randn(2, 3, 4, 4), torch.tensor(3.0))
    return Step(
        component="unet",
        module=Network().eval(),
        method="forward",
        args=args,
        kwargs={"text": torch.ones(2)},
        device=CPU,
    )


@pytest.fixture(scope="module")
def controlled() -> Target:
    return targets.load(argparse.Namespace(target="sd15-controlnet-tiny", device="cpu", dtype=None))


def test_sample_and_timestep_are_new_at_each_call_and_the_text_is_not(step: Step) -> None:
    assert step.renewed == (0, 1)
    call = plain_call(step)
    assert torch.equal(call(), call())
    (one, first, text), (other, second, same) = step.module.seen
    assert one is not other
    assert first is not second
    assert text is same is step.kwargs["text"]
    assert torch.equal(one, step.args[0])
    assert one is not step.args[0]


def test_without_known_names_the_first_tensor_is_renewed() -> None:
    module = torch.nn.Linear(3, 3)
    linear = Step(component="l", module=module, method="forward", args=(torch.ones(1, 3),), kwargs={}, device=CPU)
    assert linear.renewed == (0,)
    assert linear.networks == (module,)


def test_twin_shares_weights_and_nothing_else() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3)).eval()
    second = twin(module)
    second[0].forward = lambda x: x
    second.register_buffer("extra", torch.ones(1))
    x = torch.randn(2, 3)
    assert not torch.equal(module(x), second(x))
    assert "extra" not in dict(module.named_buffers())
    assert second[0] is not module[0]
    assert second[0].weight is not module[0].weight
    assert second[0].weight.data_ptr() == module[0].weight.data_ptr()
    assert second[1].running_mean.data_ptr() == module[1].running_mean.data_ptr()
    second[0].weight.data = torch.zeros(3, 3)
    assert module[0].weight.any()


def test_weights_are_channels_last_only_inside(step: Step) -> None:
    weight = step.module.conv.weight
    before = weight.detach().clone()
    with channels_last(step.module):
        assert weight.stride() == (27, 1, 9, 3)
    assert weight.stride() == before.stride()
    assert torch.equal(weight, before)


def test_the_step_with_a_controlnet_is_both_networks(controlled: Target) -> None:
    step = targets.whole_step_of(controlled, {"batch": 3, "height": 64, "width": 72})
    pipeline = controlled.pipeline
    assert isinstance(step.module, ControlledUNet)
    assert step.component == "controlnet + unet"
    assert step.networks == (pipeline.controlnet, pipeline.unet)
    assert set(step.renewed) == {"sample", "timestep"}
    assert step.kwargs["controlnet_cond"].shape == (3, 3, 64, 72)
    with torch.no_grad():
        (whole,) = plain_call(step)()
        given = {name: value for name, value in step.kwargs.items() if name != "controlnet_cond"}
        plain = pipeline.unet(**given)[0]
    assert whole.shape == (3, 4, 8, 9)
    assert not torch.allclose(whole, plain, rtol=1e-3)
    single = targets.step_of(controlled, "controlnet", {})
    assert single.module is pipeline.controlnet
    assert single.renewed[:2] == (0, 1)


def test_both_networks_are_optimised_and_restored(controlled: Target) -> None:
    step = targets.whole_step_of(controlled, {})
    expected = plain_call(step)()[0]
    with optimised(step, load_rules("default"), measure=False) as running:
        running.call()
        torch.testing.assert_close(running.call()[0], expected, rtol=1e-3, atol=1e-4)
        parts = [part for report in running.reports() for part in report["components"].values()]
        assert [part["status"] for part in parts] == ["optimised", "optimised"]
        assert [part["calls"] for part in parts] == [2, 2]
        assert all("forward" in vars(network) for network in step.networks)
    assert all("forward" not in vars(network) for network in step.networks)


def test_modes_by_key() -> None:
    assert [mode.key for mode in of(["rewriter", "eager", "rewriter"], CPU)] == ["rewriter", "eager"]
    assert {"graph", "graph-nhwc", "compile-nchw"} <= modes(torch.device("cuda")).keys()
    with pytest.raises(ValueError, match="found 'graph' on a CPU, expected some of eager, compile, rewriter"):
        of(["eager", "graph"], CPU)
    with pytest.raises(ValueError, match="found 'fast', expected some of eager, graph, graph-nhwc"):
        of(["fast"], torch.device("cuda"))


def test_modes_that_run_alone_leave_the_step_as_it_was() -> None:
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 32, 3, padding=1), torch.nn.GroupNorm(4, 32), torch.nn.SiLU()
    ).eval()
    args = (torch.randn(2, 3, 16, 16),)
    step = Step(component="net", module=module, method="forward", args=args, kwargs={}, device=CPU)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    reference = runs.reference_of(step, f32=False)
    chosen = of(["rewriter", "eager", "rewriter-again"], CPU)
    results = runs.run_modes(step, chosen, load_rules("default"), reference, seconds=0.01, alone=True)
    assert [(result.failure, result.fallbacks) for result in results] == [(None, [])] * 3
    assert [len(result.reports) for result in results] == [1, 0, 1]
    assert results[1].times is not None
    assert results[1].times.speed == 1
    assert "forward" not in vars(module)
    after = module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(after[name].stride() == tensor.stride() for name, tensor in before.items())
