"""What draws several frames: Stable Video Diffusion, AnimateDiff and Wan."""

from __future__ import annotations

from typing import Any

import diffusers
import tiny_parts as parts
from tiny_cases import FLOW_TEXT, SD_BETAS, SIZE, TEXT, Case, flow, picture, scheduler


def svd() -> Any:
    unet = parts.network(
        "UNetSpatioTemporalConditionModel",
        # These blocks have groups of 32 channels.
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=16,
        num_attention_heads=(2, 4),
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
        num_frames=2,
        sample_size=8,
    )
    vae = parts.network(
        "AutoencoderKLTemporalDecoder",
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        layers_per_block=1,
        sample_size=16,
    )
    return diffusers.StableVideoDiffusionPipeline(
        unet=unet,
        vae=vae,
        image_encoder=parts.clip_vision(224, patch_size=112),
        feature_extractor=parts.pictures_for_clip(224),
        scheduler=scheduler(
            "EulerDiscreteScheduler",
            **SD_BETAS,
            prediction_type="v_prediction",
            sigma_max=700.0,
            sigma_min=0.002,
            timestep_spacing="leading",
            timestep_type="continuous",
            use_karras_sigmas=True,
        ),
    )


def animatediff() -> Any:
    motion = parts.network(
        "MotionAdapter",
        block_out_channels=(8, 16),
        motion_layers_per_block=1,
        motion_norm_num_groups=4,
        motion_num_attention_heads=2,
    )
    return diffusers.AnimateDiffPipeline(
        unet=parts.unet(),
        motion_adapter=motion,
        vae=parts.vae(shift_factor=0.1),
        text_encoder=parts.clip_text(),
        tokenizer=parts.clip_tokenizer(),
        scheduler=scheduler("DDIMScheduler", **SD_BETAS, clip_sample=False),
    )


def wan() -> Any:
    transformer = parts.network(
        "WanTransformer3DModel",
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )
    vae = parts.network(
        "AutoencoderKLWan",
        base_dim=4,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )
    return diffusers.WanPipeline(
        transformer=transformer,
        vae=vae,
        text_encoder=parts.t5("UMT5EncoderModel"),
        tokenizer=parts.t5_tokenizer(),
        scheduler=flow(),
    )


CASES: dict[str, Case] = {
    "svd": Case(make=svd, call={"image": picture(), "num_frames": 2, "decode_chunk_size": 1, **SIZE}),
    "animatediff": Case(make=animatediff, call={**TEXT, "num_frames": 2, **SIZE}),
    "wan": Case(make=wan, call={**FLOW_TEXT, "negative_prompt": "blurry", "num_frames": 5, **SIZE}),
}
