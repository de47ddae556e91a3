"""The table of `rewriter::*` ops: one schema, one plain-torch reference, one fake, any number of providers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch

from rewriter.errors import RewriterError

Kernel: TypeAlias = Callable[..., Any]
# The op's arguments -> why the provider cannot serve this call, or None.
Support: TypeAlias = Callable[..., str | None]
# Keywords that the provider's function takes after the op's arguments: block sizes, an algorithm's number.
Config: TypeAlias = Mapping[str, Any]

REFERENCE = "torch"


class OpError(RewriterError, ValueError):
    """An op or provider that is defined twice, or named without being there."""


def _plain(*_: Any) -> Sequence[Config]:
    return ({},)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provider:
    """One implementation of an op.

    fn: takes the op's arguments and then a config's keywords. supports: see `Support`. configs: the op's arguments ->
    the configs worth timing for such a call, at least one, the best guess first. instead_of: providers that need not be
    timed for a call that this one takes. measured: it serves only where it was timed, since nothing else tells whether
    it is faster than the reference.
    """

    fn: Kernel
    supports: Support
    configs: Callable[..., Sequence[Config]] = _plain
    instead_of: tuple[str, ...] = ()
    measured: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Op:
    """An op as rules name it: `rewriter::NAME`. `providers`: in the order of preference where nothing is measured."""

    name: str
    schema: str
    reference: Kernel
    fake: Kernel
    providers: dict[str, Provider]


OPS: dict[str, Op] = {}
# One for each op, so that one that was interrupted can be taken back alone.
_LIBRARIES: dict[str, torch.library.Library] = {}


def define(schema: str, reference: Kernel, fake: Kernel | None = None) -> Op:
    """Registers `rewriter::NAME` with torch and enters it in `OPS`.

    `schema` is `NAME(...) -> ...`. `reference` serves every call that no provider takes; it must return new tensors.
    `fake` gives shapes, dtypes and strides; without one the reference itself runs on fake tensors.
    Defining the same schema again returns the entry that is there. Raises OpError when the name has another schema.
    """
    from rewriter.ops.dispatch import Dispatcher

    name = schema.partition("(")[0]
    if name in OPS:
        if OPS[name].schema != schema:
            raise OpError(f"rewriter::{name} is defined twice: found {schema!r}, expected {OPS[name].schema!r}")
        return OPS[name]
    op = Op(name=name, schema=schema, reference=reference, fake=fake or reference, providers={})
    op.providers[REFERENCE] = Provider(fn=reference, supports=lambda *_: None)
    library = torch.library.Library("rewriter", "FRAGMENT")
    try:
        library.define(schema)
        library.impl(name, Dispatcher(op), "CompositeExplicitAutograd")
        torch.library.register_fake(f"rewriter::{name}", op.fake, lib=library)
        _LIBRARIES[name], OPS[name] = library, op
    except BaseException:
        # Ctrl-C while this package is imported: the next import defines the op again. To let go of the library is not
        # enough, for the traceback holds it.
        OPS.pop(name, None)
        library._destroy()
        raise
    return op


def provide(
    name: str,
    provider: str,
    fn: Kernel,
    supports: Support,
    configs: Callable[..., Sequence[Config]] = _plain,
    instead_of: tuple[str, ...] = (),
    measured: bool = False,
) -> None:
    """Adds a provider to an op. Raises OpError for an unknown op or another provider of that name."""
    providers = find(name).providers
    # A module whose import was interrupted is run again, and provides what it has provided.
    if provider in providers and _place(providers[provider].fn) != _place(fn):
        raise OpError(f"rewriter::{name} has a provider {provider!r} already")
    providers[provider] = Provider(fn=fn, supports=supports, configs=configs, instead_of=instead_of, measured=measured)


def _place(function: Kernel) -> tuple[str, str]:
    """Where the function stands in the code."""
    return getattr(function, "__module__", ""), getattr(function, "__qualname__", repr(function))


def find(name: str) -> Op:
    """The op's entry. Raises OpError for an unknown one."""
    if name not in OPS:
        raise OpError(f"unknown op rewriter::{name}; expected one of {', '.join(sorted(OPS))}")
    return OPS[name]
