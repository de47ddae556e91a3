"""Networks of diffusers and transformers, tiny and untrained: equal to eager, or eager with the reason."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
import transformers

import rewriter

Make = Callable[[], torch.nn.Module]
Arguments = Callable[[int, int], dict[str, Any]]


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape)


def clip_text() -> torch.nn.Module:
    config = transformers.CLIPTextConfig(
        vocab_size=99,
        hidden_size=16,
        intermediate_size=17,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    return transformers.CLIPTextModel(config)


def t5() -> torch.nn.Module:
    config = transformers.T5Config(vocab_size=99, d_model=16, d_kv=4, d_ff=17, num_layers=2, num_heads=2)
    return transformers.T5EncoderModel(config)


def plain_unet() -> torch.nn.Module:
    return diffusers.UNet2DModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
    )


def text_unet() -> torch.nn.Module:
    return diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
    )


def controlnet() -> torch.nn.Module:
    net = diffusers.ControlNetModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
        conditioning_embedding_out_channels=(8, 8),
    )
    for name, weight in net.named_parameters():
        # They start at zero, and then nothing that the network does can be told apart.
        if "controlnet_" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return net


def video_unet() -> torch.nn.Module:
    return diffusers.UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=8,
        num_attention_heads=2,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
    )


def flux() -> torch.nn.Module:
    return diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(2, 2, 4),
        guidance_embeds=True,
    )


def vae_decoder() -> torch.nn.Module:
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        norm_num_groups=4,
    )
    return vae.decoder


MODELS: dict[str, tuple[Make, Arguments]] = {
    "clip": (clip_text, lambda b, _: {"input_ids": torch.randint(0, 98, (b, 7)), "output_hidden_states": True}),
    "t5": (t5, lambda b, n: {"input_ids": torch.randint(0, 98, (b, n)), "attention_mask": torch.ones(b, n).long()}),
    "unet": (plain_unet, lambda b, n: {"sample": normal(b, 3, n, n), "timestep": torch.tensor(9)}),
    "text unet": (
        text_unet,
        lambda b, n: {"sample": normal(b, 4, n, n), "timestep": 9, "encoder_hidden_states": normal(b, 5, 8)},
    ),
    "controlnet": (
        controlnet,
        lambda b, n: {
            "sample": normal(b, 4, n, n),
            "timestep": 9,
            "encoder_hidden_states": normal(b, 5, 8),
            "controlnet_cond": normal(b, 3, 2 * n, 2 * n),
            "conditioning_scale": 0.7,
            "return_dict": False,
        },
    ),
    "vae decoder": (vae_decoder, lambda b, n: {"sample": normal(b, 4, n, n)}),
    "flux": (
        flux,
        lambda b, n: {
            "hidden_states": normal(b, n, 4),
            "encoder_hidden_states": normal(b, 5, 8),
            "pooled_projections": normal(b, 8),
            "timestep": torch.full((b,), 0.5),
            "img_ids": normal(n, 3),
            "txt_ids": normal(5, 3),
            "guidance": torch.full((b,), 3.5),
        },
    ),
    "video unet": (
        video_unet,
        lambda b, n: {
            "sample": normal(b, 2, 8, n, n),
            "timestep": torch.tensor(9),
            "encoder_hidden_states": normal(b, 1, 8),
            "added_time_ids": normal(b, 3),
        },
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_equal_to_eager_at_every_batch_and_size_with_one_trace(
    name: str, optimized: Any, equal_to_eager: Callable[..., None]
) -> None:
    make, arguments = MODELS[name]
    module = make().eval()
    twin = copy.deepcopy(module)
    optimized(module)
    for batch, size in ((2, 8), (2, 8), (1, 8), (1, 8), (2, 16), (2, 16)):
        equal_to_eager(module, twin, **arguments(batch, size))
    (part,) = rewriter.report(module).components.values()
    assert part.status == "optimised"
    assert part.captures == 1
    # The first call of each set of extents.
    assert part.eager_calls <= 3
    assert part.error == 0.0


def test_a_silently_wrong_trace_is_found_and_eager_kept_bit_for_bit(
    optimized: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It writes its positions through `data`, which a trace does not follow by itself.
    monkeypatch.setattr("rewriter.capture.recording.Substitutes", contextlib.nullcontext)
    module = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=8,
        num_layers=2,
        sample_width=8,
        sample_height=8,
        sample_frames=8,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=8,
    ).eval()
    arguments = {
        "hidden_states": normal(2, 1, 4, 8, 8),
        "timestep": torch.tensor([7, 7]),
        "encoder_hidden_states": normal(2, 8, 8),
    }
    expected = module(**arguments).sample
    optimized(module)
    for _ in range(2):
        assert torch.equal(module(**arguments).sample, expected)
    (part,) = rewriter.report(module).components.values()
    assert part.status == "eager"
    assert str(part.reason).startswith("the trace does not reproduce eager: relative L2 error ")
    assert str(part.reason).endswith("on output 0 (limit 1e-05)")
    optimized(module, strict=True)
    with pytest.raises(rewriter.VerificationError, match="the trace does not reproduce eager"):
        module(**arguments)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype: torch.dtype, optimized: Any) -> None:
    module = text_unet().to(dtype).eval()
    twin = copy.deepcopy(module)
    optimized(module)
    arguments = {
        "sample": normal(1, 4, 8, 8).to(dtype),
        "timestep": 3,
        "encoder_hidden_states": normal(1, 5, 8).to(dtype),
    }
    for _ in range(2):
        assert torch.equal(module(**arguments).sample, twin(**arguments).sample)
    (part,) = rewriter.report(module).components.values()
    assert part.status == "optimised"
