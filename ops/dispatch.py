"""Which provider serves a call: the one forced, else the one chosen by measurement, else the first that can."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from rewriter.ops import providers, registry

if TYPE_CHECKING:
    from rewriter.ops.registry import Config, Op, Provider


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """A provider and the config to run it with."""

    provider: str
    config: Config = dataclasses.field(default_factory=dict)


# A call's op and `signature` -> what serves it.
CHOSEN: dict[tuple[str, str], Choice] = {}
_FORCED: dict[str, Choice] = {}
_EXCLUDED: dict[tuple[str, str], str] = {}
_COUNTERS: list[Counter[tuple[str, str]]] = []
# Each with where its choices are kept.
_CHOOSERS: list[tuple[Callable[[Op, tuple[Any, ...], str], Choice], dict[tuple[str, str], Choice]]] = []


class Dispatcher:
    """The implementation that torch has of an op, on every device."""

    def __init__(self, op: Op) -> None:
        self.op = op
        self.__name__ = op.name

    def __call__(self, *arguments: Any) -> Any:
        choice = self.choice(arguments)
        for counter in _COUNTERS:
            counter[(self.op.name, choice.provider)] += 1
        return self.op.providers[choice.provider].fn(*arguments, **choice.config)

    def choice(self, arguments: tuple[Any, ...]) -> Choice:
        op = self.op
        if op.name in _FORCED:
            forced = _FORCED[op.name]
            return forced if op.providers[forced.provider].supports(*arguments) is None else _REFERENCE
        if not _on_gpu(arguments):
            return _REFERENCE
        providers.load()
        if len(op.providers) == 1:
            return _REFERENCE
        key = (op.name, signature(arguments))
        if key in CHOSEN:
            return CHOSEN[key]
        if not _CHOOSERS:
            return first_able(op, arguments)
        chooser, chosen = _CHOOSERS[-1]
        if key not in chosen:
            chosen[key] = chooser(op, arguments, key[1])
        return chosen[key]


_REFERENCE = Choice(registry.REFERENCE)


def candidates(op: Op, arguments: tuple[Any, ...]) -> list[Choice]:
    """Every provider worth timing for the call, with each of its configs; the reference is the last."""
    able = _able(op, arguments)
    spared = {name for provider in able.values() for name in provider.instead_of}
    found = [
        Choice(name, config)
        for name, provider in able.items()
        if name not in spared
        for config in provider.configs(*arguments)
    ]
    return [*found, _REFERENCE]


def signature(arguments: tuple[Any, ...]) -> str:
    """The same for calls that take the same time: shapes, strides, dtypes, alignment to 16 bytes, constants."""
    return ";".join(map(_described, arguments))


@contextlib.contextmanager
def forced(name: str, provider: str, config: Config | None = None) -> Iterator[None]:
    """Calls of `rewriter::NAME` go to `provider` on any device, or to the reference where it cannot serve them.

    Without `config` the provider's own defaults hold. Raises OpError for an unknown op or provider.
    """
    op = registry.find(name)
    providers.load()
    if provider not in op.providers:
        raise registry.OpError(
            f"rewriter::{name} has no provider {provider!r}; expected one of {', '.join(sorted(op.providers))}"
        )
    before = _FORCED.get(name)
    _FORCED[name] = Choice(provider, config or {})
    try:
        yield
    finally:
        if before is None:
            del _FORCED[name]
        else:
            _FORCED[name] = before


@contextlib.contextmanager
def counted() -> Iterator[Counter[tuple[str, str]]]:
    """Counts the calls inside by (op, provider)."""
    counter: Counter[tuple[str, str]] = Counter()
    _COUNTERS.append(counter)
    try:
        yield counter
    finally:
        # By identity: equal counters are equal dicts.
        del _COUNTERS[next(index for index, each in enumerate(_COUNTERS) if each is counter)]


@contextlib.contextmanager
def choosing(chooser: Callable[[Op, tuple[Any, ...], str], Choice], *, remember: bool = True) -> Iterator[None]:
    """`chooser(op, arguments, signature)` decides about calls inside that nothing has decided about yet.

    `remember`: for calls after these too.
    """
    _CHOOSERS.append((chooser, CHOSEN if remember else {}))
    try:
        yield
    finally:
        _CHOOSERS.pop()


def exclude(reasons: Mapping[tuple[str, str], str]) -> None:
    """From here on the providers named by (op, provider) serve no call unless they are forced to."""
    _EXCLUDED.update(reasons)
    for key in [key for key, choice in CHOSEN.items() if (key[0], choice.provider) in _EXCLUDED]:
        del CHOSEN[key]


def _able(op: Op, arguments: tuple[Any, ...], *, unmeasured: bool = False) -> dict[str, Provider]:
    """The fast providers that take the call. `unmeasured`: without those that serve only where they were timed."""
    return {
        name: provider
        for name, provider in op.providers.items()
        if name != registry.REFERENCE
        and not (unmeasured and provider.measured)
        and (op.name, name) not in _EXCLUDED
        and provider.supports(*arguments) is None
    }


def first_able(op: Op, arguments: tuple[Any, ...], _signature: str = "") -> Choice:
    """The first provider that takes the call, with its first config: what serves where nothing is measured."""
    configs = ((name, provider.configs(*arguments)) for name, provider in _able(op, arguments, unmeasured=True).items())
    # A provider without a config for a call is one that is not worth trying there.
    return next((Choice(name, some[0]) for name, some in configs if some), _REFERENCE)


def _on_gpu(arguments: tuple[Any, ...]) -> bool:
    return any(isinstance(each, torch.Tensor) and each.is_cuda for each in arguments)


def _described(argument: Any) -> str:
    if isinstance(argument, torch.Tensor):
        kind = str(argument.dtype).removeprefix("torch.")
        offset = argument.data_ptr() % 16
        return f"{kind}{list(argument.shape)}{list(argument.stride())}{f'+{offset}' if offset else ''}"
    return repr(argument)
