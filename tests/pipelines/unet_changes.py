"""What is done to a small UNet between calls: edits of its weights, changes of its modes, adapters."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from peft import LoraConfig

_TEMPLATE: list[torch.nn.Module] = []


def new_unet() -> torch.nn.Module:
    if not _TEMPLATE:
        torch.manual_seed(0)
        unet = diffusers.UNet2DConditionModel(
            block_out_channels=(8,),
            layers_per_block=1,
            sample_size=8,
            down_block_types=("CrossAttnDownBlock2D",),
            mid_block_type=None,
            up_block_types=("CrossAttnUpBlock2D",),
            cross_attention_dim=8,
            attention_head_dim=4,
            norm_num_groups=4,
        )
        _TEMPLATE.append(unet.eval().requires_grad_(False))
    return copy.deepcopy(_TEMPLATE[0])


def doubled(_: Any, __: Any, found: torch.Tensor) -> torch.Tensor:
    return 2 * found


# Which weights an edit is made to, by a part of their names.
PARTS = {"all": "", "norms": "norm", "merged": ".attn1.to_k", "for the text": ".attn2.to_v", "convolutions": "conv"}


def weights_of(unet: Any, part: str) -> list[tuple[torch.nn.Module, str, torch.nn.Parameter]]:
    """The base weights whose names have PARTS[part] in them, each with its module and its name there."""
    return [
        (module, name, weight)
        for path, module in unet.named_modules()
        for name, weight in module.named_parameters(recurse=False)
        if PARTS[part] in f"{path}.{name}" and "lora" not in path
    ]


def multiply(unet: Any, part: str) -> None:
    for _, _, weight in weights_of(unet, part):
        weight.mul_(1.25)


def multiply_through_data(unet: Any, part: str) -> None:
    for _, _, weight in weights_of(unet, part):
        weight.data.mul_(0.75)


def swap(unet: Any, part: str) -> None:
    for _, _, weight in weights_of(unet, part):
        weight.data = 0.75 * weight.data


def set_anew(unet: Any, part: str) -> None:
    for module, name, weight in weights_of(unet, part):
        setattr(module, name, torch.nn.Parameter(1.25 * weight.data, requires_grad=weight.requires_grad))


def load(unet: Any, part: str, assign: bool) -> None:
    # Everything else is loaded too, as it is.
    state = unet.state_dict()
    pointers = {weight.data_ptr() for _, _, weight in weights_of(unet, part)}
    unet.load_state_dict(
        {name: (0.75 if value.data_ptr() in pointers else 1.0) * value for name, value in state.items()}, assign=assign
    )


EDITS: dict[str, Callable[[Any, str], Any]] = {
    "multiply": multiply,
    "multiply through data": multiply_through_data,
    "swap": swap,
    "set": set_anew,
    "load": functools.partial(load, assign=False),
    "assign": functools.partial(load, assign=True),
}
MODES: dict[str, Callable[[Any], Any]] = {
    "freeu on": lambda unet: unet.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4),
    "freeu off": lambda unet: unet.disable_freeu(),
    "plain attention": lambda unet: unet.set_attn_processor(AttnProcessor()),
    "fused attention": lambda unet: unet.set_attn_processor(AttnProcessor2_0()),
    "train": lambda unet: unet.train(),
    "eval": lambda unet: unet.eval(),
    "channels last": lambda unet: unet.to(memory_format=torch.channels_last),
    "circular": lambda unet: setattr(unet.conv_in, "padding_mode", "circular"),
    "zeros": lambda unet: setattr(unet.conv_in, "padding_mode", "zeros"),
}


def added(name: str, rank: int, targets: list[str]) -> Callable[[Any], Any]:
    def run(unet: Any) -> None:
        torch.manual_seed(rank)
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, init_lora_weights=False)
        unet.add_adapter(config, name)
        unet.eval()

    return run


def scale_layers(unet: Any) -> None:
    for module in unet.modules():
        if isinstance(scaling := getattr(module, "scaling", None), dict):
            scaling.update({name: 0.6 * scale for name, scale in scaling.items()})


def train_adapters(unet: Any) -> None:
    for name, weight in unet.named_parameters():
        if "lora_B" in name:
            weight.mul_(1.5)


ADAPTERS: dict[str, Callable[[Any], Any]] = {
    "add attention": added("attention", 2, ["to_q", "to_v"]),
    "add convolutions": added("convolutions", 3, ["conv1", "to_out.0"]),
    "scale attention": lambda unet: unet.set_adapters("attention", 0.3),
    "scale both": lambda unet: unet.set_adapters(["attention", "convolutions"], [0.5, 2.0]),
    "scale layers": scale_layers,
    "train adapters": train_adapters,
    "disable": lambda unet: unet.disable_lora(),
    "enable": lambda unet: unet.enable_lora(),
    "fuse and disable": lambda unet: (unet.fuse_lora(), unet.disable_lora()),
    "fuse": lambda unet: unet.fuse_lora(lora_scale=0.6),
    "unfuse": lambda unet: unet.unfuse_lora(),
    "delete": lambda unet: unet.delete_adapters("attention"),
    "unload": lambda unet: unet.unload_lora(),
}
