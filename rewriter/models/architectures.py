"""Builds the pipelines described in `configurations`, with random weights and without a network connection."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import diffusers
import torch
import transformers
from tqdm import tqdm

from rewriter.models.configurations import Architecture, Part
from rewriter.models.libraries import quiet
from rewriter.models.vocabularies import new_tokenizer

SEED = 0


def build(architecture: Architecture, *, dtype: torch.dtype, device: torch.device, seed: int = SEED) -> Any:
    """The pipeline, its networks in eval mode and without gradients, created directly in `dtype` on `device`.

    The same seed gives the same weights on the same device and dtype. The caller's random state is left alone.
    """
    parts: dict[str, Any] = dict(architecture.arguments)
    total = len(architecture.networks) + len(architecture.tokenizers)
    with quiet(), tqdm(total=total, delay=2, leave=False, unit="part", desc=f"building {architecture.pipeline}") as bar:
        for name, part in architecture.networks.items():
            parts[name] = new_network(part, dtype=dtype, device=device, seed=seed)
            bar.update()
        for name, vocabulary in architecture.tokenizers.items():
            parts[name] = new_tokenizer(vocabulary)
            bar.update()
        parts["scheduler"] = getattr(diffusers, architecture.scheduler.kind)(**architecture.scheduler.options)
        if architecture.image_size is not None:
            side = architecture.image_size
            parts["feature_extractor"] = transformers.CLIPImageProcessor(
                size={"shortest_edge": side}, crop_size={"height": side, "width": side}
            )
        return getattr(diffusers, architecture.pipeline)(**parts)


def new_network(part: Part, *, dtype: torch.dtype, device: torch.device, seed: int = SEED) -> torch.nn.Module:
    """One network with random weights, created directly in `dtype` on `device`; on "meta" it has shapes only."""
    with _creating(dtype, device, seed):
        network = _construct(part)
        if device.type != "meta":
            _vary(network)
    # Buffers that name a dtype themselves follow only now. The plain `to` is meant: diffusers' own warns about layers
    # that a checkpoint keeps in float32.
    return torch.nn.Module.to(network, device=device, dtype=dtype).eval().requires_grad_(False)


def _construct(part: Part) -> torch.nn.Module:
    network: torch.nn.Module
    if hasattr(diffusers, part.kind):
        network = getattr(diffusers, part.kind)(**part.options)
    else:
        kind = getattr(transformers, part.kind)
        network = kind(kind.config_class(**part.options))
    return network


def _vary(network: torch.nn.Module) -> None:
    """Adds noise to parameters that start with one value everywhere: norms, zero biases, a ControlNet's zero layers.

    Ones and zeros hide mistakes: a forgotten norm weight, or a whole branch multiplied by zero, would not show.
    """
    for parameter in network.parameters():
        head = parameter.flatten()[:64]
        if parameter.numel() > 1 and torch.equal(head, head[:1].expand_as(head)):
            parameter.add_(torch.randn_like(parameter), alpha=0.02)


@contextlib.contextmanager
def _creating(dtype: torch.dtype, device: torch.device, seed: int) -> Iterator[None]:
    """New parameters are random from `seed`, of `dtype` and on `device` inside this block."""
    devices = [device] if device.type == "cuda" else []
    before = torch.get_default_dtype()
    with torch.random.fork_rng(devices=devices), torch.device(device), torch.no_grad():
        torch.manual_seed(seed)
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
