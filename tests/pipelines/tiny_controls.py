"""Stable Diffusion steered by pictures: ControlNet, T2I-Adapter and IP-Adapter."""

from __future__ import annotations

from typing import Any

import tiny_parts as parts
import torch
from tiny_cases import SIZE, TEXT, Case, picture
from tiny_stable_diffusion import sd, xl


def t2i_adapter(count: int = 1) -> Any:
    nets = [
        parts.network("T2IAdapter", channels=[8, 16], num_res_blocks=1, downscale_factor=2, adapter_type="full_adapter")
        for _ in range(count)
    ]
    return sd("StableDiffusionAdapterPipeline", adapter=nets if count > 1 else nets[0])


def ip_adapter_weights(unet: Any) -> dict[str, Any]:
    """What an IP-Adapter file holds, for this UNet: four image tokens, keys and values for each cross-attention."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    width = unet.config.cross_attention_dim
    projection = {
        "proj.weight": normal(4 * width, 16),
        "proj.bias": normal(4 * width),
        "norm.weight": 1 + 0.1 * normal(width),
        "norm.bias": normal(width),
    }
    attention: dict[str, torch.Tensor] = {}
    for index, name in enumerate(unet.attn_processors):
        if name.endswith("attn2.processor"):
            hidden = unet.get_submodule(name.removesuffix(".processor")).to_q.out_features
            attention[f"{index}.to_k_ip.weight"] = normal(hidden, width)
            attention[f"{index}.to_v_ip.weight"] = normal(hidden, width)
    return {"image_proj": projection, "ip_adapter": attention}


def ip_adapter() -> Any:
    pipe = sd(image_encoder=parts.clip_vision(), feature_extractor=parts.pictures_for_clip())
    pipe.load_ip_adapter(ip_adapter_weights(pipe.unet), subfolder="", weight_name="")
    pipe.set_ip_adapter_scale(0.7)
    return pipe


CASES: dict[str, Case] = {
    "sd15-controlnet": Case(
        make=lambda: sd("StableDiffusionControlNetPipeline", controlnet=parts.controlnet()),
        call={**TEXT, "image": picture(), "controlnet_conditioning_scale": 0.7},
    ),
    "sd15-controlnets": Case(
        make=lambda: sd("StableDiffusionControlNetPipeline", controlnet=[parts.controlnet(), parts.controlnet()]),
        call={**TEXT, "image": [picture(), picture()], "controlnet_conditioning_scale": [0.7, 0.4]},
    ),
    "sdxl-controlnet": Case(
        make=lambda: xl("StableDiffusionXLControlNetPipeline", controlnet=parts.controlnet(**parts.TEXT_TIME)),
        call={**TEXT, "image": picture()},
    ),
    "sd15-t2i-adapter": Case(make=t2i_adapter, call={**TEXT, "image": picture(), "adapter_conditioning_scale": 0.8}),
    "sd15-t2i-adapters": Case(
        make=lambda: t2i_adapter(2),
        call={**TEXT, "image": [picture(), picture()], "adapter_conditioning_scale": [0.8, 0.3]},
    ),
    "sd15-ip-adapter": Case(make=ip_adapter, call={**TEXT, "ip_adapter_image": picture(), **SIZE}),
}
