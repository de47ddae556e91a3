"""Every number that a network or a pipeline is given takes effect, whatever the calls before it were given."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from tiny_pipelines import CASES
from twins import compared, draw, pairs, tensors_of

import rewriter
from rewriter.capture.compare import relative_error
from rewriter.capture.structure import flatten_arguments, number_paths, unflatten
from rewriter.language import RuleSet
from rewriter.runtime.calls import scale_argument
from rewriter.runtime.session import components_of

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

# Each class of denoiser and ControlNet once, and the decoder that is told a number of frames.
NETWORKS = (
    ("sd15", "unet"),
    ("sdxl", "unet"),
    ("sd15-controlnet", "controlnet"),
    ("svd", "unet"),
    ("svd", "vae.decoder"),
    ("animatediff", "unet"),
    ("sd35", "transformer"),
    ("flux-dev", "transformer"),
    ("flux-controlnet", "controlnet"),
    ("pixart-alpha", "transformer"),
    ("sana", "transformer"),
    ("wan", "transformer"),
    ("qwen-image", "transformer"),
    ("z-image", "transformer"),
)
_SOME = (0.0, 1.0, 0.5, -1.0, 2.5)
_FLOATS = st.sampled_from(_SOME) | st.floats(-4.0, 4.0, allow_subnormal=False)


def build(case: str) -> tuple[Any, Any]:
    """A pipeline and its twin. What an untrained network multiplies by zero would have no effect, so it is not zero."""
    pipe = CASES[case].build()
    torch.manual_seed(2)
    for network in pipe.components.values():
        if isinstance(network, torch.nn.Module):
            for name, weight in network.named_parameters():
                if name.endswith("weight") and not weight.any():
                    weight.normal_(std=0.1)
    return pipe, copy.deepcopy(pipe)


def recorded_call(pipe: Any, network: torch.nn.Module, call: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by name of the first call of `network` in a run of the pipeline."""
    calls: list[dict[str, Any]] = []
    signature = inspect.signature(type(network).forward)

    def record(_: Any, args: Any, kwargs: Any) -> None:
        bound = signature.bind(network, *args, **kwargs).arguments
        calls.append(dict(list(bound.items())[1:]))

    handle = network.register_forward_pre_hook(record, with_kwargs=True)
    draw(pipe, **call)
    handle.remove()
    return copy.deepcopy(calls[0])


def with_numbers(network: torch.nn.Module, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The call with all numbers spelled out that its signature lets a caller give."""
    given: dict[str, Any] = {}
    for name, parameter in inspect.signature(type(network).forward).parameters.items():
        if type(parameter.default) in (int, float):
            given[name] = parameter.default
        if "float" in str(parameter.annotation) and "Tensor" in str(parameter.annotation):
            given[name] = float(torch.as_tensor(arguments[name]).flatten()[0])
    scaled = scale_argument(type(network).forward)
    if scaled is not None:
        given[scaled] = {**(arguments.get(scaled) or {}), "scale": 1.0}
    return {**arguments, **given}


def adapt(network: Any) -> None:
    torch.manual_seed(1)
    network.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))


def outcome(network: torch.nn.Module, arguments: Mapping[str, Any]) -> list[torch.Tensor] | str:
    torch.manual_seed(0)
    try:
        return tensors_of(network(**copy.deepcopy(dict(arguments))))
    except Exception as error:
        return type(error).__name__


def assert_equal(network: torch.nn.Module, twin: torch.nn.Module, arguments: Mapping[str, Any]) -> None:
    expected, actual = outcome(twin, arguments), outcome(network, arguments)
    if isinstance(expected, str) or isinstance(actual, str):
        assert expected == actual
        return
    for a, b in zip(actual, expected, strict=True):
        if bool(torch.isfinite(b).all()):
            assert relative_error(a, b) <= 1e-5


@pytest.mark.parametrize(("case", "name"), NETWORKS)
def test_every_number_given_to_a_network_takes_effect(case: str, name: str) -> None:
    pipe, twin = build(case)
    network, original = pairs(pipe, twin)[name]
    if hasattr(network, "add_adapter"):
        adapt(network)
        adapt(original)
    call = with_numbers(network, recorded_call(twin, original, CASES[case].call))
    flat = flatten_arguments(call)
    paths = list(number_paths(flat.structure))
    rewriter.optimize(network, rules=RuleSet(rules=()), measure=False)

    def changed(values: Sequence[float]) -> dict[str, Any]:
        kinds = [type(number) for number in flat.numbers]
        numbers = [kind(value) for kind, value in zip(kinds, values, strict=True)]
        found: dict[str, Any] = unflatten(flat.structure, flat.tensors, numbers)
        return found

    before = outcome(original, call)
    assert not isinstance(before, str)
    assert_equal(network, original, call)

    @settings(max_examples=6, deadline=None, derandomize=True, phases=[Phase.generate], database=None)
    @given(index=st.integers(0, max(len(paths) - 1, 0)), value=_FLOATS)
    def change(index: int, value: float) -> None:
        values = list(flat.numbers)
        if values:
            values[index] = value
        # Twice: what is proved by the first call is used by the second.
        for _ in range(2):
            assert_equal(network, original, changed(values))

    change()


CHANGES: dict[str, list[dict[str, Any]]] = {
    "sd15": [{"guidance_scale": scale} for scale in (1.0, 3.0, 7.5)] + [{"guidance_rescale": 0.7}, {"eta": 1.0}],
    "sd15-controlnet": [
        {"controlnet_conditioning_scale": 1.0},
        {"control_guidance_start": 0.5},
        {"controlnet_conditioning_scale": 0.3},
        {"control_guidance_end": 0.6},
        {"controlnet_conditioning_scale": 0.0},
        {"guess_mode": True, "guidance_scale": 3.0},
    ],
    "sd15-controlnets": [{"controlnet_conditioning_scale": scale} for scale in ([1.0, 1.0], [0.3, 0.8], [0.0, 1.0])],
    "sd15-t2i-adapter": [{"adapter_conditioning_scale": scale} for scale in (0.8, 0.1)],
    "sd15-img2img": [{"strength": strength} for strength in (1.0, 0.6)],
    "flux-dev": [{"guidance_scale": scale} for scale in (1.0, 3.5)],
}


@pytest.mark.parametrize("case", CHANGES)
def test_every_number_given_to_a_pipeline_takes_effect(case: str) -> None:
    pipe, twin = build(case)
    rewriter.optimize(pipe, rules=RuleSet(rules=()), measure=False)
    results = []
    for change in CHANGES[case]:
        with compared(pipe, twin) as errors:
            results.append(draw(pipe, **{**CASES[case].call, **change}))
        assert max(errors.values()) <= 1e-5, change
    for number, result in enumerate(results[1:]):
        assert result.shape != results[number].shape or abs(result - results[number]).max() > 1e-4, CHANGES[case]


def test_the_scales_of_an_ip_adapter_take_effect() -> None:
    pipe, twin = build("sd15-ip-adapter")
    rewriter.optimize(pipe, rules=RuleSet(rules=()), measure=False)
    scales: tuple[Any, ...] = (1.0, 0.5, 0.0, {"down": {"block_2": [0.0, 1.0]}}, 1.0)
    results = []
    for scale in scales:
        pipe.set_ip_adapter_scale(copy.deepcopy(scale))
        twin.set_ip_adapter_scale(copy.deepcopy(scale))
        with compared(pipe, twin) as errors:
            results.append(draw(pipe, **CASES["sd15-ip-adapter"].call))
        assert max(errors.values()) <= 1e-5, scale
    assert abs(results[0] - results[1]).max() > 1e-6
    assert abs(results[0] - results[-1]).max() < 1e-5


def test_the_scale_of_an_ip_adapter_needs_no_new_trace() -> None:
    pipe, twin = build("sd15-ip-adapter")
    rewriter.optimize(pipe, measure=False)
    component, results = components_of(pipe)["unet"], []
    for scale in (1.0, 0.5, -0.3, 2.5, 1, 0.1, 0.9):
        pipe.set_ip_adapter_scale(scale)
        twin.set_ip_adapter_scale(scale)
        with compared(pipe, twin) as errors:
            results.append(draw(pipe, **CASES["sd15-ip-adapter"].call))
        assert max(errors.values()) <= 1e-5, scale
    assert all(abs(a - b).max() > 1e-6 for a, b in itertools.pairwise(results))
    assert (component.journal.captures, len(component.programs)) == (1, 1)
    # The last of them are believed: their first call runs the graph, too.
    assert component.journal.eager_calls < len(results)
