"""Attention by the kernel for Hopper: what it takes, and there the results."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_calls import drawn, exact, heads_outside, sliced

from rewriter.ops import OPS
from rewriter.ops import providers as packages
from rewriter.ops.cuda import attention

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)


@pytest.fixture
def as_on_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has questions about a call answered as there, where only the shapes decide."""
    monkeypatch.setattr(attention, "refusal", lambda *_: None)


def test_operands_on_the_cpu_are_refused() -> None:
    reason = attention.takes_tokens(*drawn(1, 200, 200, 2, 64), None, None, False)
    assert reason == "the operands are not all on one CUDA device"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"mask": torch.zeros(200, 200)}, "a mask"),
        ({"causal": True}, "a mask"),
        ({"v": torch.zeros(1, 200, 2, 64, dtype=torch.bfloat16)}, "values of another kind"),
        ({"v": torch.zeros(1, 200, 2, 40, dtype=torch.float16)}, "heads or sizes that differ"),
        ({"k": torch.zeros(1, 300, 2, 64, dtype=torch.float16)}, "heads or sizes that differ"),
        ({"q": torch.zeros(2, 200, 2, 64, dtype=torch.float16)}, "only heads of 40 or 64"),
        (dict(zip("qkv", drawn(1, 200, 200, 2, 80), strict=True)), "only heads of 40 or 64"),
        (dict(zip("qkv", drawn(1, 200, 77, 2, 64), strict=True)), "few keys"),
        ({"q": torch.zeros(1, 200, 2, 128, dtype=torch.float16)[..., ::2]}, "rows with gaps"),
        ({"q": torch.zeros(1, 200, 2, 65, dtype=torch.float16)[..., :64]}, "rows with gaps"),
        ({"q": torch.zeros(1, 1, 2, 64, dtype=torch.float16).expand(1, 200, 2, 64)}, "rows with gaps"),
        ({"scale": 0.0}, "a scale that f32 does not hold"),
        ({"scale": -1.0}, "a scale that f32 does not hold"),
    ],
)
@pytest.mark.usefixtures("as_on_hopper")
def test_what_it_does_not_take(change: dict[str, Any], reason: str) -> None:
    call: dict[str, Any] = dict(zip("qkv", drawn(1, 200, 200, 2, 64), strict=True))
    call |= {"mask": None, "scale": None, "causal": False}
    assert attention.takes_tokens(*call.values()) is None
    found = attention.takes_tokens(*(call | change).values())
    assert found is not None
    assert reason in found


@pytest.mark.usefixtures("as_on_hopper")
def test_other_than_four_dimensions_are_refused() -> None:
    q, k, v = (torch.zeros(2, 200, 64, dtype=torch.float16) for _ in range(3))
    assert attention.takes(q, k, v, None, None, False) == "only four dimensions"


@pytest.mark.skipif(not HOPPER, reason="needs a GPU of compute capability 9.0")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [40, 64])
@pytest.mark.parametrize(("queries", "keys"), [(64, 129), (333, 1000), (1000, 333), (130, 1025), (1024, 1024)])
def test_attention_equals_torch(dtype: torch.dtype, size: int, queries: int, keys: int) -> None:
    assert "cuda" not in packages.load()
    operands = drawn(2, queries, keys, 3, size, dtype=dtype, device="cuda")
    variants = [operands, heads_outside(operands)] + ([sliced(operands)] if queries == keys else [])
    for each in variants:
        assert attention.takes_tokens(*each, None, None, False) is None
        for config in attention.configs():
            found = OPS["attention_tokens"].providers["cuda"].fn(*each, None, None, False, **config)
            bound = 4e-3 if dtype == torch.float16 else 3e-2
            torch.testing.assert_close(found.double(), exact(each), rtol=bound, atol=bound)
