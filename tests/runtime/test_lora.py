"""LoRAs, FreeU and attention processors take effect on the next call."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from peft import LoraConfig

import rewriter

Step = Callable[[Any], Any]


def add(name: str, rank: int) -> Step:
    def run(unet: Any) -> None:
        torch.manual_seed(rank)
        targets = ["to_q", "to_k", "to_v", "to_out.0"]
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, init_lora_weights=False), name)

    return run


LORA: tuple[Step, ...] = (
    add("one", 2),
    lambda unet: unet.set_adapters("one", 0.5),
    lambda unet: unet.set_adapters("one", 0.25),
    add("two", 4),
    lambda unet: unet.set_adapters(["one", "two"], [0.5, 2.0]),
    lambda unet: unet.disable_lora(),
    lambda unet: unet.enable_lora(),
    lambda unet: unet.fuse_lora(),
    lambda unet: unet.unfuse_lora(),
    lambda unet: unet.delete_adapters("two"),
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


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("steps", [LORA, OTHERS], ids=["lora", "others"])
def test_each_step_equals_eager(
    steps: tuple[Step, ...], optimized: Any, unet: Any, inputs: Any, equal_to_eager: Callable[..., None]
) -> None:
    twin = copy.deepcopy(unet)
    optimized(unet)
    equal_to_eager(unet, twin, **inputs())
    previous = twin(**inputs()).sample
    changed = 0
    for number, step in enumerate(steps):
        step(unet)
        step(twin)
        for _ in range(2):
            equal_to_eager(unet, twin, **inputs())
        (part,) = rewriter.report(unet).components.values()
        assert part.status == "optimised", (number, part.reason)
        result = twin(**inputs()).sample
        changed += not torch.allclose(result, previous)
        previous = result
    # Otherwise the test would show nothing.
    assert changed >= 3


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_scale_given_with_the_call_takes_effect_and_leaves_the_adapter_as_it_was(
    optimized: Any, unet: Any, inputs: Any, equal_to_eager: Callable[..., None]
) -> None:
    add("one", 2)(unet)
    twin = copy.deepcopy(unet)
    optimized(unet)
    for scale in (1.0, 0.5, 0.5, 0.25, 1.0, 0.5):
        equal_to_eager(unet, twin, **inputs(cross_attention_kwargs={"scale": scale}))
    scalings = [module.scaling for module in unet.modules() if hasattr(module, "scaling")]
    assert scalings
    assert all(type(value) is float for scaling in scalings for value in scaling.values())
