"""What the references of a pattern's ops, and torch's convolutions and GELUs, round inside of themselves: the oracle's
noise must know of it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from rewriter.ops.registry import OPS, REFERENCE
from rewriter.proof.tolerance import ROUNDOFF

# Functions that change a dtype, and others whose results hold the numbers that they are given.
_CASTS = frozenset(("to", "type_as", "float", "half", "bfloat16", "double"))
_MOVES = frozenset(
    (
        *("contiguous", "clone", "view", "reshape", "flatten", "unflatten", "expand", "expand_as", "transpose"),
        *("permute", "movedim", "squeeze", "unsqueeze", "narrow", "select", "__getitem__", "cat", "stack", "neg"),
        *("empty", "empty_like", "empty_strided", "zeros", "zeros_like"),
    )
)
# A function's name, and the dtype to which its result was rounded.
Rounded = tuple[str, torch.dtype]


def recorded(ops: Iterable[str], run: Callable[[], Any]) -> list[list[Rounded]]:
    """What each call of the references of `ops` rounds inside, in the order of the calls, while `run` runs.

    A result that is cast to a narrower dtype at once is taken as rounded to that. The last one is left out: it is the
    op's own result.
    """
    calls: list[list[Rounded]] = []

    def watched(reference: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        mode = _Recording()
        with mode:
            result = reference(*arguments)
        calls.append(mode.rounded[:-1])
        return result

    with _references(ops, watched):
        run()
    return calls


@contextlib.contextmanager
def noisy(
    ops: Iterable[str], calls: Sequence[Sequence[Rounded]], noise: Callable[[torch.Tensor, torch.dtype], torch.Tensor]
) -> Iterator[None]:
    """The same calls, on operands of a wider dtype, give `noise(result, dtype)` wherever they were `recorded` to round.

    A reference that computes otherwise in the wider dtype is left alone from there on.
    """
    left = iter(calls)

    def disturbed(reference: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        with _Repeating(next(left, ()), noise):
            return reference(*arguments)

    with _references(ops, disturbed):
        yield


class _Noisy(TorchDispatchMode):
    """Gives torch's own ops inside `noise`."""

    def __init__(self, noise: Callable[..., torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.noise = noise


class BiasApart(_Noisy):
    """Gives each convolution's product `noise(product)` before it adds the bias, as torch rounds it for cuDNN."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.ops.aten.convolution.default or args[2] is None:
            return func(*args, **(kwargs or {}))
        x, weight, bias, *rest = args
        product = self.noise(func(x, weight, None, *rest, **(kwargs or {})))
        return product + bias.view(-1, *(1,) * (weight.dim() - 2))


class TanhApart(_Noisy):
    """Gives each GELU of the formula with tanh `noise(result, share)`: the share of itself that it may be off by.

    All devices compute 1 + tanh(u) in f32. Far below zero nothing is left of it but what tanh is off by, two roundings:
    the result may be anything from 0 to twice as large there.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is not torch.ops.aten.gelu.default or (kwargs or {}).get("approximate") != "tanh":
            return result
        left = (2.0 * result / args[0]).abs()
        return self.noise(result, (2.0 * ROUNDOFF[torch.float32] / left).nan_to_num(0.0, 1.0).clamp_(max=1.0))


@contextlib.contextmanager
def _references(ops: Iterable[str], run: Callable[[Callable[..., Any], Sequence[Any]], Any]) -> Iterator[None]:
    """Lets `run` run the references."""
    with contextlib.ExitStack() as stack:
        for op in ops:
            providers = OPS[op].providers
            own = providers[REFERENCE]
            stack.callback(providers.__setitem__, REFERENCE, own)

            def fn(*arguments: Any, reference: Callable[..., Any] = own.fn) -> Any:
                return run(reference, arguments)

            providers[REFERENCE] = dataclasses.replace(own, fn=fn)
        yield


class _Recording(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.rounded: list[Rounded] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype in ROUNDOFF:
            name = func.__name__
            if name in _CASTS:
                if self.rounded and ROUNDOFF[result.dtype] > ROUNDOFF.get(args[0].dtype, 1.0):
                    self.rounded[-1] = (self.rounded[-1][0], result.dtype)
            elif name not in _MOVES:
                self.rounded.append((name, result.dtype))
        return result


class _Repeating(TorchFunctionMode):
    def __init__(self, rounded: Sequence[Rounded], noise: Callable[[torch.Tensor, torch.dtype], torch.Tensor]) -> None:
        super().__init__()
        self.rounded = list(rounded)
        self.noise = noise

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.__name__
        if not isinstance(result, torch.Tensor) or result.dtype not in ROUNDOFF or name in _CASTS or name in _MOVES:
            return result
        if not self.rounded or self.rounded[0][0] != name:
            self.rounded.clear()
            return result
        return self.noise(result, self.rounded.pop(0)[1])
