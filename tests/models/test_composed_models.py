"""Model classes of diffusers that are made of networks, or need more than a configuration to be called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache
from tiny_networks import compared, inputs, network, tensor

Given = Callable[[], dict[str, Any]]
CONTROLNET = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
    "conditioning_embedding_out_channels": (8, 8),
}


def twice(given: dict[str, Any], **others: Any) -> dict[str, Any]:
    """A call of two networks: the first's condition, and half of it, with other scales."""
    picture = given["controlnet_cond"]
    conditions = {"controlnet_cond": [picture, picture * 0.5], "conditioning_scale": [0.7, 0.4]}
    return {**given, **conditions, "return_dict": False, **others}


def controlnets() -> tuple[Any, Given]:
    nets = [network("ControlNetModel", **CONTROLNET) for _ in range(2)]
    given = {"sample": "normal 2x4x16x16", "timestep": "whole 2 501", "encoder_hidden_states": "normal 2x7x12"}
    tensors = {name: tensor(text) for name, text in {**given, "controlnet_cond": "normal 2x3x32x32"}.items()}
    return diffusers.MultiControlNetModel(nets), lambda: twice(tensors)


def flux_controlnets() -> tuple[Any, Given]:
    nets = [network("FluxControlNetModel", num_mode=None) for _ in range(2)]
    modes = [torch.tensor([[0], [0]]), torch.tensor([[1], [1]])]
    return diffusers.FluxMultiControlNetModel(nets), lambda: twice(inputs("FluxControlNetModel"), controlnet_mode=modes)


def hunyuan_controlnets() -> tuple[Any, Given]:
    nets = [network("HunyuanDiT2DControlNetModel") for _ in range(2)]
    return diffusers.HunyuanDiT2DMultiControlNetModel(nets), lambda: twice(inputs("HunyuanDiT2DControlNetModel"))


def qwen_controlnet() -> tuple[Any, Given]:
    # More than one is refused by diffusers itself; one takes several pictures.
    nets = [network("QwenImageControlNetModel")]
    return diffusers.QwenImageMultiControlNetModel(nets), lambda: twice(inputs("QwenImageControlNetModel"))


def sd3_controlnets() -> tuple[Any, Given]:
    nets = [network("SD3ControlNetModel") for _ in range(2)]
    return diffusers.SD3MultiControlNetModel(nets), lambda: twice(inputs("SD3ControlNetModel"))


def adapters() -> tuple[Any, Given]:
    pictures = [tensor("normal 2x3x32x32"), tensor("uniform 2x3x32x32")]
    nets = [network("T2IAdapter") for _ in range(2)]
    return diffusers.MultiAdapter(nets), lambda: {"xs": pictures, "adapter_weights": [0.3, 0.7]}


def z_image_controlnet(refiner: str | None) -> tuple[Any, Given]:
    sizes = {"dim": 32, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2}
    net = network(
        "ZImageControlNetModel",
        control_layers_places=[0, 1],
        control_refiner_layers_places=None if refiner is None else [0],
        control_in_dim=4,
        add_control_noise_refiner=refiner,
        **sizes,
    )
    net = diffusers.ZImageControlNetModel.from_transformer(net, network("ZImageTransformer2DModel"))

    def given() -> dict[str, Any]:
        call = inputs("ZImageTransformer2DModel")
        return {**call, "control_context": [each * 0.5 + 0.1 for each in call["x"]], "conditioning_scale": 0.7}

    return net, given


def tiled_allegro() -> tuple[Any, Given]:
    net = network(
        "AutoencoderKLAllegro",
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    net.enable_tiling()
    net.kernel, net.stride = (8, 16, 16), (4, 8, 8)
    return net, lambda: {"sample": tensor("normal 1x3x12x24x16")}


CASES: dict[str, Callable[[], tuple[Any, Given]]] = {
    "MultiControlNetModel": controlnets,
    "FluxMultiControlNetModel": flux_controlnets,
    "HunyuanDiT2DMultiControlNetModel": hunyuan_controlnets,
    "QwenImageMultiControlNetModel": qwen_controlnet,
    "SD3MultiControlNetModel": sd3_controlnets,
    "MultiAdapter": adapters,
    "ZImageControlNetModel": lambda: z_image_controlnet(None),
    "ZImageControlNetModel with control layers": lambda: z_image_controlnet("control_layers"),
    "ZImageControlNetModel with a refiner": lambda: z_image_controlnet("control_noise_refiner"),
    "AutoencoderKLAllegro": tiled_allegro,
}


@pytest.mark.filterwarnings("ignore:.*FluxPosEmbed:FutureWarning")
@pytest.mark.parametrize("case", CASES)
def test_equal_to_eager(case: str) -> None:
    module, given = CASES[case]()
    # As pipelines do: Z-Image's asks for an attribute that it lacks where gradients are on.
    with torch.no_grad():
        assert compared(module.eval(), [given] * 3) == set()


def test_a_call_that_fills_an_object_runs_eagerly() -> None:
    sizes = {"dim": 24, "ffn_dim": 32, "freq_dim": 16, "text_len": 8, "text_dim": 16, "num_heads": 2, "num_layers": 2}
    net = network("WanAnimate2Transformer3DModel", in_dim=12, out_dim=4, use_img_emb=False, **sizes)

    def given() -> dict[str, Any]:
        return {
            "hidden_states": [tensor("normal 4x2x4x4")],
            "timestep": torch.tensor([44]),
            "encoder_hidden_states": [tensor("normal 6x16")],
            "condition_latents": [tensor("normal 8x2x4x4")],
            "kv_cache": WanAnimate2KVCache(2),
            "kv_cache_mode": "extract",
            "seq_len": 8,
            "offset_grid_sizes": torch.tensor([[2, 2, 2]]),
        }

    (reason,) = compared(net, [given] * 2)
    assert "argument kv_cache is a" in reason
    assert "WanAnimate2KVCache, which a graph cannot hold" in reason
