"""Other diffusion transformers that draw pictures."""

from __future__ import annotations

from typing import Any

import diffusers
import tiny_parts as parts
from tiny_cases import FLOW_TEXT, SIZE, Case, flow, scheduler


def sd35() -> Any:
    transformer = parts.network(
        "SD3Transformer2DModel",
        sample_size=8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=32,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        vae=parts.vae(shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=parts.clip_text_projected(),
        tokenizer=parts.clip_tokenizer(),
        text_encoder_2=parts.clip_text_projected(),
        tokenizer_2=parts.clip_tokenizer(),
        text_encoder_3=parts.t5(width=32),
        tokenizer_3=parts.t5_tokenizer(),
        scheduler=flow(),
    )


def pixart(kind: str = "PixArtAlphaPipeline") -> Any:
    transformer = parts.network(
        "PixArtTransformer2DModel",
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=16,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        use_additional_conditions=False,
    )
    return getattr(diffusers, kind)(
        transformer=transformer,
        vae=parts.vae(),
        text_encoder=parts.t5(),
        tokenizer=parts.t5_tokenizer(),
        scheduler=scheduler("DPMSolverMultistepScheduler"),
    )


def sana() -> Any:
    transformer = parts.network(
        "SanaTransformer2DModel",
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=8,
    )
    vae = parts.network(
        "AutoencoderDC",
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    return diffusers.SanaPipeline(
        transformer=transformer,
        vae=vae,
        text_encoder=parts.gemma(),
        tokenizer=parts.t5_tokenizer(),
        scheduler=scheduler("DPMSolverMultistepScheduler", prediction_type="flow_prediction", use_flow_sigmas=True),
    )


def qwen_image() -> Any:
    transformer = parts.network(
        "QwenImageTransformer2DModel",
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    )
    vae = parts.network(
        "AutoencoderKLQwenImage",
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    return diffusers.QwenImagePipeline(
        transformer=transformer,
        vae=vae,
        text_encoder=parts.qwen_vision(),
        tokenizer=parts.t5_tokenizer(512),
        scheduler=flow(),
    )


def z_image() -> Any:
    transformer = parts.network(
        "ZImageTransformer2DModel",
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    return diffusers.ZImagePipeline(
        transformer=transformer,
        vae=parts.vae(shift_factor=0.1),
        text_encoder=parts.qwen3(),
        tokenizer=parts.chat_tokenizer(),
        scheduler=flow(),
    )


CASES: dict[str, Case] = {
    "sd35": Case(make=sd35, call={**FLOW_TEXT, "negative_prompt": "blurry", **SIZE}),
    "pixart-alpha": Case(
        make=pixart,
        call={**FLOW_TEXT, "negative_prompt": "", "use_resolution_binning": False, "clean_caption": False, **SIZE},
    ),
    "pixart-sigma": Case(
        make=lambda: pixart("PixArtSigmaPipeline"),
        call={**FLOW_TEXT, "negative_prompt": "", "use_resolution_binning": False, "clean_caption": False, **SIZE},
    ),
    "sana": Case(
        make=sana,
        call={
            **FLOW_TEXT,
            "use_resolution_binning": False,
            "complex_human_instruction": None,
            "height": 32,
            "width": 32,
        },
    ),
    "qwen-image": Case(make=qwen_image, call={**FLOW_TEXT, "negative_prompt": "blurry", "true_cfg_scale": 2.0, **SIZE}),
    "z-image": Case(make=z_image, call={**FLOW_TEXT, **SIZE}),
}
