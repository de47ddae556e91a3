"""A rewrite that holds for one key: it serves every size, and other numbers of keys are seen."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_nets import status

import rewriter
from rewriter.capture.compare import relative_error

WIDTH, HEADS = 16, 2


class Block(torch.nn.Module):
    """Attention to a text as diffusers' transformer blocks have it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(WIDTH)
        self.q, self.k, self.v = (torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.out = torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        count = x.shape[0]
        heads = [
            layer.view(count, -1, HEADS, WIDTH // HEADS).transpose(1, 2)
            for layer in (self.q(self.norm(x)), self.k(text), self.v(text))
        ]
        attended = F.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(count, -1, WIDTH)
        return self.out(attended) + x


def drawn(batch: int, rows: int, keys: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 * batch + 10 * rows + keys)
    return tuple(torch.randn(batch, count, WIDTH, generator=generator) for count in (rows, keys))  # type: ignore[return-value]


@pytest.fixture
def block() -> Block:
    torch.manual_seed(0)
    return Block().eval()


def test_one_key_needs_neither_norm_nor_query(block: Block) -> None:
    given = drawn(2, 5, 1)
    with torch.no_grad():
        expected = block(*given)
        rewriter.optimize(block, measure=False)
        block(*given)
        assert relative_error(block(*given), expected) < 1e-6
    assert "attention-one-key" in status(block).matches


def test_other_sizes_and_batches_need_no_other_trace(block: Block) -> None:
    calls = [drawn(2, 5, 1), drawn(2, 9, 1), drawn(3, 4, 1), drawn(1, 1, 1), drawn(1, 7, 1), drawn(4, 2, 1)]
    with torch.no_grad():
        expected = [block(*given) for given in calls]
        rewriter.optimize(block, measure=False)
        for _ in range(2):
            for given, right in zip(calls, expected, strict=True):
                assert relative_error(block(*given), right) < 1e-6
    assert status(block).captures == 1


@pytest.mark.parametrize("calls_before", [1, 6])
def test_more_keys_than_one_are_seen(block: Block, calls_before: int) -> None:
    """Also where so many sizes have gone well that further ones are believed."""
    few, many = [drawn(2, rows, 1) for rows in range(3, 3 + calls_before)], drawn(2, 5, 4)
    with torch.no_grad():
        right, expected = block(*many), [block(*given) for given in few]
        rewriter.optimize(block, measure=False)
        for given in few:
            block(*given)
        for _ in range(3):
            assert relative_error(block(*many), right) < 1e-6
        for given, before in zip(few, expected, strict=True):
            assert relative_error(block(*given), before) < 1e-6
    assert status(block).status == "optimised"
