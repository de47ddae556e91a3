"""What the linear layers of cuBLASLt do beside calling it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from rewriter.ops.cuda.linear import _copy_rows

SOURCES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "dense": lambda x: x,
    "heads": lambda x: x.unflatten(2, (4, 6)).flatten(2),
    "rows with gaps": lambda x: torch.cat([x, x], dim=2)[..., :24],
    "rows at odd places": lambda x: torch.cat([x[..., :1], x], dim=2)[..., 1:],
    "columns": lambda x: x.mT.contiguous().mT,
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("source", SOURCES)
def test_rows_are_copied_bit_by_bit_whatever_their_strides(source: str, dtype: torch.dtype) -> None:
    """In words of complex numbers, which are not looked at: half a NaN or an infinity must stay what it is."""
    x = torch.randn(2, 5, 24).to(dtype)
    x[0, 0, :3] = torch.tensor([torch.nan, -torch.inf, -0.0])
    result = torch.zeros(2, 5, 64, dtype=dtype)
    _copy_rows(result[..., :24], SOURCES[source](x))
    assert torch.equal(result[..., :24].view(torch.int16), x.view(torch.int16))
    assert not result[..., 24:].any()


def test_rows_of_an_odd_length() -> None:
    x = torch.randn(3, 5, dtype=torch.float32).bfloat16()
    result = torch.zeros(3, 9, dtype=torch.bfloat16)
    _copy_rows(result[:, :5], x)
    assert torch.equal(result[:, :5], x)
