"""Flux: dev, fill, control and with a ControlNet."""

from __future__ import annotations

from typing import Any

import diffusers
import tiny_parts as parts
from tiny_cases import FLOW_TEXT, SIZE, Case, flow, mask, picture


def flux(kind: str = "FluxPipeline", channels: int = 16, **changes: Any) -> Any:
    transformer = parts.network(
        "FluxTransformer2DModel",
        in_channels=channels,
        out_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        axes_dims_rope=(4, 6, 6),
        joint_attention_dim=16,
        pooled_projection_dim=16,
        guidance_embeds=True,
    )
    given = {
        "transformer": transformer,
        "vae": parts.vae(shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
        "text_encoder": parts.clip_text(),
        "tokenizer": parts.clip_tokenizer(),
        "text_encoder_2": parts.t5(),
        "tokenizer_2": parts.t5_tokenizer(),
        "scheduler": flow(),
        **changes,
    }
    return getattr(diffusers, kind)(**given)


def flux_controlnet() -> Any:
    net = parts.network(
        "FluxControlNetModel",
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        axes_dims_rope=(4, 6, 6),
        joint_attention_dim=16,
        pooled_projection_dim=16,
        guidance_embeds=True,
    )
    return flux("FluxControlNetPipeline", controlnet=net)


CASES: dict[str, Case] = {
    "flux-dev": Case(make=flux, call={**FLOW_TEXT, **SIZE}),
    "flux-fill": Case(
        # The latent, the masked picture's latent, and one mask channel for each of the 2x2 pixels of a latent one.
        make=lambda: flux("FluxFillPipeline", channels=16 + 16 + 16),
        call={**FLOW_TEXT, "image": picture(), "mask_image": mask(), **SIZE},
    ),
    "flux-control": Case(
        make=lambda: flux("FluxControlPipeline", channels=32),
        call={**FLOW_TEXT, "control_image": picture(), **SIZE},
    ),
    "flux-controlnet": Case(
        make=flux_controlnet,
        call={**FLOW_TEXT, "control_image": picture(), "controlnet_conditioning_scale": 0.6, **SIZE},
    ),
}
