"""Model classes of diffusers: optimised and equal to eager, or eager with the reason; never wrong, never an error."""

from __future__ import annotations

import inspect
import re

import diffusers
import pytest
from diffusers.models.modeling_utils import ModelMixin
from tiny_networks import SIZES, compared, inputs, network

_DATA = "the module's code depends on the elements of a tensor at "
_HOOK = "the submodule .* has a forward hook \\(WeightNorm\\)"
# torch.jit.trace and the masks of flex_attention.
_FLEX = "the trace failed: RuntimeError: Unsupported value kind: Tensor"
# What runs eagerly, in whole or in part, and why.
EAGER: dict[str, str] = {
    "AceStepConditionEncoder": _DATA + "modeling_ace_step.py",
    "AnyFlowFARTransformer3DModel": "the trace failed: RuntimeError: unordered_map::at",
    "AutoencoderKLKVAEVideo": "the call changes the argument cache_dict in more than the items of a list",
    "AutoencoderKLMagvit": "the module changes itself on each call: conv_in.prev_features",
    "AutoencoderKLMiniMaxH3Audio": _HOOK,
    "AutoencoderOobleck": _HOOK,
    "AutoencoderSAME": _HOOK,
    "AutoencoderVidTok": "the module changes itself on each call: conv_in.causal_cache",
    "Cosmos3AVAEAudioTokenizer": _HOOK,
    "EasyAnimateTransformer3DModel": "the trace failed: TypeError: type Tensor doesn't define __round__ method",
    "HiDreamImageTransformer2DModel": _DATA + "transformer_hidream_image.py",
    "HunyuanVideo15Transformer3DModel": _DATA + "transformer_hunyuan_video15.py",
    "Kandinsky6SRTransformer3DModel": _FLEX,
    "Kandinsky6SRVAE": "the call changes the argument cache in more than the items of a list",
    "LTX2VideoDiffusionDecoderModel": _FLEX,
    "LongCatAudioDiTVae": _HOOK,
    "Lumina2Transformer2DModel": _DATA + "transformer_lumina2.py",
    "MiniMaxMusic3Vocoder": _HOOK,
    "OmniGenTransformer2DModel": _DATA + "transformer_omnigen.py",
    "QwenImage21Transformer2DModel": _DATA + "transformer_qwenimage21.py",
}
# Classes that cannot be built from a configuration and called, and why: in another test, or not at all.
ELSEWHERE = {
    "AutoencoderKLAllegro": "test_composed_models.py: it has no code without tiling",
    "ControlNetXSAdapter": "raises: it is a part of UNetControlNetXSModel",
    "CosmosControlNetModel": "raises: it needs torchvision",
    "FluxMultiControlNetModel": "test_composed_models.py: it is made of networks",
    "HunyuanDiT2DMultiControlNetModel": "test_composed_models.py: it is made of networks",
    "MotionAdapter": "returns nothing: it holds weights for UNetMotionModel",
    "MultiAdapter": "test_composed_models.py: it is made of networks",
    "MultiControlNetModel": "test_composed_models.py: it is made of networks",
    "QwenImageMultiControlNetModel": "test_composed_models.py: it is made of networks",
    "SD3MultiControlNetModel": "test_composed_models.py: it is made of networks",
    "WanAnimate2Transformer3DModel": "test_composed_models.py: its cache is an object",
    "ZImageControlNetModel": "test_composed_models.py: it takes parts from a transformer",
}
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{text}")
    for text in (
        # Of diffusers' and torch's own code, which nothing here can change.
        "`torch.nn.utils.weight_norm` is deprecated:FutureWarning",
        ".*FluxPosEmbed:FutureWarning",
        "`Transformer2DModelOutput` is deprecated:FutureWarning",
        "flex_attention called without torch.compile:UserWarning",
        "In CPU autocast, but the target dtype is not supported:UserWarning",
    )
]


def test_no_class_is_left_out() -> None:
    everything = {name: getattr(diffusers, name) for name in dir(diffusers)}
    networks = {name for name, kind in everything.items() if inspect.isclass(kind) and issubclass(kind, ModelMixin)}
    assert networks - {"ModelMixin"} == {*SIZES, *ELSEWHERE}


@pytest.mark.parametrize("name", [name for name in SIZES if hasattr(diffusers, name)])
def test_equal_to_eager_or_eager_with_the_reason(name: str) -> None:
    reasons = compared(network(name), [lambda: inputs(name)] * 2)
    assert bool(reasons) == (name in EAGER), reasons
    assert all(re.match(EAGER[name], reason) for reason in reasons)
