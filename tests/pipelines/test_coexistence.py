"""Other things that take hold of a pipeline: compilers, caches, attention backends, threads, modes of torch."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig, PyramidAttentionBroadcastConfig
from diffusers.models.attention_dispatch import _AttentionBackendRegistry, attention_backend
from tiny_pipelines import CASES
from twins import draw, picture_error

import rewriter

Change = Callable[[Any], Any]
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def compiled(pipe: Any) -> None:
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")


def blocks_broadcast(pipe: Any) -> None:
    pipe.transformer.enable_cache(
        PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=(0, 1000),
            current_timestep_callback=lambda: 500,
        )
    )


_COMPILED = "torch.compile is on top of it and runs what it makes of the module itself"
_HOOK = "the submodule transformer_blocks.0"
# What is done, whether the twin needs it for the same picture, and why the transformer runs eagerly.
CHANGES: dict[str, tuple[Change, bool, str | None]] = {
    "compiled": (compiled, False, _COMPILED),
    "compiled in place": (lambda pipe: pipe.transformer.compile(backend="eager"), False, _COMPILED),
    "blocks compiled": (lambda pipe: pipe.transformer.compile_repeated_blocks(backend="eager"), False, _HOOK),
    "first block cached": (
        lambda pipe: pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.5)),
        True,
        _HOOK,
    ),
    "attention broadcast": (blocks_broadcast, True, _HOOK),
    "attention backend": (lambda pipe: pipe.transformer.set_attention_backend("_native_math"), True, None),
    "fused projections": (lambda pipe: pipe.transformer.fuse_qkv_projections(), False, None),
}


@pytest.fixture(autouse=True)
def _backend_put_back() -> Iterator[None]:
    """`set_attention_backend` sets it for every network that has none of its own, too."""
    before, _ = _AttentionBackendRegistry.get_active_backend()
    yield
    _AttentionBackendRegistry.set_active_backend(before)


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_pipeline_draws_the_same(name: str, order: str) -> None:
    change, for_twin, reason = CHANGES[name]
    pipe, call = CASES["flux-dev"].build(), {**CASES["flux-dev"].call, "num_inference_steps": 4}
    twin = copy.deepcopy(pipe)
    if for_twin:
        change(twin)
    expected = draw(twin, **call)
    if order == "before":
        change(pipe)
    rewriter.optimize(pipe, measure=False)
    if order == "after":
        draw(pipe, **call)
        change(pipe)
    for _ in range(2):
        assert picture_error(draw(pipe, **call), expected) < 1e-4
    part = rewriter.report(pipe).components["transformer"]
    assert part.status == ("eager" if reason else "optimised")
    assert str(part.reason).startswith(reason or "None")
    rewriter.restore(pipe)
    assert picture_error(draw(pipe, **call), expected) < 1e-4


def test_the_attention_backend_of_all_networks_is_never_ignored() -> None:
    pipe, call = CASES["flux-dev"].build(), CASES["flux-dev"].call
    rewriter.optimize(pipe, measure=False)
    for captures in (1, 1, 2, 2):
        with attention_backend("_native_math") if captures == 2 else contextlib.nullcontext():
            draw(pipe, **call)
        assert rewriter.report(pipe).components["transformer"].captures == captures
    draw(pipe, **call)
    assert rewriter.report(pipe).components["transformer"].captures == 2


def test_threads_call_one_pipelines_networks() -> None:
    pipe, call = CASES["sd15"].build(), CASES["sd15"].call
    expected = {seed: draw(copy.deepcopy(pipe), seed, **call) for seed in range(3)}
    rewriter.optimize(pipe, measure=False)
    wrong: list[Any] = []

    def work(seed: int) -> None:
        # Two threads cannot share a scheduler, nor a tokenizer, which is told its padding before each text.
        parts = {name: copy.deepcopy(pipe.components[name]) for name in ("scheduler", "tokenizer")}
        own = type(pipe)(**{**pipe.components, **parts}, requires_safety_checker=False)
        own.set_progress_bar_config(disable=True)
        for _ in range(3):
            try:
                generator = torch.Generator().manual_seed(seed)
                found = own(num_inference_steps=2, output_type="np", generator=generator, **call).images
                assert picture_error(found, expected[seed]) < 1e-4
            except BaseException as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    part = rewriter.report(pipe).components["unet"]
    assert (part.status, part.captures, part.calls) == ("optimised", 1, 18)


def test_inference_mode_and_autocast() -> None:
    pipe, call = CASES["sd15"].build(), CASES["sd15"].call
    twin = copy.deepcopy(pipe)
    rewriter.optimize(pipe, measure=False)
    draw(pipe, **call)
    with torch.inference_mode():
        assert picture_error(draw(pipe, **call), draw(twin, **call)) < 1e-4
    assert rewriter.report(pipe).components["unet"].captures == 1
    with torch.autocast("cpu", torch.bfloat16):
        # Weights in another memory order take other kernels, which round elsewhere in bfloat16.
        assert picture_error(draw(pipe, **call), draw(twin, **call)) < 5e-2
    assert picture_error(draw(pipe, **call), draw(twin, **call)) < 1e-4
    part = rewriter.report(pipe).components["unet"]
    assert "ran eagerly: autocast is on for cpu" in part.messages
    assert part.status == "optimised"


def test_a_compiled_wrapper_of_one_network_is_left_alone() -> None:
    pipe = CASES["sd15"].build()
    wrapper = torch.compile(pipe.unet, backend="eager")
    rewriter.optimize(wrapper, measure=False)
    (part,) = rewriter.report(wrapper).components.values()
    assert part.status == "eager"
    assert "use rewriter or torch.compile for a network, not both" in str(part.reason)
