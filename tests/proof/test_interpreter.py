"""Interpreted kernels compute as compiled ones do where proofs run them."""

from __future__ import annotations

import numpy
import pytest
import torch
import triton
import triton.language as tl

from rewriter.ops.triton import device
from rewriter.proof import interpreter

pytestmark = pytest.mark.skipif(not device.INTERPRETED, reason="needs Triton's interpreter (TRITON_INTERPRET=1)")


@triton.jit
def _copy(x, y, count: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, count)
    tl.store(y + at, tl.load(x + at).to(y.dtype.element_ty))


@triton.jit
def _total(x, y, rows: tl.constexpr, columns: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, rows)[:, None] * columns + tl.arange(0, columns)[None, :]
    tl.store(y + tl.arange(0, columns), tl.sum(tl.load(x + at), axis=0))


def copied(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    y = torch.empty(x.shape, dtype=dtype)
    _copy[(1,)](x, y, count=x.numel())
    return y


def numbers(count: int) -> torch.Tensor:
    """f32 of any bits, with the ends of what bf16 has."""
    bits = torch.randint(-(2**31), 2**31, (count,), generator=torch.Generator().manual_seed(0)).int()
    x = bits.view(torch.float32).clone()
    x[:8] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 3.3961e38, 1e-40, 1 + 2.0**-8])
    # A NaN whose digits bf16 does not have.
    x[8:9] = torch.tensor([0x7F800001], dtype=torch.int32).view(torch.float32)
    return x


def test_bf16_is_rounded_and_read_as_torch_does() -> None:
    x = numbers(4096)
    with interpreter.corrected():
        narrow = copied(x, torch.bfloat16)
        wide = copied(x.bfloat16(), torch.float32)
    torch.testing.assert_close(narrow, x.bfloat16(), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(wide, x.bfloat16().float(), rtol=0, atol=0, equal_nan=True)


def test_the_interpreter_itself_still_needs_it_and_is_left_as_it_was() -> None:
    x = numbers(4096)
    before = copied(x, torch.bfloat16)
    with interpreter.corrected():
        pass
    assert torch.equal(before.view(torch.int16), copied(x, torch.bfloat16).view(torch.int16))
    assert not torch.equal(before.nan_to_num(), x.bfloat16().nan_to_num())


def test_sums_are_off_by_few_roundings() -> None:
    x = torch.full((1024, 2), 1.1)
    y = torch.empty(2)
    with interpreter.corrected():
        _total[(1,)](x, y, rows=1024, columns=2)
    exact = x.double().sum(0)
    assert float(((y - exact) / exact).abs().max()) <= 10 * 2.0**-24


@pytest.mark.parametrize("shape", [(1, 3), (5, 3), (8,), (7, 2, 3), (0, 3)])
def test_a_sum_has_every_number_once(shape: tuple[int, ...]) -> None:
    x = numpy.arange(numpy.prod(shape), dtype=numpy.float32).reshape(shape)
    for axis in range(len(shape)):
        numpy.testing.assert_array_equal(interpreter.tree_sum(x, axis), x.sum(axis))


@triton.jit
def _twice(x):  # type: ignore[no-untyped-def]
    return x + x


@triton.jit
def _fourfold(x, y, count: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, count)
    tl.store(y + at, _twice(_twice(tl.load(x + at))))


def test_the_language_is_exchanged_once_for_a_kernel_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter looks through all of it for each function that a kernel calls."""
    from triton.runtime import interpreter as found

    looked: list[object] = []
    patch = found._patch_lang
    monkeypatch.setattr(found, "_patch_lang", lambda function: (looked.append(function), patch(function))[1])
    x, y = torch.arange(8.0), torch.zeros(8)
    with interpreter.patched_once():
        for _ in range(2):
            _fourfold[(4,)](x, y, count=8)
    assert torch.equal(y, 4 * x)
    # Once for each launch.
    assert len(looked) == 2
    assert tl.core.is_builtin(tl.arange)
    assert tl.core.is_builtin(tl.tensor.__add__)
