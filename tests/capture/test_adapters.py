"""Layers with adapters, read as base layers with another weight: what they compute, and which are left as they are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, inject_adapter_in_model
from transformers.pytorch_utils import Conv1D

from rewriter.capture import adapters
from rewriter.capture.state import Snapshot

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Net(torch.nn.Module):
    """One layer by the name of `layer`, and one beside it."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.other = torch.nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)  # type: ignore[no-any-return]


Make = Callable[[], torch.nn.Module]
FLOATS, IMAGE, IDS = torch.randn(4, 6), torch.randn(2, 6, 7, 7), torch.tensor([[0, 3, 5]])
LAYERS: dict[str, tuple[Make, torch.Tensor]] = {
    "linear": (lambda: torch.nn.Linear(6, 5), FLOATS),
    "linear without bias": (lambda: torch.nn.Linear(6, 5, bias=False), FLOATS),
    "transposed linear": (lambda: Conv1D(5, 6), FLOATS),
    "convolution": (lambda: torch.nn.Conv2d(6, 5, 3, stride=2, padding=1), IMAGE),
    "pointwise convolution": (lambda: torch.nn.Conv2d(6, 5, 1), IMAGE),
    "1-d convolution": (lambda: torch.nn.Conv1d(6, 5, 3, padding=2), IMAGE[..., 0]),
    "3-d convolution": (lambda: torch.nn.Conv3d(6, 5, (1, 3, 3)), IMAGE.unsqueeze(2)),
    "embedding": (lambda: torch.nn.Embedding(6, 5), IDS),
}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "plain": [{"r": 2}],
    "two": [{"r": 2}, {"r": 3, "use_rslora": True}],
    "dora": [{"r": 2, "use_dora": True}],
    "dora among others": [{"r": 2}, {"r": 3, "use_dora": True}, {"r": 1}, {"r": 4, "use_dora": True}],
}


def adapted(net: torch.nn.Module, options: list[dict[str, Any]], **more: Any) -> Any:
    torch.manual_seed(0)
    for number, each in enumerate(options):
        config = LoraConfig(
            target_modules=["layer"],
            lora_alpha=5,
            init_lora_weights=False,
            fan_in_fan_out=type(getattr(net, "layer", None)).__name__ == "Conv1D",
            **each,
            **more,
        )
        inject_adapter_in_model(config, net, adapter_name=f"a{number}")
    layer: Any = net.get_submodule("layer")
    if hasattr(layer, "set_adapter"):
        layer.set_adapter([f"a{number}" for number in range(len(options))])
        for name, vector in getattr(layer, "lora_magnitude_vector", {}).items():
            vector.weight.data.mul_(1.0 + 0.1 * len(name))
    return net.eval().requires_grad_(False)


def read(net: torch.nn.Module) -> adapters.Layer | None:
    return adapters.read(net.get_submodule("layer"), adapters.entangled(net), ())


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", LAYERS)
def test_the_base_layer_with_the_merged_weight_equals_the_adapted_one(name: str, options: str) -> None:
    make, x = LAYERS[name]
    torch.manual_seed(1)
    net = adapted(Net(make()), OPTIONS[options])
    for factor in (1.0, 0.3):
        layer = read(net)
        assert layer is not None
        base: Any = copy.deepcopy(layer.base)
        weight, bias = adapters.merged(layer, base.weight, base.bias if hasattr(base, "bias") else None, factor)
        assert weight.dtype is torch.float32
        assert bias is None
        base.weight.data = weight
        scaled = copy.deepcopy(net)
        scaled.layer.scale_layer(factor)
        torch.testing.assert_close(base(x), scaled(x), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(layer.base(x), scaled(x), rtol=1e-2)


def test_an_addition_to_the_bias_is_scaled_too() -> None:
    net = adapted(Net(torch.nn.Linear(6, 5)), [{"r": 2, "lora_bias": True}, {"r": 3, "use_dora": True}])
    layer = read(net)
    assert layer is not None
    base: Any = copy.deepcopy(layer.base)
    weight, bias = adapters.merged(layer, base.weight, base.bias, 1.0)
    assert bias is not None
    base.weight.data, base.bias.data = weight, bias
    torch.testing.assert_close(base(FLOATS), net(FLOATS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [LoHaConfig, LoKrConfig])
def test_adapters_of_other_shapes(config: type) -> None:
    net = Net(torch.nn.Linear(6, 6))
    torch.manual_seed(0)
    inject_adapter_in_model(config(r=2, alpha=3, target_modules=["layer"], init_weights=False), net)
    net.eval().requires_grad_(False)
    layer = read(net)
    assert layer is not None
    base: Any = copy.deepcopy(layer.base)
    base.weight.data, _ = adapters.merged(layer, base.weight, base.bias, 1.0)
    torch.testing.assert_close(base(FLOATS), net(FLOATS), rtol=1e-5, atol=1e-5)


def test_what_is_off_or_fused_adds_nothing() -> None:
    net = adapted(Net(torch.nn.Linear(6, 5)), [{"r": 2}])
    net.layer.enable_adapters(False)
    layer = read(net)
    assert layer is not None
    assert (layer.additions, layer.unmerges) == ((), False)
    net.layer.enable_adapters(True)
    net.layer.merge()
    layer = read(net)
    assert layer is not None
    assert (layer.additions, layer.unmerges) == ((), False)
    net.layer.enable_adapters(False)
    layer = read(net)
    assert layer is not None
    assert layer.unmerges


def tied() -> torch.nn.Module:
    net = adapted(Net(torch.nn.Linear(2, 2)), [{"r": 2}])
    net.other.weight = net.layer.base_layer.weight
    return net  # type: ignore[no-any-return]


def also_elsewhere() -> torch.nn.Module:
    net = adapted(Net(torch.nn.Linear(6, 5)), [{"r": 2}])
    net.again = net.layer.base_layer
    return net  # type: ignore[no-any-return]


def hooked() -> torch.nn.Module:
    net = adapted(Net(torch.nn.Linear(6, 5)), [{"r": 2}])
    net.layer.lora_A["a0"].register_forward_hook(lambda *_: None)
    return net  # type: ignore[no-any-return]


def coarse() -> torch.nn.Module:
    net = adapted(Net(torch.nn.Linear(6, 5)), [{"r": 2}])
    net.layer.lora_A.half()
    return net  # type: ignore[no-any-return]


def dropping() -> torch.nn.Module:
    net = adapted(Net(torch.nn.Linear(6, 5)), [{"r": 2}], lora_dropout=0.5)
    net.layer.lora_dropout.train()
    return net  # type: ignore[no-any-return]


def own_forward() -> torch.nn.Module:
    class Twice(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).abs()

    return adapted(Net(Twice(6, 5)), [{"r": 2}])  # type: ignore[no-any-return]


LEFT: dict[str, Make] = {
    "a tied weight": tied,
    "a layer used elsewhere": also_elsewhere,
    "a hook": hooked,
    "a coarser adapter": coarse,
    "active dropout": dropping,
    "a forward of its own": own_forward,
    "circular padding": lambda: adapted(Net(torch.nn.Conv2d(6, 5, 3, padding=1, padding_mode="circular")), [{"r": 2}]),
    "dilation": lambda: adapted(Net(torch.nn.Conv2d(6, 5, 3, dilation=2)), [{"r": 2}]),
    "groups": lambda: adapted(Net(torch.nn.Conv2d(6, 6, 3, groups=2)), [{"r": 2}]),
    "an embedding that renormalises": lambda: adapted(Net(torch.nn.Embedding(6, 5, max_norm=1.0)), [{"r": 2}]),
    "a bias where there is none": lambda: adapted(Net(torch.nn.Linear(6, 5, bias=False)), [{"r": 2}], lora_bias=True),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_a_weight_cannot_stand_for_is_left_as_it_is(name: str) -> None:
    net = LEFT[name]()
    assert adapters.is_wrapped(net.get_submodule("layer"))
    assert read(net) is None
    snapshot = Snapshot(net)
    assert snapshot.adapted == []
    assert snapshot.branched


def test_another_peft_is_left_as_it_is() -> None:
    net = adapted(Net(torch.nn.Linear(6, 5)), [{"r": 2}])
    del net.layer.scaling
    assert read(net) is None


CHANGES: dict[str, Callable[[Any], object]] = {
    "another adapter": lambda net: adapted(net, [{"r": 2}, {"r": 3}]),
    "a scale": lambda net: net.layer.set_scale("a0", 0.5),
    "switched": lambda net: net.layer.set_adapter(["a1"]),
    "off": lambda net: net.layer.enable_adapters(False),
    "fused": lambda net: net.layer.merge(),
    "removed": lambda net: net.layer.delete_adapter("a0"),
    "a write": lambda net: net.layer.lora_A["a0"].weight.add_(1),
    "other data": lambda net: setattr(net.layer.lora_B["a0"].weight, "data", torch.zeros(5, 2)),
    "another parameter": lambda net: setattr(net.layer.lora_B["a0"], "weight", torch.nn.Parameter(torch.zeros(5, 2))),
    "another module": lambda net: net.layer.lora_A.update({"a0": torch.nn.Linear(6, 2, bias=False)}),
    "a hook": lambda net: net.layer.register_forward_hook(lambda *_: None),
    "a forward": lambda net: setattr(net.layer, "forward", net.layer.base_layer.forward),
    "another base layer": lambda net: net.layer._modules.update(base_layer=torch.nn.Linear(6, 5)),
    "unwrapped": lambda net: setattr(net, "layer", net.layer.base_layer),
    "dropout": lambda net: net.layer.lora_dropout["a0"].train(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_adapters_is_noticed(change: str) -> None:
    net = adapted(Net(torch.nn.Linear(6, 5)), [{"r": 2}], lora_dropout=0.5)
    bare = Snapshot(Net(torch.nn.Linear(6, 5)).eval())
    before = Snapshot(net)
    assert before.unchanged(net)
    assert before.names == bare.names
    CHANGES[change](net)
    assert not before.unchanged(net)


# What a layer with adapters is read anew for, but not the modules around it.
QUICK = frozenset(CHANGES) - {"a hook", "a forward", "another base layer", "unwrapped", "dropout"}


def told(snapshot: Snapshot) -> tuple[Any, ...]:
    """All that a snapshot says, tensors by their identity."""
    layers = [
        (
            id(layer.module),
            id(layer.base),
            layer.active,
            [(each.kind, list(map(id, each.parameters)), each.scale) for each in layer.additions],
            layer.unmerges,
            *places,
        )
        for layer, *places in snapshot.adapted
    ]
    tensors = (*snapshot.weights, *snapshot.adapter_weights)
    return snapshot.fingerprint, snapshot.names, list(map(id, tensors)), layers, snapshot.branched, snapshot.blocked


@pytest.mark.parametrize("change", CHANGES)
def test_where_only_adapters_changed_only_they_are_read_again(change: str) -> None:
    net = adapted(Net(torch.nn.Linear(6, 5)), [{"r": 2}], lora_dropout=0.5)
    before = Snapshot(net)
    CHANGES[change](net)
    switched = before.switched(net)
    assert (switched is not None) == (change in QUICK)
    if switched is not None:
        assert told(switched) == told(Snapshot(net))
        assert switched.unchanged(net)
        assert switched.serial != before.serial


def test_where_more_than_adapters_changed_all_is_read_again() -> None:
    net = adapted(Net(torch.nn.Linear(6, 5)), [{"r": 2}])
    before = Snapshot(net)
    net.layer.set_scale("a0", 0.5)
    net.other.bias = torch.nn.Parameter(torch.zeros(2))
    assert before.switched(net) is None


def test_an_adapter_made_of_its_layers_own_weight_is_left_as_it_is() -> None:
    net = adapted(Net(torch.nn.Linear(4, 4)), [{"r": 4}])
    before = Snapshot(net)
    net.layer.lora_A["a0"].weight = net.layer.base_layer.weight
    assert before.switched(net) is None
    assert Snapshot(net).adapted == []


def test_scaling_and_back_is_no_change() -> None:
    net = adapted(Net(torch.nn.Linear(6, 5)), [{"r": 2}])
    before = Snapshot(net)
    net.layer.scale_layer(0.5)
    assert not before.unchanged(net)
    net.layer.unscale_layer(0.5)
    assert before.unchanged(net)


def test_adapters_leave_the_fingerprint_as_it_was() -> None:
    net = Net(torch.nn.Linear(6, 5)).eval().requires_grad_(False)
    bare = Snapshot(net)
    adapted(net, [{"r": 2}, {"r": 3}])
    snapshot = Snapshot(net)
    assert snapshot.fingerprint == bare.fingerprint
    assert snapshot.names == bare.names
    assert all(a is b for a, b in zip(snapshot.weights, bare.weights, strict=True))
    with snapshot.bare():
        assert type(net.layer) is torch.nn.Linear
    assert adapters.is_wrapped(net.layer)
