"""The published configurations of the built-in architectures."""

from __future__ import annotations

import dataclasses

from rewriter.models.configurations import Architecture, Options, Part, Vocabulary

PROMPT = "a lighthouse on a cliff at dawn, oil painting"
CLIP_VOCABULARY = Vocabulary(kind="clip", size=49408, length=77)

# The text half of CLIP ViT-L/14.
CLIP_L = Part(
    kind="CLIPTextModel",
    options={
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "projection_dim": 768,
        "hidden_act": "quick_gelu",
        "vocab_size": 49408,
        "max_position_embeddings": 77,
    },
)
SD_VAE = Part(
    kind="AutoencoderKL",
    options={
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "latent_channels": 4,
        "sample_size": 512,
    },
)
SD_BETAS: Options = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}

SD15 = Architecture(
    summary="Stable Diffusion 1.5, 512x512",
    pipeline="StableDiffusionPipeline",
    denoiser="unet",
    networks={
        "unet": Part(
            kind="UNet2DConditionModel",
            options={"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
        ),
        "vae": SD_VAE,
        "text_encoder": CLIP_L,
    },
    scheduler=Part(kind="PNDMScheduler", options={**SD_BETAS, "skip_prk_steps": True, "set_alpha_to_one": False}),
    tokenizers={"tokenizer": CLIP_VOCABULARY},
    arguments={"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
    call={"prompt": PROMPT, "height": 512, "width": 512, "num_inference_steps": 20, "guidance_scale": 7.5},
)

SD15_CONTROLNET = dataclasses.replace(
    SD15,
    summary="Stable Diffusion 1.5 with a ControlNet, 512x512",
    pipeline="StableDiffusionControlNetPipeline",
    networks={
        **SD15.networks,
        "controlnet": Part(kind="ControlNetModel", options={"cross_attention_dim": 768, "attention_head_dim": 8}),
    },
    call={**SD15.call, "controlnet_conditioning_scale": 1.0},
)

SDXL = Architecture(
    summary="Stable Diffusion XL base, 1024x1024",
    pipeline="StableDiffusionXLPipeline",
    denoiser="unet",
    networks={
        "unet": Part(
            kind="UNet2DConditionModel",
            options={
                "sample_size": 128,
                "block_out_channels": (320, 640, 1280),
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                "transformer_layers_per_block": (1, 2, 10),
                "attention_head_dim": (5, 10, 20),
                "cross_attention_dim": 2048,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816,
                "use_linear_projection": True,
            },
        ),
        "vae": Part(
            kind="AutoencoderKL",
            options={**SD_VAE.options, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
        ),
        "text_encoder": CLIP_L,
        # The text half of OpenCLIP ViT-bigG/14.
        "text_encoder_2": Part(
            kind="CLIPTextModelWithProjection",
            options={
                "hidden_size": 1280,
                "intermediate_size": 5120,
                "num_hidden_layers": 32,
                "num_attention_heads": 20,
                "projection_dim": 1280,
                "hidden_act": "gelu",
                "vocab_size": 49408,
                "max_position_embeddings": 77,
            },
        ),
    },
    scheduler=Part(kind="EulerDiscreteScheduler", options={**SD_BETAS, "timestep_spacing": "leading"}),
    tokenizers={
        "tokenizer": CLIP_VOCABULARY,
        "tokenizer_2": dataclasses.replace(CLIP_VOCABULARY, padding="!"),
    },
    arguments={"add_watermarker": False},
    call={"prompt": PROMPT, "height": 1024, "width": 1024, "num_inference_steps": 20, "guidance_scale": 5.0},
)

SVD_XT = Architecture(
    summary="Stable Video Diffusion XT, 25 frames of 1024x576",
    pipeline="StableVideoDiffusionPipeline",
    denoiser="unet",
    networks={
        "unet": Part(
            kind="UNetSpatioTemporalConditionModel",
            options={"sample_size": 96, "num_attention_heads": (5, 10, 20, 20), "num_frames": 25},
        ),
        "vae": Part(
            kind="AutoencoderKLTemporalDecoder",
            options={
                "down_block_types": ("DownEncoderBlock2D",) * 4,
                "block_out_channels": (128, 256, 512, 512),
                "layers_per_block": 2,
                "latent_channels": 4,
                "sample_size": 768,
                "force_upcast": True,
            },
        ),
        # The image half of OpenCLIP ViT-H/14.
        "image_encoder": Part(
            kind="CLIPVisionModelWithProjection",
            options={
                "hidden_size": 1280,
                "intermediate_size": 5120,
                "num_hidden_layers": 32,
                "num_attention_heads": 16,
                "projection_dim": 1024,
                "hidden_act": "gelu",
                "image_size": 224,
                "patch_size": 14,
            },
        ),
    },
    scheduler=Part(
        kind="EulerDiscreteScheduler",
        options={
            **SD_BETAS,
            "prediction_type": "v_prediction",
            "sigma_max": 700.0,
            "sigma_min": 0.002,
            "timestep_spacing": "leading",
            "timestep_type": "continuous",
            "use_karras_sigmas": True,
        },
    ),
    image_size=224,
    call={"height": 576, "width": 1024, "num_frames": 25, "num_inference_steps": 25, "decode_chunk_size": 8},
)

FLUX_DEV = Architecture(
    summary="FLUX.1-dev, 1024x1024 (12 billion parameters and a 5 billion text encoder)",
    pipeline="FluxPipeline",
    denoiser="transformer",
    networks={
        "transformer": Part(kind="FluxTransformer2DModel", options={"guidance_embeds": True}),
        "vae": Part(
            kind="AutoencoderKL",
            options={
                **SD_VAE.options,
                "latent_channels": 16,
                "sample_size": 1024,
                "scaling_factor": 0.3611,
                "shift_factor": 0.1159,
                "use_quant_conv": False,
                "use_post_quant_conv": False,
                "force_upcast": True,
            },
        ),
        "text_encoder": CLIP_L,
        # The encoder of T5 v1.1 XXL.
        "text_encoder_2": Part(
            kind="T5EncoderModel",
            options={
                "d_model": 4096,
                "d_ff": 10240,
                "d_kv": 64,
                "num_heads": 64,
                "num_layers": 24,
                "feed_forward_proj": "gated-gelu",
                "vocab_size": 32128,
                "tie_word_embeddings": False,
            },
        ),
    },
    scheduler=Part(
        kind="FlowMatchEulerDiscreteScheduler",
        options={
            "shift": 3.0,
            "use_dynamic_shifting": True,
            "base_shift": 0.5,
            "max_shift": 1.15,
            "base_image_seq_len": 256,
            "max_image_seq_len": 4096,
        },
    ),
    tokenizers={"tokenizer": CLIP_VOCABULARY, "tokenizer_2": Vocabulary(kind="t5", size=32128, length=512)},
    call={
        "prompt": PROMPT,
        "height": 1024,
        "width": 1024,
        "num_inference_steps": 20,
        "guidance_scale": 3.5,
        "max_sequence_length": 512,
    },
    half="bfloat16",
)
