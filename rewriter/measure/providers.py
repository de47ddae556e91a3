"""Chooses each op's provider for each call by running all of them."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from rewriter import torch_ir
from rewriter.measure.cache import TimingCache
from rewriter.measure.timing import stopwatch
from rewriter.ops import dispatch, providers, registry
from rewriter.ops.dispatch import Choice

logger = logging.getLogger("rewriter")

_SAMPLES = 3
# The provider whose kernels are compiled when they are first launched, and below how many calls that is left so.
_JUST_IN_TIME = "triton"
_FEW = 8
# Relative L2 distance from the reference beyond which a provider is wrong on this GPU, whatever its speed.
_LIMITS = {
    torch.float32: 1e-3,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
    torch.float8_e4m3fn: 5e-2,
    torch.int8: 5e-2,
}


class ProviderChooser:
    """Times every provider and config that takes a call, and remembers the fastest in the cache.

    A provider that raises, or whose result is not the reference's, is left out; `problems` says so.
    """

    def __init__(self, cache: TimingCache) -> None:
        self.cache = cache
        self.problems: dict[str, str] = {}

    def __call__(self, op: registry.Op, arguments: tuple[Any, ...], signature: str) -> Choice:
        choices = dispatch.candidates(op, arguments)
        if len(choices) == 1 or torch.cuda.is_current_stream_capturing():
            return choices[0]
        key = _key(op, signature)
        known = self.cache.choice(key)
        if known in choices:
            return known
        with torch.no_grad():
            expected = op.reference(*arguments)
            seconds = [self._seconds(op, choice, arguments, expected) for choice in choices]
        best = choices[seconds.index(min(seconds))]
        if min(seconds) < float("inf"):
            self.cache.put_choice(key, best)
        logger.debug("%s %s: %s", op.name, signature, dict(zip(map(str, choices), seconds, strict=True)))
        return best

    def _seconds(self, op: registry.Op, choice: Choice, arguments: tuple[Any, ...], expected: Any) -> float:
        def call() -> Any:
            return op.providers[choice.provider].fn(*arguments, **choice.config)

        try:
            if choice.provider != registry.REFERENCE:
                distance = _distance(call(), expected)
                if not distance < _LIMITS.get(_first(expected).dtype, 0.0):
                    raise ArithmeticError(f"its result is off by {distance:.1e} (relative L2 error)")
            watch = stopwatch(call, "cuda")
            return min(watch.seconds() for _ in range(_SAMPLES))
        except (RuntimeError, ValueError, TypeError, ArithmeticError, OSError, NotImplementedError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            self.problems.setdefault(f"{op.name} by {choice.provider}", lines[0])
            logger.warning("%s by %s %s is left out: %s", op.name, choice.provider, dict(choice.config), lines[0])
            return float("inf")


def compile_candidates(
    every: Iterable[Callable[[], Any]], first: Callable[[], Any] | None = None, *, cache: TimingCache
) -> None:
    """Compiles kernels, many at a time, in one go: all that will be timed for the ops in `every` call, and for each op
    in `first` the one that serves unmeasured. All are run once for that, by the references."""
    tasks: list[str] = []

    def collect(call: Callable[[], Any], candidates: Callable[..., list[Choice]]) -> None:
        def chooser(op: registry.Op, arguments: tuple[Any, ...], signature: str) -> Choice:
            if cache.choice(_key(op, signature)) is None:
                tasks.extend(
                    ahead.task(op.name, choice.provider, dict(choice.config), arguments)
                    for choice in candidates(op, arguments)
                    if choice.provider == _JUST_IN_TIME
                )
            return Choice(registry.REFERENCE)

        with (
            # What fails here will fail where it is timed, and be said there.
            contextlib.suppress(RuntimeError, NotImplementedError),
            dispatch.choosing(chooser, remember=False),
            torch.no_grad(),
            torch_ir.plain_executor(),
        ):
            call()

    if "triton" in providers.load():
        return
    from rewriter.ops.triton import ahead

    for call in every:
        collect(call, dispatch.candidates)
    if first is not None:
        collect(first, lambda *call: [dispatch.first_able(*call)])
    if len(set(tasks)) < _FEW:
        return
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    logger.info("compiling kernels for %d calls, once for this GPU", len(set(tasks)))
    target = ahead.Target(10 * properties.major + properties.minor, properties.multi_processor_count)
    ahead.compile_ahead(tasks, target)


@contextlib.contextmanager
def tuned(device: str, cache: TimingCache | None = None) -> Iterator[None]:
    """Calls inside choose their providers by measurement on a GPU; elsewhere there is nothing to choose."""
    if device != "cuda":
        yield
        return
    cache = cache or TimingCache(device)
    with dispatch.choosing(ProviderChooser(cache)):
        yield
    cache.save()


def _key(op: registry.Op, signature: str) -> str:
    return f"{op.name} {_sources()} {hashlib.sha256(signature.encode()).hexdigest()[:24]}"


def _distance(found: Any, expected: Any) -> float:
    """Relative L2 distance of the outputs together, over what is finite in the reference; NaN where a NaN is new.

    In f32, since a result can be a large part of the memory; only the sums are wider.
    """
    square = scale = 0.0
    for narrow, expectation in zip(_tensors(found), _tensors(expected), strict=True):
        other = expectation.float()
        unknown = ~other.isfinite()
        square += _squares((narrow.float() - other).masked_fill_(unknown, 0))
        scale += _squares(other.masked_fill(unknown, 0))
    return math.sqrt(square / scale if scale else square)


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
