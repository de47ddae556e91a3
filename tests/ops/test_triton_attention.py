from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from compilation import compile_ahead

from rewriter.ops import OPS, dispatch
from rewriter.ops.registry import REFERENCE
from rewriter.ops.triton import ahead, attention, device

pytestmark = pytest.mark.skipif(not device.INTERPRETED, reason="needs Triton's interpreter (TRITON_INTERPRET=1)")

Operands = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
TOKENS = OPS["attention_tokens"].providers["triton"]
HEADS = OPS["attention"].providers["triton"]
AT_ONCE = {"rows": 16, "keys": 0}
STREAMED = {"rows": 16, "keys": 16}
WIDER = {"rows": 32, "keys": 32, "padded": True}
CONFIGS = pytest.mark.parametrize("config", [AT_ONCE, STREAMED, WIDER], ids=["at-once", "streamed", "padded"])
NUMPY_WARNS = pytest.mark.filterwarnings("ignore:(invalid value|All-NaN slice|divide by zero):RuntimeWarning")
# Roundings of the weights and of the result; the interpreter drops the low bits of bf16 instead of rounding.
_ERROR = {torch.float16: 5e-4, torch.bfloat16: 8e-3}


def drawn(b: int, s: int, t: int, h: int, d: int, dtype: torch.dtype = torch.float16) -> Operands:
    generator = torch.Generator().manual_seed(s * 1000 + t * 10 + d)
    shapes = ((b, s, h, d), (b, t, h, d), (b, t, h, d))
    q, k, v = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return q, k, v


def exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    scores = torch.einsum("bshd,bthd->bhst", q.double(), k.double()) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return torch.einsum("bhst,bthd->bshd", scores.softmax(-1), v.double())


def run(operands: Operands, scale: float | None = None, **config: Any) -> torch.Tensor:
    arguments = (*operands, None, scale, False)
    assert TOKENS.supports(*arguments) is None
    result = TOKENS.fn(*arguments, **config)
    assert (result.shape, result.dtype) == (operands[0].shape, operands[0].dtype)
    assert result.is_contiguous()
    return result


def error(result: torch.Tensor, wanted: torch.Tensor) -> float:
    """Of the worst row, so that a tail cannot hide among many."""
    return float(((result.double() - wanted).norm(dim=-1) / wanted.norm(dim=-1).mean()).max())


def test_parts_hold_a_size_with_the_least_padding() -> None:
    expected = {40: (32, 16), 80: (64, 16), 160: (128, 32), 77: (64, 16), 24: (32, 0), 63: (64, 0), 64: (64, 0)}
    assert {size: attention.parts(size) for size in expected} == expected
    for size in range(1, 257):
        first, rest = attention.parts(size)
        assert first + rest >= size
        assert first >= 16
        assert rest == 0 or rest >= 16


@CONFIGS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("s", "t", "d"),
    [(1, 1, 1), (16, 32, 40), (17, 33, 40), (5, 77, 24), (33, 64, 80), (20, 31, 63), (7, 47, 160), (18, 128, 8)],
)
def test_odd_sizes(s: int, t: int, d: int, dtype: torch.dtype, config: dict[str, Any]) -> None:
    operands = drawn(2, s, t, 3, d, dtype) if s * t * d < 50_000 else drawn(1, s, t, 2, d, dtype)
    assert error(run(operands, **config), exact(*operands)) < 3 * _ERROR[dtype]


def test_more_keys_than_fit_at_once_are_streamed() -> None:
    operands = drawn(1, 9, 150, 1, 40)
    assert error(run(operands, **AT_ONCE), exact(*operands)) < 1.5e-3


@CONFIGS
@pytest.mark.parametrize("scale", [0.02, 0.3, 3.0])
def test_scale(scale: float, config: dict[str, Any]) -> None:
    operands = drawn(1, 17, 40, 2, 24)
    assert error(run(operands, scale, **config), exact(*operands, scale)) < 2e-3


def slices(operands: Operands) -> Operands:
    """As they lie in the result of one projection for all three, with other things around them."""
    q, k, v = operands
    b, s, h, d = q.shape
    room = torch.full((b, s, 3 * h * d + 8), torch.nan, dtype=q.dtype)
    parts = [room[..., i * h * d : (i + 1) * h * d].unflatten(-1, (h, d)) for i in range(3)]
    for part, each in zip(parts, (q, k, v), strict=True):
        part.copy_(each)
    return parts[0], parts[1], parts[2]


def fenced(operands: Operands) -> Operands:
    """With NaN before and behind each, beyond each head and between the tokens, at odd offsets."""
    found = []
    for more, each in enumerate(operands):
        b, s, h, d = each.shape
        room = torch.full((b, s + 1 + more, h + 1, d + 3 + more), torch.nan, dtype=each.dtype)
        room[:, :s, :h, 1 : d + 1] = each
        found.append(room[:, :s, :h, 1 : d + 1])
    return found[0], found[1], found[2]


def heads_outside(operands: Operands) -> Operands:
    q, k, v = (each.transpose(1, 2).contiguous().transpose(1, 2) for each in operands)
    return q, k, v


@CONFIGS
@pytest.mark.parametrize("layout", [slices, fenced, heads_outside])
@pytest.mark.parametrize("d", [24, 40])
def test_strides(layout: Any, d: int, config: dict[str, Any]) -> None:
    operands = drawn(2, 19, 19, 3, d)
    assert error(run(layout(operands), **config), exact(*operands)) < 1.5e-3


def test_compiles_where_extents_and_strides_are_1(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler takes them for constants, which have no methods; the interpreter does not."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    calls = [
        ahead.task("attention_tokens", "triton", config, (*drawn(1, s, t, 1, 8), None, None, False))
        for s, t in ((1, 1), (17, 35))
        for config in (AT_ONCE, STREAMED)
    ]
    assert compile_ahead(calls, ahead.Target(capability=90, multiprocessors=132), processes=1) == len(calls)


@CONFIGS
def test_broadcast_operands(config: dict[str, Any]) -> None:
    q, k, v = drawn(3, 18, 21, 2, 40)
    operands = (q[:, :1].expand(-1, 18, -1, -1), k[:1].expand(3, -1, -1, -1), v[:, :, :1].expand(-1, -1, 2, -1))
    assert error(run(operands, **config), exact(*operands)) < 1.5e-3


@CONFIGS
@pytest.mark.parametrize("d", [24, 40, 63])
def test_writes_nothing_around_its_result(d: int, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    operands = drawn(2, 19, 21, 3, d)
    size = operands[0].numel()
    room = torch.full((size + 4096,), 7.0, dtype=torch.float16)
    monkeypatch.setattr(torch, "empty", lambda shape, **_: room[2048 : 2048 + size].view(shape))
    result = TOKENS.fn(*operands, None, None, False, **config)
    assert result.data_ptr() == room[2048:].data_ptr()
    assert (room[:2048] == 7).all()
    assert (room[2048 + size :] == 7).all()


@CONFIGS
def test_heads_first(config: dict[str, Any]) -> None:
    operands = drawn(2, 17, 35, 3, 40)
    q, k, v = (each.transpose(1, 2) for each in operands)
    arguments = (q.contiguous(), k, v, None, 0.2, False)
    assert HEADS.supports(*arguments) is None
    result = HEADS.fn(*arguments, **config)
    assert result.shape == q.shape
    assert result.stride() == OPS["attention"].reference(*arguments).stride()
    assert error(result, exact(*operands, 0.2).transpose(1, 2)) < 1.5e-3


@CONFIGS
@NUMPY_WARNS
def test_a_row_keeps_its_nan_and_infinity(config: dict[str, Any]) -> None:
    q, k, v = drawn(1, 20, 37, 2, 40)
    q[0, 3, 1, 5] = torch.nan
    q[0, 17, 0, 39] = torch.inf
    wrong = run((q, k, v), **config).isnan().any(-1).nonzero().tolist()
    assert wrong == [[0, 3, 1], [0, 17, 0]]


@CONFIGS
@NUMPY_WARNS
def test_keys_that_count_for_nothing(config: dict[str, Any]) -> None:
    """Their scores are -inf for all queries, in a whole block and before any other."""
    q, k, v = drawn(1, 18, 40, 2, 40)
    q = q.abs()
    k[:, :34, :, 7] = -torch.inf
    result = run((q, k, v), **config)
    assert error(result, exact(q, k[:, 34:], v[:, 34:])) < 1.5e-3
    k[:, :, :, 7] = -torch.inf
    assert run((q, k, v), **config).isnan().all()


@CONFIGS
@pytest.mark.parametrize("magnitude", [1e-6, 6e3, 6e4])
def test_magnitudes(magnitude: float, config: dict[str, Any]) -> None:
    """Scores up to 1e11, of which the f32 sums keep the order, and subnormal operands."""
    q, k, v = drawn(1, 18, 40, 2, 40)
    q, k = (each.clamp(-1, 1).mul(magnitude) for each in (q, k))
    assert error(run((q, k, v), **config), exact(q, k, v)) < 1.5e-3


@CONFIGS
@pytest.mark.parametrize("value", [0.0, 3.0, 2e4])
def test_equal_scores_give_the_mean(value: float, config: dict[str, Any]) -> None:
    q, k, v = drawn(1, 17, 33, 2, 40)
    q, k = torch.full_like(q, value), torch.full_like(k, value)
    mean = v.double().mean(1, keepdim=True).expand_as(q)
    assert (run((q, k, v), **config).double() - mean).abs().max() < 1e-3


def refused(*arguments: Any) -> str:
    reason = TOKENS.supports(*arguments)
    assert reason is not None
    return reason


def test_refusals() -> None:
    q, k, v = drawn(2, 5, 7, 3, 16)
    assert TOKENS.supports(q, k, v, None, 0.5, False) is None
    assert refused(q, k, v, torch.zeros(5, 7).half(), None, False) == "a mask"
    assert refused(q, k, v, None, None, True) == "a mask"
    assert "f16 and bf16" in refused(q.float(), k.float(), v.float(), None, None, False)
    assert "f16 and bf16" in refused(q, k, v.bfloat16(), None, None, False)
    assert "no kernel for float64" in refused(q.double(), k, v, None, None, False)
    assert "one shape" in refused(q, k, v[..., :8], None, None, False)
    assert "one shape" in refused(q, k[:, :, :1], v[:, :, :1], None, None, False)
    assert "one shape" in refused(q, k[0], v[0], None, None, False)
    assert "nothing to attend to" in refused(q, k[:, :0], v[:, :0], None, None, False)
    assert "256" in refused(*drawn(1, 2, 2, 1, 257), None, None, False)
    aside = k.transpose(1, 3).contiguous().transpose(1, 3)
    assert "side by side" in refused(q, aside, v, None, None, False)
    far = torch.empty(7 * 2**24, dtype=q.dtype).as_strided((2, 7, 3, 16), (0, 2**24, 0, 1))
    assert "apart" in refused(q, far, v, None, None, False)
    for scale in (0.0, -0.5, float("inf"), float("nan"), 1e-40):
        assert "scale" in refused(q, k, v, None, scale, False)
    assert HEADS.supports(q[0], k[0], v[0], None, None, False) == "other than [B, H, S, D]"


@pytest.mark.parametrize(
    ("s", "t", "h", "d"),
    [(4096, 77, 8, 40), (1024, 77, 20, 64), (256, 256, 8, 160), (64, 64, 8, 160), (25, 25, 5, 64)],
)
def test_a_measured_choice_is_between_configs_and_the_reference(s: int, t: int, h: int, d: int) -> None:
    q, k = (torch.empty(2, 1, h, d, dtype=torch.float16).expand(2, tokens, h, d) for tokens in (s, t))
    for op, operands in (
        ("attention_tokens", (q, k, k)),
        ("attention", (q.transpose(1, 2), k.transpose(1, 2), k.transpose(1, 2))),
    ):
        found = dispatch.candidates(OPS[op], (*operands, None, None, False))
        assert [choice.provider for choice in found] == ["triton"] * (len(found) - 1) + [REFERENCE]
        assert 2 <= len(found) <= 7
        assert len({str(choice.config) for choice in found}) == len(found)


def test_many_keys_are_left_to_the_reference() -> None:
    q = torch.empty(1, 1, 8, 40, dtype=torch.bfloat16).expand(1, 4096, 8, 40)
    assert dispatch.candidates(OPS["attention_tokens"], (q, q, q, None, None, False)) == [dispatch.Choice(REFERENCE)]


def test_configs_fit_into_the_smallest_shared_memory() -> None:
    for d in (8, 40, 64, 80, 160, 256):
        for t in (16, 77, 128, 256):
            q, k = (torch.empty(1, 1, 2, d, dtype=torch.float16).expand(1, tokens, 2, d) for tokens in (4096, t))
            for choice in dispatch.candidates(OPS["attention_tokens"], (q, k, k, None, None, False))[:-1]:
                assert attention._shared(choice.config, t, d) <= 99 * 1024
    # A block of 128 queries, and both parts of 77 keys and values.
    assert attention._shared(attention._sizes(128, 0, 4), 77, 40) == 2 * 48 * (128 + 2 * 80)
    # Two blocks of 128 keys and values in flight.
    assert attention._shared(attention._sizes(64, 128, 4), 4096, 40) == 2 * 48 * (64 + 2 * 256)
    assert dispatch.candidates(OPS["attention_tokens"], (q, k, k, None, None, False))[0].provider == REFERENCE
