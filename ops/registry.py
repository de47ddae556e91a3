"""The table of `rewriter::*` ops: one schema, one plain-torch reference, one fake, any number of providers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import torch

from rewriter.errors import RewriterError

Kernel: TypeAlias = Callable[..., Any]
# (device, dtype of the first tensor, shapes of all tensor arguments) -> why the provider cannot serve them, or None.
Support: TypeAlias = Callable[[torch.device, torch.dtype, Sequence[tuple[int, ...]]], str | None]

REFERENCE = "torch"


class OpError(RewriterError, ValueError):
    """An op or provider that is defined twice, or bound before it is defined."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provider:
    """One implementation of an op, and the question whether it can serve a call."""

    fn: Kernel
    supports: Support


@dataclasses.dataclass(frozen=True, kw_only=True)
class Op:
    """An op as rules name it: `rewriter::NAME`."""

    name: str
    schema: str
    reference: Kernel
    fake: Kernel
    providers: dict[str, Provider]


OPS: dict[str, Op] = {}
# What `bind` chose. torch has no way to take an implementation back, so it gets one that looks here.
_BOUND: dict[tuple[str, str], Kernel] = {}
_LIBRARY = torch.library.Library("rewriter", "DEF")


def define(schema: str, reference: Kernel, fake: Kernel | None = None) -> Op:
    """Registers `rewriter::NAME` with torch and enters it in `OPS`.

    `schema` is `NAME(...) -> ...`. `reference` serves every device until `bind` puts a provider in its place; it must
    return new tensors. `fake` gives shapes, dtypes and strides; without one the reference itself runs on fake tensors.
    Defining the same schema again returns the entry that is there. Raises OpError when the name has another schema.
    """
    name = schema.partition("(")[0]
    if name in OPS:
        if OPS[name].schema != schema:
            raise OpError(f"rewriter::{name} is defined twice: found {schema!r}, expected {OPS[name].schema!r}")
        return OPS[name]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"rewriter::{name}", fake or reference, lib=_LIBRARY)
    providers = {REFERENCE: Provider(fn=reference, supports=lambda *_: None)}
    OPS[name] = Op(name=name, schema=schema, reference=reference, fake=fake or reference, providers=providers)
    return OPS[name]


def provide(name: str, provider: str, fn: Kernel, supports: Support) -> None:
    """Adds a provider to an op, without using it yet. Raises OpError for an unknown op or a provider that exists."""
    providers = _op(name).providers
    if provider in providers:
        raise OpError(f"rewriter::{name} has a provider {provider!r} already")
    providers[provider] = Provider(fn=fn, supports=supports)


def bind(name: str, provider: str, device: Literal["CPU", "CUDA"]) -> None:
    """Makes `provider` the implementation of `rewriter::NAME` for tensors of `device`.

    Binding "torch" brings the reference back. Raises OpError for an unknown op or provider.
    """
    providers = _op(name).providers
    if provider not in providers:
        raise OpError(f"rewriter::{name} has no provider {provider!r}; expected one of {', '.join(sorted(providers))}")
    key = (name, device)
    if key not in _BOUND:
        _LIBRARY.impl(name, lambda *arguments: _BOUND[key](*arguments), device)
    _BOUND[key] = providers[provider].fn


def _op(name: str) -> Op:
    if name not in OPS:
        raise OpError(f"unknown op rewriter::{name}; expected one of {', '.join(sorted(OPS))}")
    return OPS[name]
