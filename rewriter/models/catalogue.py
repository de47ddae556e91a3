"""Every built-in architecture by name: the published ones and a narrow twin of each.

A `-tiny` twin has the block structure of its original (the UNets even the same number of blocks and layers, so that
rules match as often), but channels, text and pictures so small that a CPU needs a fraction of a second per step.
"""

from __future__ import annotations

from rewriter.models.configurations import Architecture, Options
from rewriter.models.published import FLUX_DEV, SD15, SD15_CONTROLNET, SDXL, SVD_XT

TINY_CLIP: Options = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 32,
    "vocab_size": 514,
    "bos_token_id": 512,
    "eos_token_id": 513,
    "pad_token_id": 513,
}
TINY_VAE: Options = {"block_out_channels": (32, 32, 64, 64), "sample_size": 64}
TINY_UNET: Options = {"sample_size": 8, "cross_attention_dim": 32, "block_out_channels": (32, 64, 64, 64)}
TINY_CALL: Options = {"height": 64, "width": 64, "num_inference_steps": 4}

ARCHITECTURES: dict[str, Architecture] = {
    "sd15": SD15,
    "sd15-tiny": SD15.narrow(
        summary="the blocks of sd15 with 32 to 64 channels, 64x64",
        call=TINY_CALL,
        tokenizers=514,
        unet=TINY_UNET,
        vae=TINY_VAE,
        text_encoder=TINY_CLIP,
    ),
    "sd15-controlnet": SD15_CONTROLNET,
    "sd15-controlnet-tiny": SD15_CONTROLNET.narrow(
        summary="the blocks of sd15-controlnet with 32 to 64 channels, 64x64",
        call=TINY_CALL,
        tokenizers=514,
        unet=TINY_UNET,
        vae=TINY_VAE,
        text_encoder=TINY_CLIP,
        controlnet={
            "cross_attention_dim": 32,
            "block_out_channels": (32, 64, 64, 64),
            "conditioning_embedding_out_channels": (8, 8, 16, 16),
        },
    ),
    "sdxl": SDXL,
    "sdxl-tiny": SDXL.narrow(
        summary="the blocks of sdxl with 32 to 64 channels, 64x64",
        call=TINY_CALL,
        tokenizers=514,
        unet={
            "sample_size": 8,
            "block_out_channels": (32, 64, 64),
            "attention_head_dim": (2, 4, 4),
            "cross_attention_dim": 64,
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 80,
        },
        vae=TINY_VAE,
        text_encoder=TINY_CLIP,
        text_encoder_2=TINY_CLIP,
    ),
    "svd-xt": SVD_XT,
    "svd-xt-tiny": SVD_XT.narrow(
        summary="the blocks of svd-xt with 32 to 64 channels, 3 frames of 64x64",
        call={**TINY_CALL, "num_frames": 3},
        unet={
            "sample_size": 8,
            "block_out_channels": (32, 64, 64, 64),
            "num_attention_heads": (2, 4, 4, 4),
            "cross_attention_dim": 32,
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 24,
            "num_frames": 3,
        },
        vae=TINY_VAE,
        image_encoder={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "projection_dim": 32,
            "patch_size": 32,
        },
    ),
    "flux-dev": FLUX_DEV,
    "flux-dev-tiny": FLUX_DEV.narrow(
        summary="two double and four single blocks of flux-dev with 32 channels, 64x64",
        call={**TINY_CALL, "max_sequence_length": 64},
        tokenizers=514,
        transformer={
            "in_channels": 16,
            "num_layers": 2,
            "num_single_layers": 4,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "axes_dims_rope": (4, 6, 6),
            "joint_attention_dim": 32,
            "pooled_projection_dim": 32,
        },
        vae={**TINY_VAE, "latent_channels": 4},
        text_encoder=TINY_CLIP,
        text_encoder_2={
            "d_model": 32,
            "d_ff": 64,
            "d_kv": 16,
            "num_heads": 2,
            "num_layers": 2,
            "vocab_size": 514,
        },
    ),
}
