"""Networks of diffusers in the sizes of tiny_models.yaml, what they are called with, and a comparison with eager."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

import rewriter
from rewriter.capture.compare import relative_error
from rewriter.models.architectures import new_network
from rewriter.models.configurations import Part

SIZES: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("tiny_models.yaml").read_text())
LIMIT = 1e-5


def network(name: str, **options: Any) -> Any:
    """The class `name` of diffusers with random weights, float32 on the CPU. `options` override those of the file."""
    part = Part(kind=name, options={**SIZES.get(name, {"init": {}})["init"], **options})
    return new_network(part, dtype=torch.float32, device=torch.device("cpu"))


def inputs(name: str) -> dict[str, Any]:
    """What the file gives the network of that name, the same every time."""
    return {key: argument(value) for key, value in SIZES[name]["inputs"].items()}


def compared(module: Any, calls: list[Callable[[], dict[str, Any]]]) -> set[str]:
    """Optimises the module and makes each call of it and of an eager twin; returns why parts of it run eagerly."""
    twin = copy.deepcopy(module)
    rewriter.optimize(module, measure=False)
    for given in calls:
        torch.manual_seed(0)
        expected = tensors_of(twin(**given()))
        torch.manual_seed(0)
        actual = tensors_of(module(**given()))
        assert len(actual) == len(expected) > 0
        for a, b in zip(actual, expected, strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            assert relative_error(a, b) <= LIMIT if b.is_floating_point() else torch.equal(a, b)
            assert torch.equal(a.isfinite(), b.isfinite())
    parts = rewriter.report(module).components.values()
    return {str(part.reason) for part in parts if part.status == "eager"}


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
