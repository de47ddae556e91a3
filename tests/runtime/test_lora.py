"""LoRAs, FreeU and attention processors take effect on the next call; LoRAs without another trace."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from peft import LoHaConfig, LoKrConfig, LoraConfig

import rewriter

Step = Callable[[Any], Any]

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
EVERYWHERE = (*ATTENTION, "proj_in", "conv1", "conv_in", "time_emb_proj", "linear_1")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def add(name: str, rank: int, targets: tuple[str, ...] = ATTENTION, **options: Any) -> Step:
    def run(unet: Any) -> None:
        torch.manual_seed(rank)
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets), init_lora_weights=False, **options)
        unet.add_adapter(config, name)

    return run


def change_adapters(unet: Any) -> None:
    for name, weight in unet.named_parameters():
        if "lora_" in name:
            weight.data.mul_(0.7)


LORA: tuple[Step, ...] = (
    add("one", 2),
    lambda unet: unet.set_adapters("one", 0.5),
    lambda unet: unet.set_adapters("one", 0.25),
    lambda unet: unet.set_adapters("one", {"down": 0.5, "mid": 1.0, "up": 0.3}),
    add("two", 4, EVERYWHERE),
    lambda unet: unet.set_adapters(["one", "two"], [0.5, 2.0]),
    change_adapters,
    lambda unet: unet.disable_lora(),
    lambda unet: unet.enable_lora(),
    lambda unet: unet.fuse_lora(lora_scale=0.5),
    lambda unet: unet.unfuse_lora(),
    lambda unet: unet.fuse_lora(safe_fusing=True),
    lambda unet: unet.unfuse_lora(),
    lambda unet: unet.set_adapters("two", 0.0),
    lambda unet: unet.delete_adapters("two"),
    lambda unet: unet.unload_lora(),
)
DORA: tuple[Step, ...] = (
    add("one", 2, EVERYWHERE, use_dora=True),
    lambda unet: unet.set_adapters("one", 0.3),
    add("two", 3),
    lambda unet: unet.set_adapters(["one", "two"], [0.5, 2.0]),
    lambda unet: unet.set_adapters(["two", "one"], [0.5, 2.0]),
    add("three", 4, use_dora=True),
    lambda unet: unet.set_adapters(["three", "two", "one"], [0.5, 1.0, 0.5]),
    lambda unet: unet.delete_adapters(["one", "two"]),
    lambda unet: unet.unload_lora(),
)
OTHERS: tuple[Step, ...] = (
    lambda unet: unet.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4),
    lambda unet: unet.disable_freeu(),
    lambda unet: unet.set_attn_processor(AttnProcessor()),
    lambda unet: unet.set_attn_processor(AttnProcessor2_0()),
    lambda unet: unet.fuse_qkv_projections(),
    lambda unet: unet.unfuse_qkv_projections(),
    lambda unet: setattr(unet.conv_in, "padding_mode", "circular"),
)


def component(unet: Any) -> Any:
    found = unet.forward
    assert type(found).__name__ == "Component"
    return found


def places(unet: Any) -> list[int]:
    """Where all lies that graphs read beside their inputs: what a CUDA graph is bound to."""
    own = component(unet)
    weights = own._merging.effective._weights
    prepared = [
        tensor
        for program in own.programs
        for tensor in program._prepared.refresh(
            [weights[slot] for slot in program.recording.weights], own._merging.effective._stamp
        )
    ]
    return [tensor.data_ptr() for tensor in (*weights, *prepared)]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def follow(unet: Any, twin: Any, steps: tuple[Step, ...], arguments: Mapping[str, Any]) -> int:
    """Takes each step with both and compares them; returns how many steps had an effect."""
    previous = twin(**arguments).sample
    changed = 0
    for number, step in enumerate(steps):
        step(unet)
        step(twin)
        expected = twin(**arguments).sample
        for _ in range(2):
            assert relative(unet(**arguments).sample, expected) <= 1e-5, number
        (part,) = rewriter.report(unet).components.values()
        assert part.status == "optimised", (number, part.reason)
        changed += not torch.allclose(expected, previous)
        previous = expected
    return changed


def same_weights(unet: Any, twin: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(unet.state_dict().values(), twin.state_dict().values(), strict=True))


@pytest.mark.parametrize("steps", [LORA, DORA], ids=["lora", "dora"])
def test_each_step_equals_eager_without_another_trace(
    steps: tuple[Step, ...], optimized: Any, unet: Any, inputs: Any
) -> None:
    twin = copy.deepcopy(unet)
    optimized(unet)
    assert relative(unet(**inputs()).sample, twin(**inputs()).sample) <= 1e-5
    unet(**inputs())
    before = places(unet)
    # Otherwise the test would show nothing.
    assert follow(unet, twin, steps, inputs()) >= 6
    assert component(unet).journal.captures == 1
    assert places(unet) == before
    assert component(unet).memory() == 0
    assert same_weights(unet, twin)


def test_rewritten_graphs_with_prepared_weights_follow(unet: Any, inputs: Any) -> None:
    twin = copy.deepcopy(unet)
    rewriter.optimize(unet, measure=False)
    unet(**inputs())
    unet(**inputs())
    before = places(unet)
    assert len(before) > len(component(unet)._merging.effective._weights)
    assert follow(unet, twin, LORA, inputs()) >= 6
    assert component(unet).journal.captures == 1
    assert places(unet) == before
    assert component(unet)._merging.effective.bytes() == 0
    assert same_weights(unet, twin)


def test_what_is_captured_with_adapters_serves_without(unet: Any, inputs: Any) -> None:
    twin = copy.deepcopy(unet)
    rewriter.optimize(unet, measure=False)
    add("one", 2, EVERYWHERE)(unet)
    add("one", 2, EVERYWHERE)(twin)
    steps: tuple[Step, ...] = (
        lambda unet: unet.set_adapters("one", 0.5),
        lambda unet: unet.unload_lora(),
        add("two", 2, EVERYWHERE),
        lambda unet: unet.fuse_lora(),
    )
    assert follow(unet, twin, steps, inputs()) >= 3
    assert component(unet).journal.captures == 1
    rewriter.restore(unet)
    twin.unfuse_lora()
    unet.unfuse_lora()
    assert same_weights(unet, twin)


def test_other_changes_of_the_module_are_traced_anew(optimized: Any, unet: Any, inputs: Any) -> None:
    twin = copy.deepcopy(unet)
    optimized(unet)
    unet(**inputs())
    assert follow(unet, twin, OTHERS, inputs()) >= 3


def test_a_scale_given_with_the_call_takes_effect_and_leaves_the_adapter_as_it_was(
    optimized: Any, unet: Any, inputs: Any
) -> None:
    add("one", 2)(unet)
    twin = copy.deepcopy(unet)
    optimized(unet)
    unet(**inputs())
    for scale in (1.0, 0.5, 0.5, 0.25, 1, -2.0, 0.5):
        given = {"scale": scale}
        actual = unet(**inputs(cross_attention_kwargs=given)).sample
        assert relative(actual, twin(**inputs(cross_attention_kwargs={"scale": scale})).sample) <= 1e-5
        assert given == {"scale": scale}
        assert relative(unet(**inputs()).sample, twin(**inputs()).sample) <= 1e-5
    assert component(unet).journal.captures == 1
    scalings = [module.scaling for module in unet.modules() if hasattr(module, "scaling")]
    assert scalings
    assert all(type(value) is float for scaling in scalings for value in scaling.values())


def test_a_scale_of_zero_does_to_the_adapters_what_it_does_in_eager(optimized: Any, unet: Any, inputs: Any) -> None:
    add("one", 2)(unet)
    unet.set_adapters("one", 0.3)
    twin = copy.deepcopy(unet)
    optimized(unet)
    # diffusers puts the adapter's scale back to its default afterwards.
    for extra in ({}, {"cross_attention_kwargs": {"scale": 0.0}}, {}):
        assert relative(unet(**inputs(**extra)).sample, twin(**inputs(**extra)).sample) <= 1e-5
    for extra in ({"cross_attention_kwargs": {"scale": 0.0}}, {}):
        unet.unload_lora()
        twin.unload_lora()
        assert relative(unet(**inputs(**extra)).sample, twin(**inputs(**extra)).sample) <= 1e-5


@dataclasses.dataclass(frozen=True)
class Kind:
    """captures: how many it takes to run without the adapter and with it."""

    add: Step
    captures: int = 1


def lycoris(config: type) -> Step:
    def run(unet: Any) -> None:
        torch.manual_seed(0)
        unet.add_adapter(config(r=2, alpha=3, target_modules=["to_q", "conv1"], init_weights=False), "one")

    return run


def halved(unet: Any) -> None:
    add("one", 2)(unet)
    for name, weight in unet.named_parameters():
        if "lora_" in name:
            weight.data = weight.data.half()


def dropping(unet: Any) -> None:
    add("one", 4, lora_dropout=0.5)(unet)
    unet.eval()


def padded(unet: Any) -> None:
    # The adapter of a convolution pads with zeros whatever its layer does.
    unet.conv_in.padding_mode = "circular"
    add("one", 2, ("conv_in", "to_q"))(unet)


KINDS = {
    "rank-stabilised": Kind(add("one", 4, use_rslora=True)),
    "with a bias": Kind(add("one", 4, ("to_out.0", "conv1"), lora_bias=True)),
    "with dropout that is off": Kind(dropping),
    "loha": Kind(lycoris(LoHaConfig)),
    "lokr": Kind(lycoris(LoKrConfig)),
    "coarser than its layer": Kind(halved, captures=2),
    "padding otherwise": Kind(padded, captures=2),
}


@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_adapters(name: str, optimized: Any, unet: Any, inputs: Any) -> None:
    twin = copy.deepcopy(unet)
    optimized(unet)
    unet(**inputs())
    assert follow(unet, twin, (KINDS[name].add,), inputs()) == 1
    assert component(unet).journal.captures == KINDS[name].captures


def test_what_a_weight_cannot_stand_for_becomes_part_of_the_graph(
    optimized: Any, unet: Any, inputs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rewriter.capture import adapters

    original = adapters.merged

    def wrong(*args: Any) -> Any:
        weight, bias = original(*args)
        return weight * 1.1, bias

    monkeypatch.setattr(adapters, "merged", wrong)
    twin = copy.deepcopy(unet)
    optimized(unet)
    unet(**inputs())
    add("one", 2)(unet)
    add("one", 2)(twin)
    for _ in range(3):
        assert relative(unet(**inputs()).sample, twin(**inputs()).sample) <= 1e-5
    own = component(unet)
    assert own.journal.captures == 2
    assert own.journal.reason is None
    assert any("become part of the graph" in message for message in own.journal.messages)
    assert own._merging.effective.bytes() == 0


def test_adapters_that_are_off_while_fused_are_taken_out_by_the_first_call(
    optimized: Any, unet: Any, inputs: Any
) -> None:
    twin = copy.deepcopy(unet)
    optimized(unet)
    steps: tuple[Step, ...] = (add("one", 2), lambda unet: unet.fuse_lora(), lambda unet: unet.disable_lora())
    unet(**inputs())
    for step in steps:
        step(unet)
        step(twin)
    for _ in range(3):
        assert relative(unet(**inputs()).sample, twin(**inputs()).sample) <= 1e-5
    assert same_weights(unet, twin)
    assert component(unet).journal.captures == 1


def test_trained_adapters_run_eagerly(optimized: Any, unet: Any, inputs: Any) -> None:
    unet.requires_grad_(False)
    optimized(unet)
    unet(**inputs())
    add("one", 2)(unet)
    with torch.enable_grad():
        unet(**inputs()).sample.sum().backward()
    assert any(weight.grad is not None for name, weight in unet.named_parameters() if "lora_" in name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_the_error_is_that_of_rounding(
    dtype: torch.dtype, optimized: Any, unet: Any, inputs: Any
) -> None:
    add("one", 4, EVERYWHERE)(unet)
    unet.set_adapters("one", 0.5)
    unet.to(dtype)
    arguments = inputs()
    exact = copy.deepcopy(unet).double()(**{name: widen(value, torch.float64) for name, value in arguments.items()})
    halves = {name: widen(value, dtype) for name, value in arguments.items()}
    eager = unet(**halves).sample
    optimized(unet)
    for _ in range(2):
        actual = unet(**halves).sample
    assert component(unet).journal.captures == 1
    assert component(unet)._merging.effective.bytes() > 0
    # The weights are rounded once more.
    assert relative(actual, exact.sample) <= 2 * relative(eager, exact.sample)


def widen(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return value.to(dtype) if value.is_floating_point() else value
