"""Triton's interpreter, corrected where it computes otherwise than a GPU."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Iterator
from typing import Any

import numpy


@contextlib.contextmanager
def corrected() -> Iterator[None]:
    """Inside, interpreted kernels round to bf16, read all of its numbers, and add up as a GPU does.

    The interpreter cuts bits off, reads the subnormal numbers of bf16 as others, and adds one number after the other,
    which is off by as many roundings as there are numbers where a GPU's tree is off by their logarithm.
    """
    found = sys.modules.get("triton.runtime.interpreter")
    if found is None:
        yield
        return
    builder, reduce = found.InterpreterBuilder, found.ReduceOps
    cast, add = builder.cast_impl, reduce.sum

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        names = (str(source.dtype.scalar), str(target.scalar))
        if names == ("fp32", "bf16"):
            return found.TensorHandle(to_bf16(source.data), target.scalar)
        if names == ("bf16", "fp32"):
            return found.TensorHandle(from_bf16(source.data), target.scalar)
        return cast(self, source, target)

    def total(self: Any, given: Any) -> Any:
        data = given.handle.data
        if self.axis is None or data.dtype.kind != "f":
            return add(self, given)
        result = tree_sum(data, self.axis)
        return self.to_tensor(numpy.expand_dims(result, self.axis) if self.keep_dims else result, given.dtype)

    builder.cast_impl, reduce.sum = cast_impl, total
    try:
        with patched_once():
            yield
    finally:
        builder.cast_impl, reduce.sum = cast, add


@contextlib.contextmanager
def patched_once() -> Iterator[None]:
    """Inside, the interpreter exchanges the functions of the language for a kernel alone.

    By itself it does so again for each function that the kernel calls, which takes a third of the time and changes
    nothing.
    """
    found: Any = sys.modules.get("triton.runtime.interpreter")
    if found is None:
        yield
        return
    patch = found._patch_lang
    done: set[int] = set()

    def patched(function: Any) -> Any:
        modules = _languages(function)
        if modules <= done:
            return None
        scope = patch(function)
        if hasattr(scope, "restore"):
            done.update(modules)
            restore = scope.restore

            def restored() -> None:
                done.clear()
                restore()

            scope.restore = restored
        return scope

    found._patch_lang = patched
    try:
        yield
    finally:
        found._patch_lang = patch


@functools.cache
def _languages(function: Any) -> frozenset[int]:
    """The modules of Triton's language that a function sees."""
    modules = (each for each in function.__globals__.values() if inspect.ismodule(each))
    return frozenset(id(each) for each in modules if each.__name__.startswith("triton.language"))


def to_bf16(x: numpy.ndarray[Any, Any]) -> numpy.ndarray[Any, Any]:
    """f32, any shape, to the nearest bf16, ties to even, as the bits of a uint16; every NaN to the same one."""
    bits = x.view(numpy.uint32)
    # A sum that wraps around is that of a NaN.
    with numpy.errstate(over="ignore"):
        rounded = (bits + numpy.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    return numpy.where(numpy.isnan(x), 0x7FC0, rounded).astype(numpy.uint16)


def from_bf16(bits: numpy.ndarray[Any, Any]) -> numpy.ndarray[Any, Any]:
    """The numbers as f32, exactly."""
    return (bits.astype(numpy.uint32) << 16).view(numpy.float32)


def tree_sum(x: numpy.ndarray[Any, Any], axis: int) -> numpy.ndarray[Any, Any]:
    """The sum along `axis`, first half plus second half until one is left. An odd one is added to the first."""
    x = numpy.moveaxis(x, axis, 0)
    if not len(x):
        return numpy.zeros(x.shape[1:], x.dtype)
    while len(x) > 1:
        half = len(x) // 2
        rest = x[2 * half :]
        x = x[:half] + x[half : 2 * half]
        if len(rest):
            x[:1] += rest
    result: numpy.ndarray[Any, Any] = x[0]
    return result
