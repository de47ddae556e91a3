"""Chooses each op's provider for each call by running all of them."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from rewriter.causes import cause_of
from rewriter.measure.cache import TimingCache
from rewriter.measure.nearest import worth_timing
from rewriter.measure.recordings import TIMING
from rewriter.measure.replay import HOST_SHARE, launched_seconds
from rewriter.measure.timing import FAR_BEHIND, stopwatch
from rewriter.ops import dispatch, registry
from rewriter.ops.dispatch import Choice

logger = logging.getLogger("rewriter")
_Found = TypeVar("_Found")

_SAMPLES = 3
_PART = 2**21
# A single launch of a call that takes longer says enough about it: what the host adds is small beside it.
_LONG_SECONDS = 300e-6
# Of one whose first sample is so many times as slow as the fastest, more of them would change nothing.
_BEHIND = 1.15
# Of one that takes longer than this, what the host adds is noise: no recording is made where it launches in time. Its
# samples differ less, too.
_STEADY_SECONDS, _STEADY_BEHIND = 1e-3, 1.05
# Relative L2 distance from the reference beyond which a provider is wrong on this GPU, whatever its speed.
_LIMITS = {
    torch.float32: 1e-3,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
    torch.float8_e4m3fn: 5e-2,
    torch.int8: 5e-2,
}


class ProviderChooser:
    """Times the providers and configs that take a call, and remembers the fastest in the cache.

    `near`: only what was fastest at the calls most like it, where there are some; a new size of a picture then costs a
    second or two. A provider that raises, or whose result is not the reference's, is left out; `problems` says so.
    """

    def __init__(self, cache: TimingCache, *, near: bool = False) -> None:
        self.cache, self.near = cache, near
        self.problems: dict[str, str] = {}

    def __call__(self, op: registry.Op, arguments: tuple[Any, ...], signature: str) -> Choice:
        choices = dispatch.candidates(op, arguments)
        if len(choices) == 1:
            return choices[0]
        if torch.cuda.is_current_stream_capturing():
            return dispatch.first_able(op, arguments)
        known = self._known(op, signature, choices)
        if known is not None:
            return known
        some = self._near(op, signature, choices) if self.near else choices
        with torch.no_grad():
            best, seconds = self._fastest(op, some, arguments, signature)
        if seconds < float("inf"):
            self.cache.put_choice(_key(op, signature, choices, near=len(some) < len(choices)), best)
        logger.debug("%s %s: %s, %.1f us", op.name, signature, best, 1e6 * seconds)
        return best

    def untimed(self, op: registry.Op, arguments: tuple[Any, ...], signature: str) -> list[Choice]:
        """What a call would have to be timed with."""
        choices = dispatch.candidates(op, arguments)
        return [] if self._known(op, signature, choices) is not None else choices

    def _known(self, op: registry.Op, signature: str, choices: Sequence[Choice]) -> Choice | None:
        for near in (False, True)[: 1 + self.near]:
            known = self.cache.choice(_key(op, signature, choices, near=near))
            if known in choices:
                return known
        return None

    @staticmethod
    def _near(op: registry.Op, signature: str, choices: Sequence[Choice]) -> list[Choice]:
        return worth_timing(
            signature,
            choices,
            ((other, choice) for (name, other), choice in dispatch.CHOSEN.items() if name == op.name),
        )

    def _fastest(
        self, op: registry.Op, choices: Sequence[Choice], arguments: tuple[Any, ...], signature: str
    ) -> tuple[Choice, float]:
        """And its seconds. Only what would be taken is compared with the reference: for a large result that takes
        longer than timing it."""
        found: list[tuple[float, int]] = []
        for index, choice in enumerate(choices):
            # One that has nothing to be timed against is only tried.
            least = min(found, default=(float("inf"), 0))[0]
            seconds = 0.0 if len(choices) == 1 else self._seconds(op, choice, arguments, least, signature)
            if seconds < float("inf"):
                found.append((seconds, index))
        expected = None
        for seconds, index in sorted(found):
            choice = choices[index]
            if choice.provider == registry.REFERENCE:
                return choice, seconds
            if expected is None:
                expected = op.reference(*arguments)
            if self._right(op, choice, arguments, expected, signature):
                return choice, seconds
        return Choice(registry.REFERENCE), float("inf")

    def _seconds(
        self, op: registry.Op, choice: Choice, arguments: tuple[Any, ...], least: float, signature: str
    ) -> float:
        """Of a call; infinite where it fails. Of one that is clearly slower than `least` the first estimate."""
        call = _call(op, choice, arguments)

        def seconds() -> float:
            call()
            estimate, host = launched_seconds(call)
            if estimate > max(_LONG_SECONDS, FAR_BEHIND * least):
                return estimate
            if estimate > _STEADY_SECONDS and host < HOST_SHARE * estimate:
                return _best(lambda: launched_seconds(call)[0], estimate, _STEADY_BEHIND * least)
            watch = stopwatch(call, "cuda", estimate=estimate)
            return _best(watch.seconds, watch.seconds(), _BEHIND * least)

        return self._attempted(seconds, float("inf"), op, choice, signature)

    def _right(
        self, op: registry.Op, choice: Choice, arguments: tuple[Any, ...], expected: Any, signature: str
    ) -> bool:
        def right() -> bool:
            distance = _distance(_call(op, choice, arguments)(), expected)
            if distance < _LIMITS.get(_first(expected).dtype, 0.0):
                return True
            raise ArithmeticError(f"its result is off by {distance:.1e} (relative L2 error)")

        return self._attempted(right, False, op, choice, signature)

    def _attempted(
        self, function: Callable[[], _Found], failed: _Found, op: registry.Op, choice: Choice, signature: str
    ) -> _Found:
        try:
            return function()
        # Of compilers, drivers and kernels: none may end what asked for the choice.
        except Exception as error:
            cause = cause_of(error)
            self.problems.setdefault(f"{op.name} by {choice.provider}", cause)
            config = dict(choice.config)
            logger.warning("%s by %s %s is left out for %s: %s", op.name, choice.provider, config, signature, cause)
            return failed


def _best(seconds: Callable[[], float], first: float, bound: float) -> float:
    """The best of all samples, or the first where it is beyond the bound."""
    return first if first > bound else min(first, *(seconds() for _ in range(1, _SAMPLES)))


def _call(op: registry.Op, choice: Choice, arguments: tuple[Any, ...]) -> Callable[[], Any]:
    return lambda: op.providers[choice.provider].fn(*arguments, **choice.config)


@contextlib.contextmanager
def tuned(device: str, cache: TimingCache | None = None, *, near: bool = False) -> Iterator[None]:
    """Calls inside choose their providers by measurement on a GPU; elsewhere there is nothing to choose. `near`: see
    `ProviderChooser`."""
    if device != "cuda":
        yield
        return
    cache = cache or TimingCache(device)
    try:
        with dispatch.choosing(ProviderChooser(cache, near=near)):
            yield
    finally:
        TIMING.forget()
    cache.save()


def _key(op: registry.Op, signature: str, choices: Iterable[Choice], *, near: bool) -> str:
    """Of what is kept about a call: with a provider more, such as a package installed since, it is measured again."""
    call = ";".join([signature, *sorted({choice.provider for choice in choices})])
    return f"{op.name} {_sources()} {hashlib.sha256(call.encode()).hexdigest()[:24]}{' near' if near else ''}"


def _distance(found: Any, expected: Any) -> float:
    """Relative L2 distance of the outputs together, over what is finite in the reference; NaN where a NaN is new.

    In f32, some of it at a time, since a result can be a large part of the memory; only the sums are wider.
    """
    square = scale = 0.0
    for narrow, expectation in zip(_tensors(found), _tensors(expected), strict=True):
        for part, other in zip(_parts(narrow), _parts(expectation), strict=True):
            known = other.float()
            unknown = ~known.isfinite()
            square += _squares((part.float() - known).masked_fill_(unknown, 0))
            scale += _squares(known.masked_fill(unknown, 0))
    return math.sqrt(square / scale if scale else square)


def _parts(x: torch.Tensor) -> Sequence[torch.Tensor]:
    """x along its longest dimension, in parts of about 2 million elements."""
    if x.numel() <= _PART:
        return (x,)
    longest = max(range(x.dim()), key=lambda dim: x.shape[dim])
    parts: tuple[torch.Tensor, ...] = x.split(max(1, x.shape[longest] * _PART // x.numel()), longest)
    return parts


def _squares(x: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2


def _tensors(value: Any) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else list(value)


def _first(value: Any) -> torch.Tensor:
    return _tensors(value)[0]


@functools.cache
def _sources() -> str:
    """A hash of the code of all ops and kernels: another version is measured again."""
    from rewriter.ops.cuda.build import sources_folder

    digest = hashlib.sha256()
    for folder in (pathlib.Path(registry.__file__).parent, sources_folder()):
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".py", ".cpp", ".cu", ".h"):
                digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
