"""LCM-LoRA: an adapter and a scheduler make few steps do, beside the adapter or fused, with or without its guidance.

A UNet with `time_cond_proj_dim` is told the guidance in an embedding beside the time's and runs once a step; one
without is run with and without the text where the guidance is above one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from tiny_pipelines import CASES
from tiny_stable_diffusion import lcm_lora, lcm_scheduler, sd, xl
from twins import compared, draw, picture_error

import rewriter
from rewriter.models.libraries import quiet

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]


def nothing(_: Any) -> None:
    pass


Step = tuple[str, Callable[[Any], Any], float]
# What is done, and the guidance of the picture drawn after it.
STEPS: tuple[Step, ...] = (
    ("loaded", lambda pipe: pipe.load_lora_weights(lcm_lora(pipe), adapter_name="lcm"), 1.0),
    ("guided", nothing, 1.7),
    ("scaled", lambda pipe: pipe.set_adapters("lcm", 0.6), 1.7),
    ("fused", lambda pipe: pipe.fuse_lora(lora_scale=0.5), 1.2),
    ("unfused", lambda pipe: pipe.unfuse_lora(), 1.5),
    ("fused again", lambda pipe: pipe.fuse_lora(), 1.0),
    # Its weights stay.
    ("unloaded", lambda pipe: pipe.unload_lora_weights(), 1.9),
)


@pytest.mark.parametrize("guidance", [None, 8], ids=["plain", "guidance embedded"])
@pytest.mark.parametrize("make", [sd, xl], ids=["sd15", "sdxl"])
def test_a_picture_in_few_steps(make: Callable[..., Any], guidance: int | None) -> None:
    with quiet():
        pipe = make(unet={"time_cond_proj_dim": guidance})
    pipe.set_progress_bar_config(disable=True)
    twin = copy.deepcopy(pipe)
    rewriter.optimize(pipe, measure=False)
    call = {**CASES["sd15-lcm-lora"].call, "num_inference_steps": 3}
    for each in (pipe, twin):
        each.scheduler = lcm_scheduler()
    pictures = [draw(pipe, **call)]
    for name, step, scale in STEPS:
        for each in (pipe, twin):
            step(each)
        with compared(pipe, twin) as errors:
            picture = draw(pipe, **{**call, "guidance_scale": scale})
        assert max(errors.values()) <= 1e-5, (name, errors)
        assert picture_error(picture, draw(twin, **{**call, "guidance_scale": scale})) <= 1e-4, name
        assert abs(picture - pictures[-1]).max() > 1e-4, f"{name}: without effect"
        pictures.append(picture)
    part = rewriter.report(pipe).components["unet"]
    assert (part.status, part.captures) == ("optimised", 1)
    assert isinstance(pipe.scheduler, diffusers.LCMScheduler)
    assert all(map(torch.equal, pipe.unet.parameters(), twin.unet.parameters()))
