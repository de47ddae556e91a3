"""Stable Diffusion 1.5, 2.1 and XL, and their distilled relatives: from text, from a picture, inpainting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers
import tiny_parts as parts
import torch
from tiny_cases import PROMPT, SD_BETAS, SIZE, TEXT, Case, euler, mask, picture, scheduler

_SD2 = {"use_linear_projection": True, "attention_head_dim": (2, 4)}
_NO_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def sd(kind: str = "StableDiffusionPipeline", *, unet: Mapping[str, Any] = {}, **changes: Any) -> Any:
    given = {
        "unet": parts.unet(**unet) if "unet" not in changes else None,
        "vae": parts.vae(),
        "text_encoder": parts.clip_text(),
        "tokenizer": parts.clip_tokenizer(),
        "scheduler": euler(),
        **_NO_CHECKER,
        **changes,
    }
    return getattr(diffusers, kind)(**given)


def xl(kind: str = "StableDiffusionXLPipeline", *, unet: Mapping[str, Any] = {}, **changes: Any) -> Any:
    given = {
        "unet": parts.unet(**{**parts.TEXT_TIME, **parts.XL_UP, **unet}),
        "vae": parts.vae(force_upcast=True),
        "text_encoder": parts.clip_text(),
        "text_encoder_2": parts.clip_text_projected(),
        "tokenizer": parts.clip_tokenizer(),
        "tokenizer_2": parts.clip_tokenizer(),
        "scheduler": euler(),
        **changes,
    }
    return getattr(diffusers, kind)(**given)


def lcm_scheduler() -> Any:
    return scheduler("LCMScheduler", **SD_BETAS)


def lcm() -> Any:
    return sd("LatentConsistencyModelPipeline", unet={"time_cond_proj_dim": 8}, scheduler=lcm_scheduler())


def lcm_lora(pipe: Any) -> dict[str, torch.Tensor]:
    """What the file of an LCM-LoRA holds, for this UNet: adapters of attention, feed-forward and convolutions."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, torch.Tensor] = {}
    for name, layer in pipe.unet.named_modules():
        if name.endswith(("to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "conv1", "conv2", "time_emb_proj")):
            down, up = layer.weight.shape[1:], layer.weight.shape[:1]
            ones = (1,) * (layer.weight.dim() - 2)
            state[f"unet.{name}.lora_A.weight"] = 0.3 * torch.randn(2, *down, generator=generator)
            state[f"unet.{name}.lora_B.weight"] = 0.3 * torch.randn(*up, 2, *ones, generator=generator)
    return state


def with_lcm_lora(kind: str = "StableDiffusionPipeline") -> Any:
    pipe = (xl if "XL" in kind else sd)(kind, scheduler=lcm_scheduler())
    pipe.load_lora_weights(lcm_lora(pipe), adapter_name="lcm")
    return pipe


CASES: dict[str, Case] = {
    "sd15": Case(make=sd, call={**TEXT, **SIZE}),
    "sd21": Case(
        make=lambda: sd(unet=_SD2, scheduler=euler(prediction_type="v_prediction"), text_encoder=parts.clip_text()),
        call={**TEXT, **SIZE},
    ),
    "sdxl": Case(make=xl, call={**TEXT, **SIZE}),
    "sdxl-turbo": Case(
        make=lambda: xl(scheduler=scheduler("EulerAncestralDiscreteScheduler", **SD_BETAS)),
        call={"prompt": PROMPT, "guidance_scale": 0.0, **SIZE},
    ),
    "lcm": Case(make=lcm, call={"prompt": PROMPT, **SIZE}),
    "sd15-lcm-lora": Case(make=with_lcm_lora, call={"prompt": PROMPT, "guidance_scale": 1.0, **SIZE}),
    "sd15-img2img": Case(
        make=lambda: sd("StableDiffusionImg2ImgPipeline"), call={**TEXT, "image": picture(), "strength": 1.0}
    ),
    "sdxl-img2img": Case(
        make=lambda: xl("StableDiffusionXLImg2ImgPipeline"), call={**TEXT, "image": picture(), "strength": 1.0}
    ),
    "sd15-inpaint": Case(
        make=lambda: sd("StableDiffusionInpaintPipeline", unet={"in_channels": 9}),
        call={**TEXT, "image": picture(), "mask_image": mask(), **SIZE},
    ),
    "sdxl-inpaint": Case(
        make=lambda: xl("StableDiffusionXLInpaintPipeline"),
        call={**TEXT, "image": picture(), "mask_image": mask(), **SIZE},
    ),
}
