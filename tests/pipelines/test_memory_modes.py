"""What saves memory goes on working, switched on before or after optimising: optimised, or eager with the reason.

Without a GPU there is nothing to move weights to, so the hooks are attached by hand with the CPU as the place to
compute on; weights that move are those of a hook that gives them other storage around each call.
"""

# ruff: noqa: ARG001 (what is called here has a signature given from outside)

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers.hooks import apply_group_offloading
from tiny_pipelines import CASES
from twins import compared, draw, picture_error

import rewriter

Mode = Callable[[Any, Path], None]
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def networks(pipe: Any) -> Iterator[torch.nn.Module]:
    return (module for module in pipe.components.values() if isinstance(module, torch.nn.Module))


def model_offload(pipe: Any, folder: Path) -> None:
    hook = None
    for name in pipe.model_cpu_offload_seq.split("->"):
        if getattr(pipe, name, None) is not None:
            _, hook = accelerate.cpu_offload_with_hook(getattr(pipe, name), "cpu", prev_module_hook=hook)


class Moving(ModelHook):
    """Moves the weights to another place before each call and back after it."""

    def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        self._move(module)
        return args, kwargs

    def post_forward(self, module: torch.nn.Module, output: Any) -> Any:
        self._move(module)
        return output

    def _move(self, module: torch.nn.Module) -> None:
        for weight in (*module.parameters(), *module.buffers()):
            weight.data = weight.data.clone(memory_format=torch.preserve_format)


def moving(pipe: Any, folder: Path) -> None:
    for module in networks(pipe):
        add_hook_to_module(module, Moving())


def sequential_offload(pipe: Any, folder: Path) -> None:
    for module in networks(pipe):
        accelerate.cpu_offload(module, execution_device=torch.device("cpu"), offload_buffers=True)


def disk_offload(pipe: Any, folder: Path) -> None:
    for index, module in enumerate(networks(pipe)):
        accelerate.disk_offload(module, str(folder / str(index)), execution_device=torch.device("cpu"))


def group_offload(pipe: Any, folder: Path, kind: str) -> None:
    for module in networks(pipe):
        apply_group_offloading(
            module,
            onload_device=torch.device("cpu"),
            offload_device=torch.device("cpu"),
            offload_type=kind,
            num_blocks_per_group=1 if kind == "block_level" else None,
        )


def vae_slicing_and_tiling(pipe: Any, folder: Path) -> None:
    pipe.vae.enable_slicing()
    pipe.vae.enable_tiling()


_OFFLOADED = r"the weight .* is on the meta device|the submodule .* has a hook of accelerate \(AlignDevicesHook\)"
_GROUPED = r"the submodule .* has a hook of diffusers \(group_offloading\)"
_AROUND = r"it has hooks of diffusers \(group_offloading\) around it; optimise it before adding them"
# What is attached, and why networks run eagerly where it is attached before optimising, and after.
MODES: dict[str, tuple[Mode, str | None, str | None]] = {
    "model offload": (model_offload, None, None),
    "moving weights": (moving, None, None),
    "sequential offload": (sequential_offload, _OFFLOADED, _OFFLOADED),
    "disk offload": (disk_offload, _OFFLOADED, _OFFLOADED),
    "group offload by leaf": (functools.partial(group_offload, kind="leaf_level"), _GROUPED, _GROUPED),
    "group offload by block": (functools.partial(group_offload, kind="block_level"), _AROUND, _GROUPED),
    "slicing and tiling": (vae_slicing_and_tiling, None, None),
}


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("mode", MODES)
def test_a_pipeline_draws_the_same(mode: str, order: str, tmp_path: Path) -> None:
    attach, *reasons = MODES[mode]
    pipe, call = CASES["sd15"].build(), CASES["sd15"].call
    twin = copy.deepcopy(pipe)
    expected = [draw(twin, seed, **call) for seed in (0, 1)]
    if order == "before":
        attach(pipe, tmp_path)
    rewriter.optimize(pipe, measure=False)
    if order == "after":
        assert picture_error(draw(pipe, 0, **call), expected[0]) < 1e-4
        attach(pipe, tmp_path)
    for seed in (0, 1, 0):
        assert picture_error(draw(pipe, seed, **call), expected[seed]) < 1e-4
    parts = rewriter.report(pipe).components
    reason = reasons[order == "after"]
    for name in ("unet", "vae.decoder"):
        part = parts[name]
        assert part.captures == (0 if reason and order == "before" else 1)
        if reason is None:
            assert (part.status, part.eager_calls) == ("optimised", 1)
        else:
            assert part.status == "eager"
            assert re.fullmatch(rf"({reason}).*", str(part.reason))
    rewriter.restore(pipe)
    assert picture_error(draw(pipe, 0, **call), expected[0]) < 1e-4


def test_without_its_hooks_a_pipeline_is_optimised_again(tmp_path: Path) -> None:
    pipe, call = CASES["sd15"].build(), CASES["sd15"].call
    expected = draw(copy.deepcopy(pipe), **call)
    rewriter.optimize(pipe, measure=False)
    draw(pipe, **call)
    sequential_offload(pipe, tmp_path)
    draw(pipe, **call)
    assert rewriter.report(pipe).components["unet"].status == "eager"
    pipe.remove_all_hooks()
    for _ in range(2):
        assert picture_error(draw(pipe, **call), expected) < 1e-4
    assert rewriter.report(pipe).components["unet"].status == "optimised"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_pipeline_in_another_dtype(dtype: torch.dtype) -> None:
    pipe, call = CASES["sd15"].build(), CASES["sd15"].call
    twin = copy.deepcopy(pipe)
    rewriter.optimize(pipe, measure=False)
    for each in (torch.float32, dtype, torch.float32, dtype):
        pipe.to(each), twin.to(each)
        with compared(pipe, twin) as errors:
            actual = draw(pipe, **call)
        # In bfloat16 one rounding is 4e-3, and the picture is a sum of many.
        network, picture = (4e-2, 1e-1) if each is torch.bfloat16 else (1e-5, 1e-4)
        assert max(errors.values()) < network
        assert picture_error(actual, draw(twin, **call)) < picture
    assert {rewriter.report(pipe).components[name].captures for name in ("unet", "vae.decoder")} == {2}


@pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["sdxl", "sdxl-img2img"])
def test_the_autoencoder_of_sdxl_is_cast_up_for_each_picture(name: str) -> None:
    pipe, call = CASES[name].build(), CASES[name].call
    pipe.to(torch.float16)
    twin = copy.deepcopy(pipe)
    rewriter.optimize(pipe, measure=False)
    for seed in (0, 1):
        assert picture_error(draw(pipe, seed, **call), draw(twin, seed, **call)) < 2e-2
        assert {weight.dtype for weight in pipe.vae.decoder.parameters()} == {torch.float16}
    part = rewriter.report(pipe).components["vae.decoder"]
    assert (part.status, part.captures, part.eager_calls) == ("optimised", 1, 1)


def test_attention_slices_and_channels_last_weights() -> None:
    pipe, call = CASES["sd15"].build(), CASES["sd15"].call
    expected = draw(copy.deepcopy(pipe), **call)
    rewriter.optimize(pipe, measure=False)
    pipe.enable_attention_slicing(1)
    for _ in range(2):
        assert picture_error(draw(pipe, **call), expected) < 1e-4
    pipe.unet.to(memory_format=torch.channels_last)
    pipe.vae.to(memory_format=torch.channels_last)
    for _ in range(2):
        assert picture_error(draw(pipe, **call), expected) < 1e-4
    pipe.disable_attention_slicing()
    assert picture_error(draw(pipe, **call), expected) < 1e-4
    assert rewriter.report(pipe).components["unet"].status == "optimised"
