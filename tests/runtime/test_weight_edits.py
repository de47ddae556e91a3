"""Whatever is written to weights is seen by the next call, with adapters and without."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.training_utils import EMAModel
from peft import LoraConfig

import rewriter
from rewriter.runtime.probes import Probes
from rewriter.runtime.watched import Runs

Edit = Callable[[Any], Any]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def base(unet: Any) -> list[Any]:
    return [weight for name, weight in unet.named_parameters() if "lora_" not in name]


def half_as_much(unet: Any) -> dict[str, torch.Tensor]:
    return {name: weight / 2 for name, weight in unet.state_dict().items()}


def copy_in(unet: Any) -> None:
    for weight in base(unet):
        weight.copy_(weight * 0.5)


def through_data(unet: Any) -> None:
    for weight in base(unet):
        weight.data.mul_(0.5)


def other_data(unet: Any) -> None:
    for weight in base(unet):
        weight.data = weight.data * 0.5


def swap_averages(unet: Any) -> None:
    averages = EMAModel(base(unet), decay=0.9)
    for shadow in averages.shadow_params:
        shadow.mul_(0.5)
    averages.store(base(unet))
    averages.copy_to(base(unet))


def one_projection(unet: Any) -> None:
    unet.mid_block.attentions[0].transformer_blocks[0].attn1.get_parameter(
        next(n for n, _ in unet.mid_block.attentions[0].transformer_blocks[0].attn1.named_parameters() if "to_q" in n)
    ).data.mul_(0.5)


def replaced(unet: Any) -> None:
    conv: Any = unet.conv_in
    conv = getattr(conv, "base_layer", conv)
    conv.weight = torch.nn.Parameter(conv.weight * 0.5)


EDITS: dict[str, Edit] = {
    "load_state_dict": lambda unet: unet.load_state_dict(half_as_much(unet)),
    "load_state_dict by assignment": lambda unet: unet.load_state_dict(half_as_much(unet), assign=True),
    "copy_": copy_in,
    "through data": through_data,
    "other data": other_data,
    "averages swapped in": swap_averages,
    "one projection": one_projection,
    "another parameter": replaced,
}


def adapt(unet: Any) -> None:
    torch.manual_seed(1)
    targets = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv_in", "proj_in"]
    unet.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))


@pytest.fixture(params=[False, True], ids=["bare", "adapted"])
def pair(request: Any, unet: Any, inputs: Any) -> tuple[Any, Any]:
    twin = copy.deepcopy(unet)
    rewriter.optimize(unet, measure=False)
    unet(**inputs())
    if request.param:
        adapt(unet)
        adapt(twin)
    for _ in range(2):
        unet(**inputs())
    return unet, twin


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_is_seen_by_the_next_call(edit: str, pair: tuple[Any, Any], inputs: Any) -> None:
    unet, twin = pair
    before = twin(**inputs()).sample
    for _ in range(2):
        EDITS[edit](unet)
        EDITS[edit](twin)
        expected = twin(**inputs()).sample
        assert not torch.allclose(expected, before, rtol=1e-3)
        actual = unet(**inputs()).sample
        assert float((actual - expected).norm() / expected.norm()) <= 1e-5
    assert unet.forward.journal.captures == 1
    for mine, its in zip(unet.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(mine, its)


def test_who_holds_a_state_dict_never_sees_adapters_in_it(optimized: Any, unet: Any, inputs: Any) -> None:
    optimized(unet)
    unet(**inputs())
    held = unet.state_dict()
    before = {name: weight.clone() for name, weight in held.items()}
    adapt(unet)
    assert unet.forward._merging.effective.bytes() == 0
    unet(**inputs())
    assert unet.forward._merging.effective.bytes() > 0
    assert all(torch.equal(held[name], before[name]) for name in held)
    unet.unload_lora()
    unet(**inputs())
    assert all(torch.equal(weight, before[name]) for name, weight in unet.state_dict().items())


def test_who_holds_a_state_dict_of_merged_weights_never_sees_adapters_in_it(unet: Any, inputs: Any) -> None:
    twin = copy.deepcopy(unet)
    rewriter.optimize(unet, measure=False)
    unet(**inputs())
    unet(**inputs())
    held = unet.state_dict()
    before = {name: weight.clone() for name, weight in held.items()}
    adapt(unet)
    adapt(twin)
    for _ in range(2):
        expected = twin(**inputs()).sample
        assert float((unet(**inputs()).sample - expected).norm() / expected.norm()) <= 1e-5
    assert all(torch.equal(held[name], before[name]) for name in held)


def test_moved_to_another_dtype_and_back(optimized: Any, unet: Any, inputs: Any) -> None:
    twin = copy.deepcopy(unet)
    optimized(unet)
    adapt(unet)
    adapt(twin)
    unet(**inputs())
    for dtype in (torch.float64, torch.float32):
        unet.to(dtype)
        twin.to(dtype)
        arguments = {name: v.to(dtype) if v.is_floating_point() else v for name, v in inputs().items()}
        for _ in range(2):
            torch.testing.assert_close(unet(**arguments).sample, twin(**arguments).sample, rtol=1e-5, atol=1e-6)
    unet.unload_lora()
    twin.unload_lora()
    torch.testing.assert_close(unet(**inputs()).sample, twin(**inputs()).sample, rtol=1e-5, atol=1e-6)
    assert unet.forward.memory() == 0


def test_a_copy_and_a_restored_module_have_their_own_weights(optimized: Any, unet: Any, inputs: Any) -> None:
    optimized(unet)
    adapt(unet)
    unet(**inputs())
    unet(**inputs())
    assert unet.forward._merging.effective.bytes() > 0
    twin = copy.deepcopy(unet)
    expected = twin(**inputs()).sample
    torch.testing.assert_close(unet(**inputs()).sample, expected, rtol=1e-5, atol=1e-6)
    rewriter.restore(unet)
    assert torch.equal(unet(**inputs()).sample, expected)


def test_without_memory_for_adapters_the_call_runs_eagerly(
    optimized: Any, unet: Any, inputs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rewriter.capture import adapters

    twin = copy.deepcopy(unet)
    optimized(unet)
    for network in (unet, twin):
        adapt(network)
    unet(**inputs())
    unet.set_adapters("default", 0.5)
    twin.set_adapters("default", 0.5)
    original, calls = adapters.merged, []

    def failing(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("no memory left")
        return original(*args)

    monkeypatch.setattr(adapters, "merged", failing)
    assert torch.equal(unet(**inputs()).sample, twin(**inputs()).sample)
    assert "no memory left" in unet.forward.journal.reason
    assert unet.forward._merging.effective.bytes() == 0
    torch.testing.assert_close(unet(**inputs()).sample, twin(**inputs()).sample, rtol=1e-5, atol=1e-6)
    assert unet.forward.journal.reason is None


@pytest.mark.parametrize("shape", [(), (0,), (3,), (64, 3), (5, 40, 3, 3)])
def test_samples_lie_within_their_tensor_and_see_writes(shape: tuple[int, ...]) -> None:
    whole = torch.zeros(2, *shape)
    tensor = whole[1]
    probes = Probes([tensor, torch.ones(4, dtype=torch.float16)])
    whole[0] += 1
    assert probes.same()
    tensor.data.add_(1)
    assert probes.same() == (tensor.numel() == 0)


def test_steps_of_a_loop_are_told_from_the_first_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("rewriter.runtime.watched.time.perf_counter", lambda: clock[0])
    runs = Runs()
    text, other, sample = torch.ones(2), torch.ones(2), torch.ones(1)
    step = [torch.ones(1) for _ in range(9)]
    assert runs.starts([step[0], text])
    assert not runs.starts([step[1], text])
    assert not runs.starts([step[2], text])
    assert runs.starts([step[3], other])
    assert not runs.starts([step[4], other])
    other.add_(1)
    assert runs.starts([step[5], other])
    assert not runs.starts([step[6], other])
    clock[0] += 1
    assert runs.starts([step[7], other])
    # A step that takes a second.
    clock[0] += 1
    runs.ran()
    assert not runs.starts([torch.ones(1), other])
    # Nothing but the sample, or the same sample as before: no loop.
    assert runs.starts([step[8]])
    assert runs.starts([sample, other, text])
    assert runs.starts([sample, other, text])
