"""Optimise and restore whole pipelines."""

# ruff: noqa: ARG002 (what is called here has a signature given from outside)

from __future__ import annotations

import copy
import gc
import weakref
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from diffusers.hooks import HookRegistry
from diffusers.hooks import ModelHook as DiffusersHook

import rewriter
from rewriter.runtime.component import Component
from rewriter.runtime.networks import component_of
from rewriter.runtime.session import components_of


def attributes(pipe: Any) -> dict[str, dict[str, Any]]:
    """Every attribute of the pipeline and of all modules in it, tables included, by identity."""
    found = {"": dict(vars(pipe))}
    for name, module in pipe.components.items():
        if isinstance(module, torch.nn.Module):
            for path, child in module.named_modules():
                found[f"{name}.{path}"] = dict(vars(child))
                for table in ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks"):
                    found[f"{name}.{path}.{table}"] = dict(vars(child)[table])
    return found


def same(before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]]) -> bool:
    return before.keys() == after.keys() and all(
        before[name].keys() == after[name].keys() and all(before[name][key] is after[name][key] for key in before[name])
        for name in before
    )


def picture(pipe: Any, **options: Any) -> torch.Tensor:
    options = {"height": 16, "width": 16, "num_inference_steps": 3, "guidance_scale": 2.0, **options}
    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(1))
    return pipe(
        prompt_embeds=embeds, negative_prompt_embeds=-embeds, generator=generator, output_type="pt", **options
    ).images


def test_a_pipeline_draws_the_same_picture(optimized: Any, pipeline: Any) -> None:
    expected = picture(pipeline)
    assert optimized(pipeline) is pipeline
    for _ in range(2):
        torch.testing.assert_close(picture(pipeline), expected)
    parts = rewriter.report(pipeline).components
    assert {name: part.status for name, part in parts.items()} == {
        "unet": "optimised",
        "vae.encoder": "pending",
        "vae.decoder": "optimised",
    }


def test_tiling_and_slicing_go_on_working(optimized: Any, pipeline: Any) -> None:
    pipeline.vae.enable_tiling()
    pipeline.vae.tile_latent_min_size, pipeline.vae.tile_sample_min_size = 4, 8
    expected = picture(pipeline, num_images_per_prompt=2)
    optimized(pipeline)
    torch.testing.assert_close(picture(pipeline, num_images_per_prompt=2), expected)
    pipeline.vae.enable_slicing()
    torch.testing.assert_close(picture(pipeline, num_images_per_prompt=2), expected)
    assert rewriter.report(pipeline).components["vae.decoder"].calls > 2


def test_restore_leaves_every_attribute_as_it_was(optimized: Any, pipeline: Any) -> None:
    picture(pipeline)
    before = attributes(pipeline)
    optimized(pipeline)
    assert not same(before, attributes(pipeline))
    picture(pipeline)
    assert rewriter.restore(pipeline) is pipeline
    assert same(before, attributes(pipeline))
    assert rewriter.restore(pipeline) is pipeline
    with pytest.raises(rewriter.RewriterError, match="StableDiffusionPipeline is not optimised"):
        rewriter.report(pipeline)


def test_only_what_is_a_pipeline_or_a_module_is_accepted(optimized: Any) -> None:
    for function in (optimized, rewriter.restore, rewriter.report, rewriter.explain):
        with pytest.raises(
            TypeError, match=r"accepts a diffusers DiffusionPipeline or a torch\.nn\.Module, found builtins"
        ):
            function({"unet": None})


def test_unusable_rules_leave_everything_as_it_was(pipeline: Any, tmp_path: Path) -> None:
    before = attributes(pipeline)
    broken = tmp_path / "rules.yaml"
    broken.write_text("format: 1\nrules: 3\n")
    with pytest.raises(rewriter.RuleError):
        rewriter.optimize(pipeline, rules=str(broken))
    assert same(before, attributes(pipeline))


def test_the_same_rules_again_change_nothing(optimized: Any, pipeline: Any) -> None:
    optimized(pipeline)
    picture(pipeline)
    before = attributes(pipeline)
    optimized(pipeline)
    assert same(before, attributes(pipeline))
    assert rewriter.report(pipeline).components["unet"].captures == 1


def test_other_options_optimise_anew(optimized: Any, pipeline: Any) -> None:
    before = attributes(pipeline)
    optimized(pipeline)
    first = component_of(pipeline.unet)
    optimized(pipeline, verify=False)
    second = component_of(pipeline.unet)
    assert first is not second
    assert second is not None
    assert second.found is None
    rewriter.restore(pipeline)
    assert same(before, attributes(pipeline))


def test_a_network_that_was_exchanged_is_let_go(optimized: Any, pipeline: Any) -> None:
    optimized(pipeline)
    old, pipeline.unet = pipeline.unet, copy.deepcopy(pipeline.unet)
    optimized(pipeline)
    assert component_of(old) is None
    assert component_of(pipeline.unet) is not None


def test_a_single_module_and_an_autoencoder(optimized: Any, pipeline: Any) -> None:
    optimized(pipeline.unet)
    assert list(components_of(pipeline.unet)) == ["UNet2DConditionModel"]
    rewriter.restore(pipeline.unet)
    assert "forward" not in vars(pipeline.unet)
    optimized(pipeline.vae)
    assert list(components_of(pipeline.vae)) == ["AutoencoderKL.encoder", "AutoencoderKL.decoder"]


def test_every_net_of_several_controlnets_is_found(optimized: Any) -> None:
    nets = [
        diffusers.ControlNetModel(
            block_out_channels=(8,),
            down_block_types=("DownBlock2D",),
            norm_num_groups=4,
            conditioning_embedding_out_channels=(8,),
        )
        for _ in range(2)
    ]
    many = diffusers.MultiControlNetModel(nets).eval()
    optimized(many)
    assert list(components_of(many)) == ["MultiControlNetModel.0", "MultiControlNetModel.1"]


def test_two_pipelines_share_a_network(optimized: Any, pipeline: Any) -> None:
    other = diffusers.StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    picture(pipeline)
    before = attributes(pipeline)
    optimized(pipeline)
    optimized(other)
    shared = component_of(pipeline.unet)
    picture(pipeline)
    assert rewriter.report(other).components["unet"].calls == 3
    rewriter.restore(pipeline)
    assert component_of(pipeline.unet) is shared
    rewriter.restore(other)
    assert same(before, attributes(pipeline))


def test_a_shared_network_is_free_once_the_other_pipeline_is_gone(optimized: Any, pipeline: Any) -> None:
    other = diffusers.StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    optimized(pipeline)
    optimized(other)
    del other
    gc.collect()
    rewriter.restore(pipeline)
    assert component_of(pipeline.unet) is None


def test_other_rules_for_a_shared_network_hold_for_both(optimized: Any, pipeline: Any) -> None:
    other = diffusers.StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    optimized(pipeline)
    optimized(other, verify=False)
    assert components_of(pipeline)["unet"] is components_of(other)["unet"]
    rewriter.restore(other)
    assert component_of(pipeline.unet) is not None
    rewriter.restore(pipeline)
    assert component_of(pipeline.unet) is None


def test_copies_are_not_optimised_and_independent(optimized: Any, pipeline: Any) -> None:
    expected = picture(pipeline)
    optimized(pipeline)
    picture(pipeline)
    twin = copy.deepcopy(pipeline)
    assert not isinstance(twin.unet.forward, Component)
    assert twin.unet.forward.__self__ is twin.unet
    with torch.no_grad():
        pipeline.unet.conv_in.weight.zero_()
    torch.testing.assert_close(picture(twin), expected)
    optimized(twin)
    torch.testing.assert_close(picture(twin), expected)
    torch.testing.assert_close(picture(twin), expected)


def test_saving_and_loading(optimized: Any, pipeline: Any, tmp_path: Path) -> None:
    expected = picture(pipeline)
    optimized(pipeline)
    picture(pipeline)
    pipeline.save_pretrained(tmp_path)
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(
        tmp_path, text_encoder=None, tokenizer=None, safety_checker=None, feature_extractor=None
    )
    loaded.set_progress_bar_config(disable=True)
    torch.testing.assert_close(picture(loaded), expected)


class Counting(ModelHook):
    calls = 0

    def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return args, kwargs


@pytest.mark.parametrize("hook_first", [True, False])
def test_a_hook_of_accelerate_around_a_network_goes_on_working(
    optimized: Any, unet: Any, inputs: Any, hook_first: bool
) -> None:
    expected = unet(**inputs()).sample
    hook = Counting()
    if hook_first:
        add_hook_to_module(unet, hook)
        before = dict(vars(unet))
    optimized(unet)
    if not hook_first:
        add_hook_to_module(unet, hook)
    for _ in range(3):
        assert torch.equal(unet(**inputs()).sample, expected)
    assert hook.calls == 3
    (part,) = rewriter.report(unet).components.values()
    assert (part.status, part.eager_calls) == ("optimised", 1)
    rewriter.restore(unet)
    assert torch.equal(unet(**inputs()).sample, expected)
    assert hook.calls == 4
    if hook_first:
        assert all(vars(unet)[name] is value for name, value in before.items())
    remove_hook_from_module(unet)
    assert torch.equal(unet(**inputs()).sample, expected)
    assert not isinstance(unet.forward, Component)


def test_hooks_on_submodules_run_eagerly_with_the_reason(optimized: Any, unet: Any, inputs: Any) -> None:
    expected = unet(**inputs()).sample
    optimized(unet)
    unet(**inputs())
    hook = Counting()
    add_hook_to_module(unet.mid_block, hook)
    assert torch.equal(unet(**inputs()).sample, expected)
    assert hook.calls == 1
    (part,) = rewriter.report(unet).components.values()
    assert part.reason == "the submodule mid_block has a hook of accelerate (Counting)"
    remove_hook_from_module(unet.mid_block)
    # Removing leaves a forward of its own behind.
    assert torch.equal(unet(**inputs()).sample, expected)
    assert rewriter.report(unet).components["UNet2DConditionModel"].status == "optimised"


def test_layerwise_casting_of_diffusers_runs_eagerly(optimized: Any, unet: Any, inputs: Any) -> None:
    optimized(unet)
    unet(**inputs())
    unet.enable_layerwise_casting(storage_dtype=torch.float16, compute_dtype=torch.float32)
    twin_result = unet(**inputs()).sample
    assert torch.isfinite(twin_result).all()
    (part,) = rewriter.report(unet).components.values()
    assert "hook of diffusers" in str(part.reason)


def test_an_empty_registry_of_diffusers_is_no_hook(optimized: Any, unet: Any, inputs: Any) -> None:
    HookRegistry.check_if_exists_or_initialize(unet)
    HookRegistry.check_if_exists_or_initialize(unet.mid_block)
    optimized(unet)
    unet(**inputs())
    assert rewriter.report(unet).components["UNet2DConditionModel"].status == "optimised"


def test_a_hook_of_diffusers_around_a_network_runs_eagerly(optimized: Any, unet: Any, inputs: Any) -> None:
    calls: list[int] = []

    class Hook(DiffusersHook):
        def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            return args, kwargs

    HookRegistry.check_if_exists_or_initialize(unet).register_hook(Hook(), "counting")
    optimized(unet)
    for _ in range(2):
        unet(**inputs())
    assert len(calls) == 2
    reason = "it has hooks of diffusers (counting) around it; optimise it before adding them"
    assert rewriter.report(unet).components["UNet2DConditionModel"].reason == reason


def memory_of_weights() -> int:
    return sum(type(item) is torch.nn.Parameter for item in gc.get_objects())


@pytest.mark.parametrize("restored", [True, False])
def test_models_in_a_loop_leave_nothing_behind(optimized: Any, make_unet: Any, inputs: Any, restored: bool) -> None:
    def once() -> weakref.ref[Any]:
        unet = make_unet()
        optimized(unet)
        unet(**inputs())
        unet(**inputs())
        if restored:
            rewriter.restore(unet)
        return weakref.ref(unet)

    once()
    gc.collect()
    before = memory_of_weights()
    gone = [once() for _ in range(5)]
    gc.collect()
    assert [reference() for reference in gone] == [None] * 5
    assert memory_of_weights() == before


def test_an_optimised_module_is_freed_without_the_garbage_collector(optimized: Any) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 3)).eval()
    optimized(module)
    module(torch.randn(2, 3)), module(torch.randn(2, 3))
    gc.collect()
    gc.disable()
    try:
        gone = weakref.ref(module)
        del module
        assert gone() is None
    finally:
        gc.enable()


def test_a_forward_that_outlives_its_module_says_so(optimized: Any) -> None:
    module = torch.nn.Linear(3, 3).eval()
    forward = optimized(module).forward
    del module
    with pytest.raises(rewriter.RewriterError, match="keep a reference to the module itself"):
        forward(torch.randn(2, 3))


@pytest.mark.parametrize("held", [True, False], ids=["the old one is kept", "the old one is gone"])
def test_a_network_put_into_an_optimised_pipeline_is_reported_as_eager(
    pipeline: Any, make_unet: Any, optimized: Any, held: bool
) -> None:
    optimized(pipeline)
    kept = pipeline.unet if held else None
    pipeline.unet = make_unet()
    part = rewriter.report(pipeline).components["unet"]
    assert (part.status, part.captures) == ("eager", 0)
    assert "call rewriter.optimize once more" in str(part.reason)
    optimized(pipeline)
    assert rewriter.report(pipeline).components["unet"].status == "pending"
    del kept
