"""Networks and tokenizers of every family of pipelines, a few channels wide, with seeded random weights."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from rewriter.models.architectures import new_network
from rewriter.models.configurations import Part, Vocabulary
from rewriter.models.vocabularies import new_tokenizer

TOKENS = 514
BLOCKS: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "cross_attention_dim": 16,
}
UP = {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
# Those of SDXL: text and size embedded with the time, transformers in the deeper blocks.
TEXT_TIME = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
    "attention_head_dim": (2, 4),
    "cross_attention_dim": 32,
    "projection_class_embeddings_input_dim": 64,
}

XL_UP = {"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}


def network(kind: str, **options: Any) -> Any:
    """A network of diffusers or transformers in eval mode, float32 on the CPU."""
    return new_network(Part(kind=kind, options=options), dtype=torch.float32, device=torch.device("cpu"))


def unet(**options: Any) -> Any:
    return network("UNet2DConditionModel", sample_size=8, **{**BLOCKS, **UP, **options})


def controlnet(**options: Any) -> Any:
    return network("ControlNetModel", **{**BLOCKS, "conditioning_embedding_out_channels": (8, 8), **options})


def vae(latent_channels: int = 4, **options: Any) -> Any:
    return network(
        "AutoencoderKL",
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=16,
        latent_channels=latent_channels,
        **options,
    )


def _clip(kind: str, **options: Any) -> Any:
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 16,
        "max_position_embeddings": 32,
        "vocab_size": TOKENS,
        "bos_token_id": TOKENS - 2,
        "eos_token_id": TOKENS - 1,
        "pad_token_id": TOKENS - 1,
    }
    return network(kind, **{**sizes, **options})


def clip_text(**options: Any) -> Any:
    return _clip("CLIPTextModel", **options)


def clip_text_projected(**options: Any) -> Any:
    return _clip("CLIPTextModelWithProjection", hidden_act="gelu", **options)


def clip_vision(side: int = 16, **options: Any) -> Any:
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 16,
        "image_size": side,
        "patch_size": 8,
    }
    return network("CLIPVisionModelWithProjection", **{**sizes, **options})


def t5(kind: str = "T5EncoderModel", width: int = 16) -> Any:
    return network(
        kind,
        d_model=width,
        d_ff=24,
        d_kv=8,
        num_heads=2,
        num_layers=2,
        vocab_size=TOKENS,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )


_DECODER = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": TOKENS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}


def gemma() -> Any:
    return network("Gemma2Model", head_dim=8, **_DECODER)


def qwen3() -> Any:
    return network("Qwen3Model", head_dim=8, **_DECODER)


def qwen_vision() -> Any:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6}
    return network(
        "Qwen2_5_VLForConditionalGeneration",
        text_config={**_DECODER, "rope_scaling": rope},
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 16,
            "fullatt_block_indexes": [0],
        },
    )


def clip_tokenizer() -> Any:
    return new_tokenizer(Vocabulary(kind="clip", size=TOKENS, length=32))


def t5_tokenizer(length: int = 64) -> Any:
    return new_tokenizer(Vocabulary(kind="t5", size=TOKENS, length=length))


def chat_tokenizer() -> Any:
    tokenizer = t5_tokenizer(512)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return tokenizer


def pictures_for_clip(side: int = 16) -> Any:
    return transformers.CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
