"""What a pipeline can be asked for beside a plain call, as far as its signature knows it."""

# ruff: noqa: ARG001, ARG005 (what is called here has a signature given from outside)

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import diffusers

Call = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feature:
    """needs: parameters that the pipeline must have. call: other arguments. around: changes of the pipeline itself.

    fits: whether the pipeline has what `around` changes.
    """

    name: str
    needs: tuple[str, ...] = ()
    call: Callable[[Any, Call], Call] = lambda pipe, call: call
    around: Callable[[Any], contextlib.AbstractContextManager[Any]] = lambda pipe: contextlib.nullcontext()
    fits: Callable[[Any], bool] = lambda pipe: True

    def applies(self, pipe: Any) -> bool:
        known = inspect.signature(pipe.__call__).parameters
        return all(name in known for name in self.needs) and self.fits(pipe)


def _with(**changes: Any) -> Callable[[Any, Call], Call]:
    return lambda pipe, call: {**call, **changes}


def _wider(pipe: Any, call: Call) -> Call:
    return {**call, "width": 2 * call.get("width", 16), "height": call.get("height", 16)}


def _dimmed(pipe: Any, step: int, timestep: Any, given: Call) -> Call:
    return {"latents": given["latents"] * 0.9}


def _guided_at_first(pipe: Any, step: int, timestep: Any, given: Call) -> Call:
    """Goes on without classifier-free guidance after the first step, as diffusers' guide shows it."""
    if step == 0:
        pipe._guidance_scale = 0.0
        return {"prompt_embeds": given["prompt_embeds"].chunk(2)[-1]}
    return {}


def encoded(pipe: Any, call: Call) -> Call:
    """The same call with the embeddings that the pipeline makes of its texts in their place."""
    seen: list[Any] = []
    original = pipe.encode_prompt

    def encode_prompt(*args: Any, **kwargs: Any) -> Any:
        seen.append(original(*args, **kwargs))
        return seen[-1]

    pipe.encode_prompt = encode_prompt
    try:
        pipe(**call, num_inference_steps=2, output_type="latent")
    finally:
        del pipe.encode_prompt
    known = inspect.signature(pipe.__call__).parameters
    values = dict(zip(_embedding_names(pipe), itertools.chain(*seen), strict=False))
    without_text = {name: value for name, value in call.items() if name not in ("prompt", "negative_prompt")}
    # PixArt has a negative prompt by default.
    replaced = {"negative_prompt": None} if "prompt_attention_mask" in values else {}
    return without_text | replaced | {n: value for n, value in values.items() if n in known and value is not None}


def _embedding_names(pipe: Any) -> tuple[str, ...]:
    """What the values are called that `encode_prompt` returns, where several calls of it follow each other."""
    kind = type(pipe).__name__
    if kind.startswith("Flux"):
        return ("prompt_embeds", "pooled_prompt_embeds")
    if kind.startswith("Qwen"):
        return ("prompt_embeds", "prompt_embeds_mask", "negative_prompt_embeds", "negative_prompt_embeds_mask")
    if kind.startswith(("PixArt", "Sana")):
        return ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")
    if hasattr(pipe, "text_encoder_2"):
        return ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    return ("prompt_embeds", "negative_prompt_embeds")


def scaled(call: Call, name: str, factor: float) -> Call:
    value = call[name]
    return {**call, name: [factor * each for each in value] if isinstance(value, list) else factor * value}


@contextlib.contextmanager
def _freeu(pipe: Any) -> Iterator[None]:
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    try:
        yield
    finally:
        pipe.disable_freeu()


@contextlib.contextmanager
def _slicing(pipe: Any) -> Iterator[None]:
    pipe.vae.enable_slicing()
    try:
        yield
    finally:
        pipe.vae.disable_slicing()


@contextlib.contextmanager
def _tiling(pipe: Any) -> Iterator[None]:
    vae = pipe.vae
    before = {
        name: getattr(vae, name) for name in ("tile_latent_min_size", "tile_sample_min_size") if hasattr(vae, name)
    }
    vae.enable_tiling()
    for name in before:
        setattr(vae, name, 4 if "latent" in name else 8)
    try:
        yield
    finally:
        vae.disable_tiling()
        for name, value in before.items():
            setattr(vae, name, value)


def _image_scale(scale: float) -> Callable[[Any], contextlib.AbstractContextManager[None]]:
    @contextlib.contextmanager
    def around(pipe: Any) -> Iterator[None]:
        pipe.set_ip_adapter_scale(scale)
        try:
            yield
        finally:
            pipe.set_ip_adapter_scale(0.7)

    return around


def _scheduled(kind: str) -> Callable[[Any], contextlib.AbstractContextManager[None]]:
    @contextlib.contextmanager
    def around(pipe: Any) -> Iterator[None]:
        before = pipe.scheduler
        pipe.scheduler = getattr(diffusers, kind).from_config(before.config)
        try:
            yield
        finally:
            pipe.scheduler = before

    return around


def _diffuses(pipe: Any) -> bool:
    """Any scheduler of the classic kind will do."""
    return isinstance(pipe.scheduler, diffusers.EulerDiscreteScheduler) and hasattr(pipe, "text_encoder")


def _flows(pipe: Any) -> bool:
    return isinstance(pipe.scheduler, diffusers.FlowMatchEulerDiscreteScheduler) and hasattr(pipe, "transformer")


def _unet(pipe: Any) -> bool:
    return isinstance(getattr(pipe, "unet", None), diffusers.UNet2DConditionModel)


def _sees_pictures(pipe: Any) -> bool:
    return _unet(pipe) and getattr(pipe, "image_encoder", None) is not None


def _text_unet(pipe: Any) -> bool:
    return isinstance(pipe, diffusers.StableDiffusionPipeline)


FEATURES: tuple[Feature, ...] = (
    Feature(name="plain"),
    Feature(name="embeddings given", needs=("prompt_embeds",), call=encoded),
    Feature(name="several pictures", needs=("num_images_per_prompt",), call=_with(num_images_per_prompt=2)),
    Feature(name="several videos", needs=("num_videos_per_prompt",), call=_with(num_videos_per_prompt=2)),
    Feature(name="other size", needs=("height", "width"), call=_wider),
    Feature(name="other guidance", needs=("guidance_scale",), call=_with(guidance_scale=2.5)),
    Feature(name="no guidance", needs=("guidance_scale",), call=_with(guidance_scale=1.0)),
    Feature(name="true guidance", needs=("true_cfg_scale",), call=_with(true_cfg_scale=3.0, negative_prompt="dim")),
    Feature(name="frame guidance", needs=("max_guidance_scale",), call=_with(max_guidance_scale=2.0)),
    Feature(name="guidance rescale", needs=("guidance_rescale",), call=_with(guidance_rescale=0.7)),
    Feature(name="clip skip", needs=("clip_skip",), call=_with(clip_skip=1)),
    Feature(name="callback", needs=("callback_on_step_end",), call=_with(callback_on_step_end=_dimmed)),
    Feature(
        name="guidance switched off midway",
        call=_with(callback_on_step_end=_guided_at_first, callback_on_step_end_tensor_inputs=["prompt_embeds"]),
        fits=_text_unet,
    ),
    Feature(
        name="control scale",
        needs=("controlnet_conditioning_scale",),
        call=lambda pipe, call: scaled(
            {"controlnet_conditioning_scale": 1.0, **call}, "controlnet_conditioning_scale", 0.5
        ),
    ),
    Feature(name="guess mode", needs=("guess_mode",), call=_with(guess_mode=True)),
    Feature(name="control ends early", needs=("control_guidance_end",), call=_with(control_guidance_end=0.4)),
    Feature(
        name="adapter scale",
        needs=("adapter_conditioning_scale",),
        call=lambda pipe, call: scaled(call, "adapter_conditioning_scale", 0.5),
    ),
    Feature(name="picture scale", around=_image_scale(0.2), fits=_sees_pictures),
    Feature(name="picture scale 0", around=_image_scale(0.0), fits=_sees_pictures),
    Feature(name="latents returned", call=_with(output_type="latent")),
    Feature(name="freeu", around=_freeu, fits=_unet),
    Feature(
        name="vae slicing",
        around=_slicing,
        needs=("num_images_per_prompt",),
        fits=lambda pipe: hasattr(pipe.vae, "enable_slicing"),
    ),
    Feature(
        name="vae tiling",
        around=_tiling,
        fits=lambda pipe: hasattr(pipe.vae, "tile_sample_min_size") or hasattr(pipe.vae, "tile_sample_min_height"),
    ),
    Feature(name="Euler ancestral", around=_scheduled("EulerAncestralDiscreteScheduler"), fits=_diffuses),
    Feature(name="DPM++", around=_scheduled("DPMSolverMultistepScheduler"), fits=_diffuses),
    Feature(name="LCM", around=_scheduled("LCMScheduler"), fits=_diffuses),
    Feature(name="flow match LCM", around=_scheduled("FlowMatchLCMScheduler"), fits=_flows),
)
# Asked for in one call. Alone stands what this release of diffusers cannot do with some of the pipelines.
TOGETHER: tuple[tuple[str, ...], ...] = (
    ("plain",),
    ("embeddings given", "other guidance", "callback"),
    (
        "several pictures",
        "several videos",
        "vae slicing",
        "guidance rescale",
        "control scale",
        "adapter scale",
        "picture scale",
    ),
    ("other size", "vae tiling", "true guidance", "frame guidance", "control ends early", "picture scale 0"),
    ("no guidance", "Euler ancestral", "flow match LCM"),
    ("clip skip",),
    ("guidance switched off midway",),
    ("guess mode",),
    ("freeu", "latents returned", "DPM++"),
    ("LCM",),
)


def requests(pipe: Any) -> list[Feature]:
    """What can be asked of a pipeline, the features that go together as one."""
    known = {feature.name: feature for feature in FEATURES if feature.applies(pipe)}
    groups = [[known[name] for name in names if name in known] for names in TOGETHER]
    return [_joined(group) for group in groups if group]


def _joined(features: list[Feature]) -> Feature:
    def call(pipe: Any, given: Call) -> Call:
        return functools.reduce(lambda so_far, feature: feature.call(pipe, so_far), features, given)

    @contextlib.contextmanager
    def around(pipe: Any) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for feature in features:
                stack.enter_context(feature.around(pipe))
            yield

    return Feature(name=" + ".join(feature.name for feature in features), call=call, around=around)
