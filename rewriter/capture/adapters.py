"""Layers that peft has wrapped: which of them are their base layer with another weight, and with which.

A LoRA layer computes `base(x) + scale * up(down(x))`, and `base` is linear in its weight, so it equals the base layer
with the weight `base.weight + scale * up @ down`. What is not of that kind (routing, active dropout, a convolution
whose adapter pads otherwise, a tied weight) is not read here, and stays in the graph as it is.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch

_LORA = "peft.tuners.lora.layer"
_LYCORIS = frozenset({"peft.tuners.loha.layer", "peft.tuners.lokr.layer"})
_CONVOLUTIONS: tuple[type[torch.nn.Module], ...] = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
_FORWARDS: dict[Any, type[torch.nn.Module]] = {
    vars(kind)["forward"]: kind for kind in (torch.nn.Linear, torch.nn.Embedding, *_CONVOLUTIONS)
}
_DORA = frozenset(f"Dora{kind}Variant" for kind in ("Linear", "Embedding", "Conv1d", "Conv2d", "Conv3d"))


@dataclasses.dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Addition:
    """What one active adapter adds to the weight of its layer.

    kind: the class of adapters that are computed alike. parameters: all tensors that it depends on. scale: a number,
    or a 0-dim tensor. delta: the addition for scale 1, in the shape of the weight; at least f32.
    magnitude: DoRA's length of each output's weights, or None. bias: addition to the bias for scale 1, or None.
    constant: whether a scale that is given for all adapters leaves this one alone, as peft's embeddings do.
    """

    kind: str
    parameters: tuple[torch.Tensor, ...]
    scale: float | torch.Tensor
    delta: Callable[[], torch.Tensor]
    magnitude: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    constant: bool = False


@dataclasses.dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Layer:
    """A wrapped layer that equals its base layer with another weight.

    active: names of the adapters that `additions` come from. outputs: the weight's dimension of output features.
    unmerges: whether the next eager call takes fused adapters out of the weight, as a disabled layer does.
    """

    module: torch.nn.Module
    base: torch.nn.Module
    active: tuple[str, ...]
    additions: tuple[Addition, ...]
    outputs: int
    unmerges: bool


def is_wrapped(module: torch.nn.Module) -> bool:
    """Whether peft has put `module` around another layer. Does not import peft."""
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    return tuners is not None and isinstance(module, tuners.BaseTunerLayer)


def of_peft(module: torch.nn.Module) -> bool:
    return type(module).__module__.partition(".")[0] == "peft"


def entangled(root: torch.nn.Module) -> set[int]:
    """The ids of modules with several parents and of weights with several modules: none of them may be replaced."""
    seen: set[int] = set()
    twice: set[int] = set()
    for module in root.modules():
        for item in (*module._modules.values(), *module._parameters.values()):
            if item is not None:
                (twice if id(item) in seen else seen).add(id(item))
    return twice


def read(module: torch.nn.Module, entangled: Collection[int], refused: Collection[str]) -> Layer | None:
    """The wrapped layer as a base layer with additions, or None where it is something else.

    `entangled`: ids of weights and modules that are used in several places. `refused`: kinds not to be read.
    """
    try:
        return _read(module, entangled, refused)
    except (AttributeError, KeyError, TypeError):
        # Another version of peft keeps something elsewhere: what is not understood stays in the graph.
        return None


def _read(module: torch.nn.Module, entangled: Collection[int], refused: Collection[str]) -> Layer | None:
    place, name = type(module).__module__, type(module).__name__
    base: Any = module._modules.get("base_layer")
    if base is None or is_wrapped(base) or not _plain_base(base) or "forward" in module.__dict__:
        return None
    tied = [base, *(weight for weight in base._parameters.values() if weight is not None)]
    if any(id(item) in entangled for item in tied) or any(_hooks(module)):
        return None
    layer: Any = module
    as_is = layer.disable_adapters or layer.merged
    active = () if as_is else tuple(layer.active_adapters)
    if place == _LORA and name in ("Linear", "Embedding", "Conv1d", "Conv2d", "Conv3d"):
        found = [_lora(layer, base, adapter) for adapter in active if _has(layer, adapter)]
    elif place in _LYCORIS and name in ("Linear", "Conv1d", "Conv2d"):
        found = [_lycoris(layer, base, adapter) for adapter in active if adapter in layer._available_adapters]
    else:
        return None
    additions = tuple(addition for addition in found if addition is not None and addition.kind not in refused)
    if len(additions) < len(found):
        return None
    return Layer(
        module=module,
        base=base,
        active=active,
        additions=additions,
        outputs=1 if _turned(layer, base) else 0,
        unmerges=bool(layer.disable_adapters and layer.merged),
    )


def merged(
    layer: Layer, weight: torch.Tensor, bias: torch.Tensor | None, factor: float
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The layer's effective weight and bias, at least f32, from those of its base layer.

    factor: multiplies the scale of every adapter. The bias is None where no adapter touches it.
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    base = weight.detach().to(dtype)
    result = base.clone()
    shift = None if bias is None else torch.zeros_like(bias, dtype=dtype)
    moved = False
    for addition in layer.additions:
        # A scale that is a tensor stays one: to read it would wait for the device.
        scale = addition.scale * (1.0 if addition.constant else factor)
        delta = addition.delta().detach().to(dtype) * scale
        result += delta
        if addition.bias is not None and shift is not None:
            shift += addition.bias.detach().to(dtype) * scale
            moved = True
        if addition.magnitude is not None:
            # The norm is of the base weight with this adapter alone, whatever other adapters there are.
            others = [dim for dim in range(base.dim()) if dim != layer.outputs]
            norm = torch.linalg.vector_norm(base + delta, dim=others)
            ratio = addition.magnitude.detach().to(dtype).reshape(-1) / norm
            result *= ratio.reshape([-1 if dim == layer.outputs else 1 for dim in range(base.dim())])
            if shift is not None:
                shift *= ratio
    if not moved or bias is None or shift is None:
        return result, None
    return result, bias.detach().to(dtype) + shift


def tables(layer: Layer) -> Iterator[tuple[dict[str, Any], tuple[str, ...]]]:
    """The dicts in which peft keeps the layer's adapters, with the names of what active ones have there."""
    for child in layer.module._modules.values():
        if child is None or child is layer.base:
            continue
        for table in (child._modules, child._parameters):
            names = tuple(name for name in layer.active if name in table)
            if names and not isinstance(table[names[0]], torch.nn.Identity):
                yield table, names
            for name in names:
                part = table[name]
                if isinstance(part, torch.nn.Module) and part._parameters:
                    yield part._parameters, tuple(part._parameters)


def switches(layer: Layer) -> Iterator[torch.nn.Module]:
    """The modules whose training mode decides whether the layer equals its base layer."""
    dropouts: Any = layer.module._modules.get("lora_dropout") or {}
    for name in layer.active:
        if name in dropouts and not isinstance(dropouts[name], torch.nn.Identity):
            yield dropouts[name]


def _plain_base(base: torch.nn.Module) -> bool:
    kind = _FORWARDS.get(type(base).forward)
    if kind is None and type(base).__name__ == "Conv1D" and type(base).__module__ == "transformers.pytorch_utils":
        kind = torch.nn.Linear
    if kind is None or "forward" in base.__dict__:
        return False
    if isinstance(base, torch.nn.Embedding):
        # Renormalising writes to the weight itself.
        return base.max_norm is None
    if isinstance(base, _CONVOLUTIONS):
        conv: Any = base
        return conv.groups == 1 and conv.padding_mode == "zeros" and set(conv.dilation) == {1}
    return True


def _turned(layer: Any, base: torch.nn.Module) -> bool:
    """Whether the output features are the weight's second dimension."""
    return isinstance(base, torch.nn.Embedding) or bool(getattr(layer, "fan_in_fan_out", False))


def _has(layer: Any, adapter: str) -> bool:
    return adapter in layer.lora_A or adapter in layer.lora_embedding_A


def _lora(layer: Any, base: torch.nn.Module, adapter: str) -> Addition | None:
    variant = layer.lora_variant.get(adapter)
    if variant is not None and type(variant).__name__ not in _DORA:
        return None
    dropout = layer.lora_dropout[adapter]
    if not isinstance(dropout, torch.nn.Identity) and dropout.training:
        return None
    bias = None
    if adapter in layer.lora_embedding_A:
        down, up = layer.lora_embedding_A[adapter], layer.lora_embedding_B[adapter]
    else:
        first, second = layer.lora_A[adapter], layer.lora_B[adapter]
        if not _like(first, base) or any(_hooks(first)) or any(_hooks(second)):
            return None
        down, up, bias = first.weight, second.weight, second.bias
    magnitude = None if variant is None else layer.lora_magnitude_vector[adapter].weight
    weight: Any = base.weight
    if bias is not None and (variant is not None or base.bias is None):
        return None
    scale = layer.scaling[adapter]
    parameters = [part for part in (down, up, bias, magnitude, scale) if isinstance(part, torch.Tensor)]
    if not _usable(weight, (down, up)):
        return None
    turned = _turned(layer, base)
    dtype = torch.promote_types(weight.dtype, torch.float32)

    def delta() -> torch.Tensor:
        product = up.detach().to(dtype).flatten(1) @ down.detach().to(dtype).flatten(1)
        found: torch.Tensor = (product.T if turned else product).reshape(weight.shape)
        return found

    kind = f"{type(layer).__module__}.{type(layer).__name__} in {weight.dtype}"
    return Addition(
        kind=kind if variant is None else f"{kind} with {type(variant).__name__}",
        parameters=tuple(parameters),
        scale=scale,
        delta=delta,
        magnitude=magnitude,
        bias=bias,
        constant=adapter not in layer.lora_A,
    )


def _lycoris(layer: Any, base: torch.nn.Module, adapter: str) -> Addition | None:
    weight: Any = base.weight
    held = [getattr(layer, name) for name in layer.adapter_layer_names]
    parameters = [table[adapter] for table in held if adapter in table]
    if not _usable(weight, parameters) or any(part.dtype != weight.dtype for part in parameters):
        return None

    def delta() -> torch.Tensor:
        found: torch.Tensor = layer.get_delta_weight(adapter)
        return found

    # What `delta` gives has the layer's own scale in it.
    kind = f"{type(layer).__module__}.{type(layer).__name__} in {weight.dtype}"
    return Addition(kind=kind, parameters=tuple(parameters), scale=1.0, delta=delta)


def _like(first: Any, base: Any) -> bool:
    """Whether the adapter's first layer reads its input as the base layer does."""
    if not isinstance(base, _CONVOLUTIONS):
        return type(first) is torch.nn.Linear
    names = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    return type(first) is type(base) and all(getattr(first, name) == getattr(base, name) for name in names)


def _usable(weight: torch.Tensor, parameters: Sequence[torch.Tensor]) -> bool:
    """Whether the adapter is there, beside its layer, and no coarser than it: its branch would round otherwise."""
    return all(
        part.device == weight.device and torch.promote_types(part.dtype, weight.dtype) == part.dtype
        for part in parameters
    )


def _hooks(module: torch.nn.Module) -> tuple[Any, ...]:
    return module._forward_hooks, module._forward_pre_hooks
