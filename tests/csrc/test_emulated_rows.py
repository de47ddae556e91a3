"""The kernel that makes rows of eight bits, run by an emulated chip."""

from __future__ import annotations

import math

import pytest
import torch
from emulation import Chip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rewriter.ops import OPS, low_precision
from rewriter.ops.cuda import norms, rows

pytestmark = pytest.mark.usefixtures("chip")
KINDS = sorted(low_precision.FORMATS)
DTYPES = [torch.float16, torch.bfloat16]


def assert_same_rows(
    found: tuple[torch.Tensor, torch.Tensor], exact: tuple[torch.Tensor, torch.Tensor], *, bits: bool
) -> None:
    """`bits`: the same. Otherwise an activation may be rounded to a neighbour, which is seen in the row's scale too, a
    power of two in f8e4m3, and the gelu of a number far below zero is off by up to 5e-14."""
    assert [each.dtype for each in found] == [each.dtype for each in exact]
    assert [each.shape for each in found] == [each.shape for each in exact]
    rtol = 0.0 if bits else 1e-2 if found[0].dtype == torch.int8 else 1.01
    torch.testing.assert_close(found[1], exact[1], rtol=rtol, atol=0 if bits else 1e-15, equal_nan=True)
    if bits:
        torch.testing.assert_close(found[0].float(), exact[0].float(), rtol=0, atol=0)
    one, other = (codes.double() * scales.nan_to_num().double() for codes, scales in (found, exact))
    if other.norm() > 1e-10:
        assert float((one - other).norm() / other.norm()) < 1e-2


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data(), st.sampled_from(DTYPES), st.sampled_from(KINDS), st.sampled_from(rows.ACTIVATIONS), st.integers(0, 9))
def test_rows(data: st.DataObject, dtype: torch.dtype, kind: str, activation: str, seed: int) -> None:
    torch.manual_seed(seed)
    count, lines = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 140))
    width = data.draw(st.sampled_from([0, 0, 1, 7, 33]))
    # Of subnormal results a neighbour is far away.
    scale = data.draw(st.sampled_from([1.0, 1e-3, 100.0, *([3e-7] if activation == "none" else [])]))
    given_columns = 8 * lines * (2 if activation == "geglu" else 1)
    gap = data.draw(st.sampled_from([0, 8, 24]))
    x = (torch.randn(2, count, given_columns + gap) * scale).to(dtype)[..., : given_columns if gap else None]
    left = torch.randn(2, count, 8 * width).to(dtype) if width else None
    found = rows.gated_quantised(x, activation, left, kind)
    exact = low_precision.gated_quantised(x, activation, left, kind)
    assert_same_rows(found, exact, bits=activation == "none")


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    st.data(), st.sampled_from(DTYPES), st.sampled_from(KINDS), st.sampled_from(sorted(norms.NORMS)), st.integers(0, 9)
)
def test_norms(data: st.DataObject, dtype: torch.dtype, kind: str, name: str, seed: int) -> None:
    torch.manual_seed(seed)
    samples, count, columns = (
        data.draw(st.integers(1, 3)),
        data.draw(st.integers(1, 4)),
        8 * data.draw(st.integers(1, 160)),
    )
    offset = data.draw(st.sampled_from([0.0, 10.0]))
    norm = norms.NORMS[name]

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape).to(dtype)

    modulation = drawn(samples, 1, 3 * columns).chunk(3, dim=-1)
    values = {
        "x": (torch.randn(samples, count, columns) + offset).to(dtype),
        "y": drawn(samples, count, columns),
        **dict(zip(("gate", "scale", "shift"), modulation, strict=True)),
        "shape": [columns],
        "weight": data.draw(st.sampled_from([None, drawn(columns)])),
        "bias": data.draw(st.sampled_from([None, drawn(columns)])),
        "eps": 1e-5,
        "kind": kind,
    }
    values["x"][0, 0, 0] = data.draw(st.sampled_from([0.0, math.inf, math.nan]))
    arguments = [values[role] for role in norm.roles]
    *found, total = (*norm(*arguments), None)[:3]
    *exact, right = (*OPS[name].reference(*arguments), None)[:3]
    assert_same_rows((found[0], found[1]), (exact[0], exact[1]), bits=False)
    if right is not None:
        torch.testing.assert_close(total, right, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_at_the_edges(dtype: torch.dtype, kind: str) -> None:
    """Zeros, the smallest and largest numbers, NaN and Inf: each in a row with others, and alone."""
    limits = torch.finfo(dtype)
    edges = [0.0, -0.0, limits.smallest_normal, limits.tiny / 4, limits.max, limits.min, math.nan, math.inf, -math.inf]
    x = torch.randn(2 * len(edges), 64).to(dtype)
    for index, edge in enumerate(edges):
        x[index, index] = edge
        x[len(edges) + index] = edge
    found = rows.quantise_rows(x, kind)
    assert_same_rows(found, low_precision.quantise_rows(x, kind), bits=True)
    spoilt = found[1].isnan().squeeze(1)
    assert torch.equal(spoilt, ~x.isfinite().all(1))


def test_activations_keep_what_is_not_a_number() -> None:
    x = torch.randn(3, 128).half()
    x[0, 3], x[1, 70] = math.nan, math.inf
    for activation in rows.ACTIVATIONS:
        found = rows.gated_quantised(x, activation, None, "f8e4m3")
        exact = low_precision.gated_quantised(x, activation, None, "f8e4m3")
        assert torch.equal(found[1].isnan(), exact[1].isnan()), activation
        assert found[1].isnan().squeeze(1).tolist() == [True, True, False]


def test_nothing_is_written_beside_the_rows(chip: Chip) -> None:
    x = torch.randn(5, 72).half()
    codes, scales = torch.full((7, 72), 99, dtype=torch.int8), torch.full((7, 1), 99.0)
    chip.ops.quantise_rows(x, None, codes[1:6], scales[1:6], 0)
    assert [bool((each[[0, 6]] == 99).all()) for each in (codes, scales)] == [True, True]
    assert not (codes[1:6] == 99).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"columns": 20488}, "fewer elements"),
        ({"activation": 6}, "activation"),
        ({"activation": 5}, "codes"),
        ({"x": torch.zeros(4, 68).half()}, "lines"),
        ({"x": torch.zeros(4, 64)}, "f16"),
    ],
)
def test_what_it_does_not_take_is_said(chip: Chip, wrong: dict[str, object], message: str) -> None:
    columns = wrong.get("columns", 64)
    x = wrong.get("x", torch.zeros(4, columns).half())
    codes, scales = torch.zeros(4, columns, dtype=torch.int8), torch.zeros(4, 1)
    with pytest.raises(RuntimeError, match=message):
        chip.ops.quantise_rows(x, None, codes, scales, wrong.get("activation", 0))
