"""Compiles, before a graph is timed, the kernels that would otherwise be compiled one by one when they are launched."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from rewriter import torch_ir
from rewriter.measure.cache import TimingCache
from rewriter.measure.providers import ProviderChooser
from rewriter.ops import dispatch, providers, registry
from rewriter.ops.dispatch import Choice

_log = logging.getLogger("rewriter")

# The provider whose kernels are compiled when they are first launched.
_JUST_IN_TIME = "triton"
# Below how many calls that is left so: processes take seconds to start, and none where they have compiled before.
_FEW, _FEW_BY_WARM = 8, 2
_ZEROS = "zeros"


@contextlib.contextmanager
def compiled(
    every: Iterable[Callable[[], Any]], first: Iterable[Callable[[], Any]] = (), *, cache: TimingCache
) -> Iterator[Callable[[], object]]:
    """Compiles kernels, many at a time: all that will be timed for the ops in `every` call, and before these, for each
    op in these calls and those of `first`, the one that serves unmeasured. All are run once for that, with ops that
    give zeros.

    The block runs meanwhile, and what it is given waits for what serves unmeasured; at its end all are compiled.
    """
    if "triton" in providers.load():
        yield lambda: None
        return
    from rewriter.ops.triton import ahead

    target = _this_gpu()
    fewest = _FEW_BY_WARM if ahead.warm(target) else _FEW
    kernels = ahead.Compilation(target, fewest=fewest)
    collecting = _Collecting(ProviderChooser(cache).untimed, kernels.add)
    try:
        with _zeros_provided(), torch.no_grad(), torch_ir.plain_executor():
            for calls, collector in ((first, collecting.first), (every, collecting.every)):
                for call in calls:
                    # What fails here will fail where it is timed, and be said there.
                    with contextlib.suppress(RuntimeError), dispatch.choosing(collector, remember=False):
                        call()
        if len(kernels.tasks) >= fewest:
            _log.info("compiling kernels for %d calls, once for this GPU", len(kernels.tasks))
        yield kernels.wait_for_urgent
    finally:
        kernels.wait()


class _Add(Protocol):
    def __call__(self, task: str, *, urgent: bool) -> None: ...


class _Collecting:
    """Has zeros serve every call, and adds what would have to be compiled for it."""

    def __init__(self, untimed: Callable[[registry.Op, tuple[Any, ...], str], list[Choice]], add: _Add) -> None:
        self._untimed, self._add = untimed, add
        self._seen: set[tuple[Any, ...]] = set()

    def first(self, op: registry.Op, arguments: tuple[Any, ...], signature: str) -> Choice:
        """Adds what serves the call unmeasured."""
        return self._collect(op, arguments, signature, every=False)

    def every(self, op: registry.Op, arguments: tuple[Any, ...], signature: str) -> Choice:
        """Adds all that the call will be timed with."""
        return self._collect(op, arguments, signature, every=True)

    def _collect(self, op: registry.Op, arguments: tuple[Any, ...], signature: str, *, every: bool) -> Choice:
        from rewriter.ops.triton import ahead

        key = (op.name, signature, every)
        choices = [] if key in self._seen else self._untimed(op, arguments, signature)
        self._seen.add(key)
        if choices:
            first = dispatch.first_able(op, arguments)
            for choice in (first, *choices) if every else (first,):
                if choice.provider == _JUST_IN_TIME:
                    task = ahead.task(op.name, choice.provider, dict(choice.config), arguments)
                    self._add(task, urgent=choice == first)
        return Choice(_ZEROS)


def begin() -> None:
    """Begins in the background what `compiled` takes seconds for before it compiles."""
    # Where Triton cannot be imported, `providers.load` says so.
    with contextlib.suppress(ImportError):
        from rewriter.ops.triton import ahead

        ahead.start(_this_gpu())


def _this_gpu() -> Any:
    from rewriter.ops.triton import ahead

    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return ahead.Target(10 * properties.major + properties.minor, properties.multi_processor_count)


@contextlib.contextmanager
def _zeros_provided() -> Iterator[None]:
    """Every op has a provider of zeros, which takes no call that is not given to it."""
    known: dict[str, Any] = {}
    for op in registry.OPS.values():
        zeros = functools.partial(_zeros, op, known)
        op.providers[_ZEROS] = registry.Provider(fn=zeros, supports=lambda *_: "only shapes")
    try:
        yield
    finally:
        for op in registry.OPS.values():
            del op.providers[_ZEROS]


def _zeros(op: registry.Op, known: dict[str, Any], *arguments: Any) -> Any:
    """Of the shapes, dtypes and strides of the op's results, without their computation and what memory that takes.

    An op that looks at more than shapes is computed. known: the results' forms, by call.
    """
    call = f"{op.name} {dispatch.signature(arguments)}"
    if call not in known:
        with FakeTensorMode() as mode:
            try:
                known[call] = op.fake(*tree_map_only(torch.Tensor, mode.from_tensor, arguments))
            except RuntimeError:
                known[call] = None
    if known[call] is None:
        return op.reference(*arguments)
    device = next(each.device for each in arguments if isinstance(each, torch.Tensor))

    def zero(fake: torch.Tensor) -> torch.Tensor:
        return torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype, device=device).zero_()

    return tree_map_only(torch.Tensor, zero, known[call])
