"""Weights in eight bits: made some rows at a time, as if at once."""

from __future__ import annotations

import pytest
import torch

from rewriter.graph import prepare
from rewriter.graph.prepare import Prepared
from rewriter.ops.low_precision import quantise_rows


@pytest.mark.parametrize("kind", ["f8e4m3", "i8"])
@pytest.mark.parametrize("shape", [(7, 5), (1, 5), (0, 5), (8, 40)])
def test_rows_at_a_time_are_rows_at_once(kind: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "_QUANTISED_AT_ONCE", 12)
    weight = torch.randn(shape, dtype=torch.float16)
    wanted = quantise_rows(weight, kind)
    found = [
        prepare.run(Prepared(function=f"{part}_{kind}", sources=(0,), options=()), [weight])
        for part in ("rows", "scales")
    ]
    for one, other in zip(found, wanted, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert torch.equal(one.float(), other.float())


def test_few_rows_are_wide_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def counted(rows: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(rows.numel())
        return quantise_rows(rows, kind)

    monkeypatch.setattr(prepare, "quantise_rows", counted)
    monkeypatch.setattr(prepare, "_QUANTISED_AT_ONCE", 12)
    prepare.rows_i8(torch.randn(7, 5))
    assert seen == [10, 10, 10, 5]
