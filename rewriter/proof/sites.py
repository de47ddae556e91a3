"""The operands that rules have in real models: a table of shapes, strides and constants, and tensors made from it.

The table is written by `python -m rewriter.proof.site_recorder`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from rewriter.graph.facts import DTYPES
from rewriter.language.rule import Rule
from rewriter.proof.sample import Sample

TABLE = "sites.json"
# Components that run once per denoising step weigh so much more than those that run once.
_STEPS = 20
_ONCE = ("vae.decode", "text_encoder", "text_encoder_2")
_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A rule's operands in one component of a model, where they are the same `count` times per call.

    operands: by name; a tensor is a dict of its shape, dtype and strides ("channels_last" or a list where they are not
    contiguous), repeated siblings are a list of such, anything else is a constant. choice: which of a statement's
    alternative ops.
    """

    rule: str
    model: str
    component: str
    count: int
    dtype: str
    choice: int
    operands: Mapping[str, Any]

    @property
    def shapes(self) -> str:
        """The extents of the operands that are not vectors, in words."""
        parts = []
        for name, operand in self.operands.items():
            tensors = tensors_of(operand)
            if tensors and len(tensors[0]["shape"]) > 1:
                times = f" x{len(tensors)}" if isinstance(operand, list) else ""
                parts.append(f"{name} {'x'.join(map(str, tensors[0]['shape']))}{times}")
        return ", ".join(parts)

    @property
    def numbers(self) -> int:
        """Elements of all operands, over all places and steps: what the site weighs among others."""
        tensors = [tensor for operand in self.operands.values() for tensor in tensors_of(operand)]
        calls = self.count * (1 if self.component in _ONCE else _STEPS)
        return calls * sum(int(math.prod(tensor["shape"])) for tensor in tensors)

    def sample(self, device: str) -> Sample:
        """Random operands. Weights are small, so that products stay in the range of f16."""
        generator = torch.Generator(device).manual_seed(0)
        made = {
            name: [_drawn(each, device, generator) for each in operand]
            if isinstance(operand, list) and tensors_of(operand)
            else _drawn(operand, device, generator)
            for name, operand in self.operands.items()
        }
        return Sample(made, {}, self.dtype)


def sites_of(rule: Rule, *, most: int) -> list[Site]:
    """At most that many sites of the rule for each model, the largest first; none where the rule's operands changed."""
    return largest(
        (site for site in table() if site.rule == rule.id and site.operands.keys() == rule.inputs.keys()), most
    )


def largest(sites: Iterable[Site], most: int) -> list[Site]:
    """At most that many sites for each rule and model, the largest first."""
    found: dict[tuple[str, str], list[Site]] = {}
    for site in sites:
        found.setdefault((site.rule, site.model), []).append(site)
    return [site for group in found.values() for site in sorted(group, key=lambda site: -site.numbers)[:most]]


@functools.cache
def table() -> tuple[Site, ...]:
    """Every site that was recorded."""
    text = importlib.resources.files("rewriter.proof").joinpath(TABLE).read_text(encoding="utf-8")
    return tuple(Site(**each) for each in json.loads(text)["sites"])


def written(sites: Iterable[Site]) -> str:
    """The table as a file, a site per line."""
    lines = ",\n".join("  " + json.dumps(dataclasses.asdict(site), separators=(",", ":")) for site in sites)
    return f'{{"sites": [\n{lines}\n]}}\n'


def tensors_of(operand: Any) -> list[dict[str, Any]]:
    """The tensors of an operand, as they are described."""
    listed = operand if isinstance(operand, list) else [operand]
    return [each for each in listed if isinstance(each, dict)]


def _drawn(operand: Any, device: str, generator: torch.Generator) -> Any:
    if not isinstance(operand, dict):
        return operand
    shape, dtype, strides = operand["shape"], DTYPES[operand["dtype"]], operand.get("strides")
    if strides == "channels_last":
        tensor = torch.empty(shape, dtype=dtype, device=device, memory_format=_FORMATS[len(shape)])
    elif strides is None:
        tensor = torch.empty(shape, dtype=dtype, device=device)
    else:
        tensor = torch.empty_strided(shape, strides, dtype=dtype, device=device)
    if not dtype.is_floating_point or 0 in tensor.stride():
        return tensor.zero_()
    return tensor.normal_(std=0.05, generator=generator)
