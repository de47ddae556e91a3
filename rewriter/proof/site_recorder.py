"""Records where rules fire in the built-in models: `python -m rewriter.proof.site_recorder` writes the table of sites.

The models are traced at full size without computing them, so that a CPU does it in a minute.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch

from rewriter.graph.conditions import Target
from rewriter.graph.engine import rewrite
from rewriter.graph.facts import DTYPES, TensorFacts
from rewriter.graph.match import Match
from rewriter.graph.view import NotConstant, Value
from rewriter.language import load_rules
from rewriter.language.rule import Rule, RuleSet
from rewriter.models.architectures import new_network
from rewriter.models.catalogue import ARCHITECTURES
from rewriter.models.configurations import Architecture
from rewriter.models.denoiser_inputs import denoiser_inputs
from rewriter.proof.shape_tracing import trace
from rewriter.proof.sites import TABLE, Site, largest, written

MODELS = ("sd15", "sdxl", "svd-xt", "flux-dev")
_MACHINE = Target(device="cuda", sm=90)
# What these ops read lies channels last in a network whose convolutions do.
_SPATIAL = ("convolution", "group_norm")
# Rows of a denoiser's call under classifier-free guidance.
_ROWS = 2
# For each rule and model; the others are small.
_KEPT = 6


def record(model: str, architecture: Architecture, rules: RuleSet) -> list[Site]:
    """The sites of one model: denoiser, VAE decoder and text encoders, at the extents of its published call."""
    counted: Counter[str] = Counter()
    for component, module, call, example in _components(architecture):
        graph, weights = trace(module, call, example)
        half = next(name for name, dtype in DTYPES.items() if dtype == getattr(torch, architecture.half))

        def observe(match: Match, component: str = component, half: str = half) -> None:
            rule = match.pattern.rule
            operands = None if rule.phase == "canonicalise" else _operands(match)
            if operands is not None:
                site = {"component": component, "dtype": half, "choice": _choice(match), "operands": operands}
                counted[json.dumps({"rule": rule.id, **site})] += 1

        rewrite(graph, rules, weights=weights, target=_MACHINE, observe=observe)
    return [Site(model=model, count=count, **json.loads(text)) for text, count in counted.items()]


def _components(
    architecture: Architecture,
) -> Iterator[tuple[str, torch.nn.Module, Callable[..., Any], list[torch.Tensor]]]:
    dtype = getattr(torch, architecture.half)

    def build(name: str) -> torch.nn.Module:
        network = new_network(architecture.networks[name], dtype=dtype, device=torch.device("meta"))
        network = network.to_empty(device="cpu")
        for tensor in network.buffers():
            if not tensor.is_floating_point():
                tensor.zero_()  # positions, which must be in the range of their embedding
        return network

    denoiser = build(architecture.denoiser)
    height, width = architecture.call["height"], architecture.call["width"]
    rows = 1 if architecture.denoiser == "transformer" else _ROWS
    holder = _Holder(denoiser, architecture.denoiser)
    inputs = denoiser_inputs(holder, architecture.denoiser, batch=rows, height=height, width=width)
    yield architecture.denoiser, *_flat(denoiser, inputs)
    del denoiser, holder
    decoder: Any = build("vae")
    frames = architecture.call.get("decode_chunk_size", 1)
    latent = torch.zeros(frames, int(decoder.config.latent_channels), height // 8, width // 8, dtype=dtype)
    extra = {"num_frames": frames} if "num_frames" in architecture.call else {}
    yield "vae.decode", decoder, lambda z: decoder.decode(z, return_dict=False, **extra), [latent]
    for name in ("text_encoder", "text_encoder_2"):
        if name in architecture.networks:
            encoder = build(name)
            tokens = torch.zeros(1, architecture.tokenizers[name.replace("text_encoder", "tokenizer")].length).long()
            yield name, encoder, lambda ids, encoder=encoder: encoder(ids, return_dict=False), [tokens]


class _Holder:
    """As much of a pipeline as the inputs of its denoiser need."""

    vae_scale_factor = 8

    def __init__(self, denoiser: torch.nn.Module, name: str) -> None:
        setattr(self, name, denoiser)


def _flat(
    module: torch.nn.Module, inputs: dict[str, Any]
) -> tuple[torch.nn.Module, Callable[..., Any], list[torch.Tensor]]:
    """The call as a function of its tensors."""
    flat: list[torch.Tensor] = []

    def taken(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            flat.append(value)
            return _Slot(len(flat) - 1)
        return {key: taken(item) for key, item in value.items()} if isinstance(value, dict) else value

    def given(value: Any, tensors: tuple[torch.Tensor, ...]) -> Any:
        if isinstance(value, _Slot):
            return tensors[value.number]
        return {key: given(item, tensors) for key, item in value.items()} if isinstance(value, dict) else value

    slots = taken(inputs)
    return module, lambda *tensors: module(**given(slots, tensors)), flat


class _Slot:
    def __init__(self, number: int) -> None:
        self.number = number


def _operands(match: Match) -> dict[str, Any] | None:
    """The operands as a site has them, or None where one is not known."""
    rule = match.pattern.rule
    try:
        return {name: _operand(rule, name, match.bound[name]) for name in rule.inputs}
    except (KeyError, LookupError):
        return None


def _operand(rule: Rule, name: str, bound: Any) -> Any:
    if isinstance(bound, list):
        return [_operand(rule, name, value) for value in bound]
    value: Value = bound
    constant = value.constant
    if not isinstance(constant, NotConstant):
        return list(constant) if isinstance(constant, tuple) else constant
    facts = value.facts
    if facts is None or facts.shape is None or facts.dtype not in DTYPES:
        raise LookupError
    found: dict[str, Any] = {"shape": list(facts.shape), "dtype": facts.dtype}
    strides = _strides(rule, name, facts)
    return found if strides is None else found | {"strides": strides}


def _strides(rule: Rule, name: str, facts: TensorFacts) -> Any:
    ops = [call.op for step in rule.match for call in step.calls]
    asked = name in rule.where and rule.where[name].format == "contiguous"
    if not asked and facts.rank in (4, 5) and any(part in op for op in ops for part in _SPATIAL):
        return "channels_last"
    contiguous = torch.empty(facts.shape or (), device="meta").stride()
    return None if facts.strides is None or facts.strides == contiguous else list(facts.strides)


def _choice(match: Match) -> int:
    """Which of the alternatives of a statement was found."""
    for step in match.pattern.rule.match:
        name = step.statement.choice
        if name is not None:
            return [call.op.split("::")[1] for call in step.calls].index(str(match.bound[name]))
    return 0


def main() -> None:
    """Writes the table."""
    parser = argparse.ArgumentParser(prog="python -m rewriter.proof.site_recorder", description=__doc__)
    parser.add_argument("--model", action="append", choices=MODELS, help="only this model; may be repeated")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).with_name(TABLE))
    arguments = parser.parse_args()
    rules = load_rules("default")
    sites = [site for model in arguments.model or MODELS for site in record(model, ARCHITECTURES[model], rules)]
    arguments.out.write_text(written(largest(sites, _KEPT)), encoding="utf-8")


if __name__ == "__main__":
    main()
