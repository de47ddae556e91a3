"""The attention kernel for Hopper, run by an emulated chip."""

from __future__ import annotations

import math

import pytest
import torch
from emulation import PACES, Chip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rewriter.ops.cuda import attention


def exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    scores = torch.einsum("bshd,bthd->bhst", q.double(), k.double()) * scale
    return torch.einsum("bhst,bthd->bshd", scores.softmax(-1), v.double())


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data(), st.sampled_from([torch.float16, torch.bfloat16]), st.sampled_from(PACES), st.integers(0, 2**31 - 1))
def test_attention(chip: Chip, data: st.DataObject, dtype: torch.dtype, pace: str, seed: int) -> None:
    torch.manual_seed(seed)
    batch, heads, size = (
        data.draw(st.integers(1, 2)),
        data.draw(st.integers(1, 3)),
        data.draw(st.sampled_from([40, 64])),
    )
    queries = data.draw(st.integers(1, 500))
    keys = data.draw(st.one_of(st.integers(1, 600), st.integers(1, 4).map(lambda blocks: 128 * blocks)))
    # Side by side, as one projection gives them, and each by itself.
    together = torch.randn(batch, max(queries, keys), 3, heads, size).to(dtype)
    q, k, v = together[:, :queries, 0], together[:, :keys, 1], together[:, :keys, 2]
    if data.draw(st.booleans()):
        q, k, v = (each.contiguous() for each in (q, k, v))
    scale = data.draw(st.sampled_from([None, 0.02, 1.5]))
    chip.set(seed=seed, pace=pace, clusters=data.draw(st.integers(1, 3)))
    config = data.draw(st.sampled_from(attention.configs()))
    found = attention.attention_tokens(q, k, v, None, scale, False, **config)
    right = exact(q, k, v, size**-0.5 if scale is None else scale)
    assert found.is_contiguous()
    error = float((found.double() - right).norm() / right.norm())
    assert error < (2e-3 if dtype == torch.float16 else 1e-2), error


@pytest.mark.parametrize("groups", [2, 3])
def test_large_scores(chip: Chip, groups: int) -> None:
    """Weights that are all in one key, which may come first or last; exponentials of differences of hundreds."""
    torch.manual_seed(2)
    q, k, v = (torch.randn(1, 300, 2, 64).half() for _ in range(3))
    q *= 30
    chip.set(seed=1, pace="random")
    found = attention.attention_tokens(q, k, v, None, 4.0, False, groups=groups)
    torch.testing.assert_close(found.double(), exact(q, k, v, 4.0), rtol=2e-3, atol=2e-3)


def test_heads_before_tokens(chip: Chip) -> None:
    torch.manual_seed(3)
    q, k, v = (torch.randn(2, 3, 140, 40).half() for _ in range(3))
    chip.set(pace="apart")
    found = attention.attention(q, k, v, None, None, False, groups=2)
    assert found.shape == q.shape
    right = exact(*(each.transpose(1, 2) for each in (q, k, v)), 40**-0.5).transpose(1, 2)
    torch.testing.assert_close(found.double(), right, rtol=2e-3, atol=2e-3)


def test_what_is_not_a_number_stays_in_its_row(chip: Chip) -> None:
    torch.manual_seed(4)
    q, k, v = (torch.randn(1, 200, 1, 64).half() for _ in range(3))
    q[0, 7, 0, 3] = math.nan
    chip.set(pace="late")
    found = attention.attention_tokens(q, k, v, None, None, False, groups=2)
    assert found[0, 7].isnan().all()
    assert found.isnan().sum() == 64


def test_nothing_is_written_beside_the_result(chip: Chip) -> None:
    q, k, v = (torch.randn(1, 70, 2, 40).half() for _ in range(3))
    margin = 192 * 2 * 40
    memory = torch.full((q.numel() + 2 * margin,), math.nan, dtype=torch.float16)
    y = memory[margin:-margin].view(q.shape)
    chip.ops.attention(q, k, v, y, 0.2, 3)
    assert memory[:margin].isnan().all()
    assert memory[-margin:].isnan().all()
    assert not y.isnan().any()
