"""Every pipeline that is tested, built from its classes with random weights and called with small pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import tiny_parts as parts
import torch
from PIL import Image

from rewriter.models.libraries import quiet
from rewriter.models.pictures import lighthouse

PROMPT = "a lighthouse"
SIDE = 16
_SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """make: builds the pipeline. call: what it is called with beside a generator and the number of steps."""

    make: Callable[[], Any]
    call: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def build(self) -> Any:
        with quiet():
            pipe = self.make()
        pipe.set_progress_bar_config(disable=True)
        return pipe


def picture(side: int = SIDE) -> Image.Image:
    return lighthouse(side, side)


def mask(side: int = SIDE) -> Image.Image:
    whole = Image.new("L", (side, side), 0)
    whole.paste(255, (0, 0, side // 2, side))
    return whole


def scheduler(kind: str, **options: Any) -> Any:
    return getattr(diffusers, kind)(**options)


def euler(**options: Any) -> Any:
    return scheduler("EulerDiscreteScheduler", **_SD_BETAS, **options)


def flow(**options: Any) -> Any:
    return scheduler("FlowMatchEulerDiscreteScheduler", shift=3.0, **options)


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
            **_SD_BETAS,
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
        scheduler=scheduler("DDIMScheduler", **_SD_BETAS, clip_sample=False),
    )


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


def lcm() -> Any:
    return sd(
        "LatentConsistencyModelPipeline",
        unet={"time_cond_proj_dim": 8},
        scheduler=scheduler("LCMScheduler", **_SD_BETAS),
    )


_SD2 = {"use_linear_projection": True, "attention_head_dim": (2, 4)}
_SIZE = {"height": SIDE, "width": SIDE}
_TEXT = {"prompt": PROMPT, "negative_prompt": "blurry"}
_FLOW_TEXT = {"prompt": PROMPT, "max_sequence_length": 24}

CASES: dict[str, Case] = {
    "sd15": Case(make=sd, call={**_TEXT, **_SIZE}),
    "sd21": Case(
        make=lambda: sd(unet=_SD2, scheduler=euler(prediction_type="v_prediction"), text_encoder=parts.clip_text()),
        call={**_TEXT, **_SIZE},
    ),
    "sdxl": Case(make=xl, call={**_TEXT, **_SIZE}),
    "sdxl-turbo": Case(
        make=lambda: xl(scheduler=scheduler("EulerAncestralDiscreteScheduler", **_SD_BETAS)),
        call={"prompt": PROMPT, "guidance_scale": 0.0, **_SIZE},
    ),
    "lcm": Case(make=lcm, call={"prompt": PROMPT, **_SIZE}),
    "sd15-img2img": Case(
        make=lambda: sd("StableDiffusionImg2ImgPipeline"), call={**_TEXT, "image": picture(), "strength": 1.0}
    ),
    "sdxl-img2img": Case(
        make=lambda: xl("StableDiffusionXLImg2ImgPipeline"), call={**_TEXT, "image": picture(), "strength": 1.0}
    ),
    "sd15-inpaint": Case(
        make=lambda: sd("StableDiffusionInpaintPipeline", unet={"in_channels": 9}),
        call={**_TEXT, "image": picture(), "mask_image": mask(), **_SIZE},
    ),
    "sdxl-inpaint": Case(
        make=lambda: xl("StableDiffusionXLInpaintPipeline"),
        call={**_TEXT, "image": picture(), "mask_image": mask(), **_SIZE},
    ),
    "sd15-controlnet": Case(
        make=lambda: sd("StableDiffusionControlNetPipeline", controlnet=parts.controlnet()),
        call={**_TEXT, "image": picture(), "controlnet_conditioning_scale": 0.7},
    ),
    "sd15-controlnets": Case(
        make=lambda: sd("StableDiffusionControlNetPipeline", controlnet=[parts.controlnet(), parts.controlnet()]),
        call={**_TEXT, "image": [picture(), picture()], "controlnet_conditioning_scale": [0.7, 0.4]},
    ),
    "sdxl-controlnet": Case(
        make=lambda: xl("StableDiffusionXLControlNetPipeline", controlnet=parts.controlnet(**parts.TEXT_TIME)),
        call={**_TEXT, "image": picture()},
    ),
    "sd15-t2i-adapter": Case(make=t2i_adapter, call={**_TEXT, "image": picture(), "adapter_conditioning_scale": 0.8}),
    "sd15-t2i-adapters": Case(
        make=lambda: t2i_adapter(2),
        call={**_TEXT, "image": [picture(), picture()], "adapter_conditioning_scale": [0.8, 0.3]},
    ),
    "sd15-ip-adapter": Case(make=ip_adapter, call={**_TEXT, "ip_adapter_image": picture(), **_SIZE}),
    "svd": Case(make=svd, call={"image": picture(), "num_frames": 2, "decode_chunk_size": 1, **_SIZE}),
    "animatediff": Case(make=animatediff, call={**_TEXT, "num_frames": 2, **_SIZE}),
    "sd35": Case(make=sd35, call={**_FLOW_TEXT, "negative_prompt": "blurry", **_SIZE}),
    "flux-dev": Case(make=flux, call={**_FLOW_TEXT, **_SIZE}),
    "flux-fill": Case(
        # The latent, the masked picture's latent, and one mask channel for each of the 2x2 pixels of a latent one.
        make=lambda: flux("FluxFillPipeline", channels=16 + 16 + 16),
        call={**_FLOW_TEXT, "image": picture(), "mask_image": mask(), **_SIZE},
    ),
    "flux-control": Case(
        make=lambda: flux("FluxControlPipeline", channels=32),
        call={**_FLOW_TEXT, "control_image": picture(), **_SIZE},
    ),
    "flux-controlnet": Case(
        make=flux_controlnet,
        call={**_FLOW_TEXT, "control_image": picture(), "controlnet_conditioning_scale": 0.6, **_SIZE},
    ),
    "pixart-alpha": Case(
        make=pixart,
        call={**_FLOW_TEXT, "negative_prompt": "", "use_resolution_binning": False, "clean_caption": False, **_SIZE},
    ),
    "pixart-sigma": Case(
        make=lambda: pixart("PixArtSigmaPipeline"),
        call={**_FLOW_TEXT, "negative_prompt": "", "use_resolution_binning": False, "clean_caption": False, **_SIZE},
    ),
    "sana": Case(
        make=sana,
        call={
            **_FLOW_TEXT,
            "use_resolution_binning": False,
            "complex_human_instruction": None,
            "height": 32,
            "width": 32,
        },
    ),
    "wan": Case(make=wan, call={**_FLOW_TEXT, "negative_prompt": "blurry", "num_frames": 5, **_SIZE}),
    "qwen-image": Case(
        make=qwen_image, call={**_FLOW_TEXT, "negative_prompt": "blurry", "true_cfg_scale": 2.0, **_SIZE}
    ),
    "z-image": Case(make=z_image, call={**_FLOW_TEXT, **_SIZE}),
}
