"""Model classes of diffusers: optimised and equal to eager, or eager with the reason; never wrong, never an error."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import yaml

import rewriter
from rewriter.capture.compare import relative_error
from rewriter.models.architectures import new_network
from rewriter.models.configurations import Part

SIZES: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("tiny_models.yaml").read_text())
LIMIT = 1e-5
_DATA = "the module's code depends on the elements of a tensor at "
_HOOK = "the submodule .* has a forward hook \\(WeightNorm\\)"
# What runs eagerly, in whole or in part, and why.
EAGER: dict[str, str] = {
    "AnyFlowFARTransformer3DModel": "the trace failed: RuntimeError: unordered_map::at",
    "AutoencoderKLKVAEVideo": "the call changes the argument cache_dict in more than the items of a list",
    "AutoencoderKLMagvit": "the module changes itself on each call: conv_in.prev_features",
    "AutoencoderKLMiniMaxH3Audio": _HOOK,
    "AutoencoderOobleck": _HOOK,
    "AutoencoderSAME": _HOOK,
    "Cosmos3AVAEAudioTokenizer": _HOOK,
    "EasyAnimateTransformer3DModel": "the trace failed: TypeError: type Tensor doesn't define __round__ method",
    "HiDreamImageTransformer2DModel": _DATA + "transformer_hidream_image.py",
    "HunyuanVideo15Transformer3DModel": _DATA + "transformer_hunyuan_video15.py",
    "Lumina2Transformer2DModel": _DATA + "transformer_lumina2.py",
    "OmniGenTransformer2DModel": _DATA + "transformer_omnigen.py",
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


def tensor(text: str) -> torch.Tensor:
    """A seeded tensor as the file of sizes describes it: `normal 2x4x8`."""
    kind, extents, *bound = text.split()
    shape = [int(extent) for extent in extents.split("x")] if extents != "scalar" else []
    generator = torch.Generator().manual_seed(len(text))
    if kind == "normal":
        return torch.randn(shape, generator=generator)
    if kind == "uniform":
        return torch.rand(shape, generator=generator)
    if kind == "range":
        return torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
    if kind in ("index", "whole"):
        found = torch.randint(int(bound[0]), shape, generator=generator)
        return found if kind == "index" else found.float()
    values = {"ones": 1.0, "zeros": 0.0, "true": True, "false": False}
    return torch.full(shape, values[kind])


def argument(value: Any) -> Any:
    if isinstance(value, str) and value.split()[0] in KINDS:
        return tensor(value)
    if isinstance(value, list):
        return [argument(item) for item in value]
    if isinstance(value, dict) and set(value) == {"tuple"}:
        return tuple(argument(item) for item in value["tuple"])
    if isinstance(value, dict) and set(value) <= {"long", "bool"} and value:
        ((kind, items),) = value.items()
        return torch.tensor(items, dtype=getattr(torch, kind))
    if isinstance(value, dict):
        return {name: argument(item) for name, item in value.items()}
    return value


KINDS = frozenset({"normal", "uniform", "range", "index", "whole", "ones", "zeros", "true", "false"})


def tensors_of(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    value = (
        value.to_tuple() if hasattr(value, "to_tuple") else list(value.values()) if isinstance(value, dict) else value
    )
    return [tensor for item in value for tensor in tensors_of(item)] if isinstance(value, list | tuple) else []


@pytest.mark.parametrize("name", [name for name in SIZES if hasattr(diffusers, name)])
def test_equal_to_eager_or_eager_with_the_reason(name: str) -> None:
    sizes = SIZES[name]
    module = new_network(Part(kind=name, options=sizes["init"]), dtype=torch.float32, device=torch.device("cpu"))
    twin = copy.deepcopy(module)
    rewriter.optimize(module, measure=False)
    for _ in range(2):
        given = {key: argument(value) for key, value in sizes["inputs"].items()}
        torch.manual_seed(0)
        expected = tensors_of(twin(**copy.deepcopy(given)))
        torch.manual_seed(0)
        actual = tensors_of(module(**given))
        assert len(actual) == len(expected) > 0
        for a, b in zip(actual, expected, strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            assert relative_error(a, b) <= LIMIT if b.is_floating_point() else torch.equal(a, b)
            assert torch.equal(a.isfinite(), b.isfinite())
    parts = rewriter.report(module).components.values()
    reasons = {str(part.reason) for part in parts if part.status == "eager"}
    assert bool(reasons) == (name in EAGER), reasons
    assert all(re.match(EAGER[name], reason) for reason in reasons)
