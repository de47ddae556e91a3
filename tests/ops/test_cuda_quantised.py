"""Rows in eight bits and their products by the kernels for Hopper: what they take, and there the results."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from rewriter.ops import low_precision, registry
from rewriter.ops import providers as packages
from rewriter.ops.cuda import norms, quantised, rows, tiles

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
on_hopper = pytest.mark.skipif(not HOPPER, reason="needs a GPU of compute capability 9.0")
SIZES = [(64, 16, 16), (300, 144, 336), (2048, 1280, 1280), (2048, 1280, 10240), (513, 5120, 640), (4096, 640, 1920)]


@pytest.fixture
def as_on_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has questions about a call answered as there, where only the operands decide."""
    for module in (quantised, tiles):
        monkeypatch.setattr(module, "elsewhere", lambda *_: None)


def operands(
    m: int, k: int, n: int, dtype: torch.dtype = torch.float16, device: str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x, weight = torch.randn(m, k, device=device), torch.randn(n, k, device=device) / math.sqrt(k)
    codes, scales = low_precision.quantise_rows(x, "f8e4m3")
    weight, weight_scales = low_precision.quantise_rows(weight, "f8e4m3")
    return codes, scales, weight, weight_scales, torch.randn(n, device=device).to(dtype)


def test_operands_on_the_cpu_are_refused() -> None:
    assert quantised.takes(*operands(64, 16, 16)) == "the operands are not all on one CUDA device"
    assert rows.takes_rows(torch.ones(2, 64).half(), "i8") == "the operands are not all on one CUDA device"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"codes": torch.zeros(64, 32, dtype=torch.int8)}, "only f8e4m3"),
        ({"bias": torch.zeros(48)}, "only f8e4m3"),
        ({"scales": torch.zeros(64, 1).half()}, "scales in other than f32"),
        ({"scales": torch.zeros(1, 1)}, "broadcast"),
        ({"bias": torch.zeros(1).half()}, "broadcast"),
        ({"codes": torch.zeros(64, 0).to(torch.float8_e4m3fn)}, "shapes that torch refuses too"),
    ],
)
@pytest.mark.usefixtures("as_on_hopper")
def test_what_a_product_does_not_take(change: dict[str, Any], reason: str) -> None:
    call = dict(zip(("codes", "scales", "weight", "weight_scales", "bias"), operands(64, 32, 48), strict=True))
    assert quantised.takes(*call.values()) is None
    found = quantised.takes(*(call | change).values())
    assert found is not None
    assert reason in found


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [((63, 32, 48), "few rows"), ((64, 24, 48), "multiples of 16"), ((64, 32, 44), "multiples of 16 and 8")],
)
@pytest.mark.usefixtures("as_on_hopper")
def test_sizes_that_a_product_does_not_take(sizes: tuple[int, int, int], reason: str) -> None:
    found = quantised.takes(*operands(*sizes))
    assert found is not None
    assert reason in found


@pytest.mark.usefixtures("as_on_hopper")
def test_residuals_and_gates() -> None:
    given = operands(64, 32, 48)
    assert quantised.takes_add(*given, torch.zeros(64, 48).half()) is None
    assert quantised.takes_add(*given, torch.zeros(1, 48).half()) == "the residual broadcasts or promotes"
    assert (
        quantised.takes_add(*given, torch.zeros(48, 64).half().t()) == "the residual has gaps or is on another device"
    )
    assert quantised.takes_geglu(*given) is None
    assert quantised.takes_geglu(*operands(64, 32, 56)) == "halves that are no multiples of 8"


@pytest.mark.parametrize(
    ("x", "activation", "left", "reason"),
    [
        (torch.zeros(2, 64), "none", None, "only f16 and bf16"),
        (torch.zeros(2, 68).half(), "none", None, "whole lines"),
        (torch.zeros(2, 72).half(), "geglu", None, "halves"),
        (torch.zeros(2, 64).half().t(), "none", None, "whole lines"),
        (torch.zeros(2, 128).half()[:, 1:65], "none", None, "multiple of 16 bytes"),
        (torch.zeros(2, 64).half(), "relu", None, "no kernel for relu"),
        (torch.zeros(2, 64).half(), "none", torch.zeros(3, 64).half(), "two shapes"),
        (torch.zeros(2, 64).half(), "none", torch.zeros(2, 20).half(), "whole lines"),
        (torch.zeros(1, 32776).half(), "none", None, "too many elements"),
    ],
)
@pytest.mark.usefixtures("as_on_hopper")
def test_rows_that_it_does_not_take(x: torch.Tensor, activation: str, left: torch.Tensor | None, reason: str) -> None:
    assert rows.takes_gated(torch.zeros(2, 64).half(), "geglu", torch.zeros(2, 8).half(), "i8") is None
    found = rows.takes_gated(x, activation, left, "i8")
    assert found is not None
    assert reason in found


@on_hopper
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_products(sizes: tuple[int, int, int], dtype: torch.dtype) -> None:
    packages.load()
    given = operands(*sizes, dtype, "cuda")
    residual = torch.randn(sizes[0], sizes[2], device="cuda", dtype=dtype)
    wide = (*given[:4], given[4].double())
    exact = low_precision.quantised_linear(*wide)
    gated = low_precision.quantised_linear_geglu(*wide)
    for way in quantised.configs(*given):
        for found, right in (
            (quantised.quantised_linear(*given, **way), exact),
            (quantised.quantised_linear(*given, residual, **way), exact + residual.double()),
            (quantised.quantised_linear_geglu(*given, **way), gated),
        ):
            # The tensor cores' sums of f8e4m3 keep fewer digits than f32 has.
            assert float((found.double() - right).norm() / right.norm()) < 8e-3, way


@on_hopper
@pytest.mark.parametrize("kind", sorted(low_precision.FORMATS))
@pytest.mark.parametrize("columns", [8, 640, 1280, 5120, 12288, 16384])
def test_rows(columns: int, kind: str) -> None:
    packages.load()
    torch.manual_seed(0)
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.randn(77, columns, device="cuda").to(dtype)
        x[3, 5], x[9, 0] = math.nan, math.inf
        wanted = low_precision.quantise_rows(x, kind)
        found = rows.quantise_rows(x, kind)
        assert torch.equal(found[0].view(torch.uint8), wanted[0].view(torch.uint8))
        torch.testing.assert_close(found[1], wanted[1], rtol=0, atol=0, equal_nan=True)


NORM = {
    "x": torch.zeros(2, 3, 64).half(),
    "y": torch.zeros(2, 3, 64).half(),
    "gate": torch.zeros(2, 1, 64).half(),
    "shape": [64],
    "weight": torch.zeros(64).half(),
    "bias": None,
    "eps": 1e-5,
    "scale": torch.zeros(1, 1, 64).half(),
    "shift": torch.zeros(2, 1, 192).half().chunk(3, -1)[1],
    "kind": "i8",
}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kind": "i4"}, "no kernel for i4"),
        ({"shape": [3, 64]}, "other than the last dimension"),
        ({"x": torch.zeros(2, 3, 64)}, "only f16 and bf16"),
        ({"weight": torch.zeros(64)}, "only f16 and bf16"),
        ({"x": torch.zeros(2, 64, 3).half().transpose(1, 2)}, "whole lines"),
        ({"y": torch.zeros(1, 3, 64).half()}, "a residual that broadcasts"),
        ({name: torch.zeros(2, 3, 1288).half() for name in "xy"} | {"shape": [1288], "weight": None}, "more elements"),
        ({"weight": torch.zeros(128).half()[::2]}, "no dense vector"),
        ({"gate": torch.zeros(2, 3, 64).half()}, "a row of lines for each sample"),
        ({"shift": torch.zeros(2, 1, 65).half()[..., 1:]}, "multiple of 16 bytes"),
    ],
)
@pytest.mark.usefixtures("as_on_hopper")
def test_what_a_norm_does_not_take(change: dict[str, Any], reason: str) -> None:
    for name, norm in norms.NORMS.items():
        assert norm.takes(*(NORM[role] for role in norm.roles)) is None, name
    norm = norms.NORMS["gate_add_layer_norm_modulate_quantised"]
    found = norm.takes(*((NORM | change)[role] for role in norm.roles))
    assert found is not None
    assert reason in found


@on_hopper
@pytest.mark.parametrize("name", sorted(norms.NORMS))
@pytest.mark.parametrize("columns", [8, 640, 1280])
def test_norms(columns: int, name: str) -> None:
    packages.load()
    torch.manual_seed(0)
    norm, op = norms.NORMS[name], registry.OPS[name]
    for kind in sorted(low_precision.FORMATS):
        for dtype in (torch.float16, torch.bfloat16):

            def drawn(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
                return torch.randn(shape, device="cuda").to(dtype)

            values = {
                **{each: drawn(2, 77, columns) for each in ("x", "y")},
                **{each: drawn(2, 1, columns) for each in ("gate", "scale", "shift")},
                **{each: drawn(columns) for each in ("weight", "bias")},
                "shape": [columns],
                "eps": 1e-5,
                "kind": kind,
            }
            arguments = [values[role] for role in norm.roles]
            assert norm.takes(*arguments) is None
            codes, scales, *total = op.reference(*arguments)
            found = norm(*arguments)
            one, other = (c.double() * s.double() for c, s in ((found[0], found[1]), (codes, scales)))
            assert float((one - other).norm() / other.norm()) < 1e-2
            for mine, right in zip(found[2:], total, strict=True):
                assert torch.equal(mine, right)


@on_hopper
@pytest.mark.parametrize("activation", rows.ACTIVATIONS[1:])
@pytest.mark.parametrize(("columns", "width"), [(640, 0), (5120, 0), (12288, 3072)])
def test_rows_of_activations(columns: int, width: int, activation: str) -> None:
    packages.load()
    torch.manual_seed(0)
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.randn(77, columns * (2 if activation == "geglu" else 1), device="cuda").to(dtype)
        left = torch.randn(77, width, device="cuda").to(dtype) if width else None
        codes, scales = low_precision.gated_quantised(x, activation, left, "f8e4m3")
        exact = codes.double() * scales.double()
        codes, scales = rows.gated_quantised(x, activation, left, "f8e4m3")
        assert float((codes.double() * scales.double() - exact).norm() / exact.norm()) < 1e-2


@on_hopper
def test_they_serve_their_ops() -> None:
    packages.load()
    products = ("quantised_linear", "quantised_linear_add", "quantised_linear_geglu")
    for name in (*products, "quantise_rows", "gated_quantised", *norms.NORMS):
        assert "cuda" in registry.OPS[name].providers
