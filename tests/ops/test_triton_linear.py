from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from rewriter.ops.activation import ACTIVATIONS, activate
from rewriter.ops.linear import linear_geglu as reference
from rewriter.ops.triton import device, linear, product

pytestmark = pytest.mark.skipif(not device.INTERPRETED, reason="needs Triton's interpreter (TRITON_INTERPRET=1)")

_SMALL = ({"rows": 16, "columns": 16, "depth": 32}, {"rows": 32, "columns": 16, "depth": 16, "persistent": 1})
# Half a unit in the last place; a whole one for bf16, whose low bits the interpreter drops instead of rounding.
_ERROR = {torch.float16: 5e-4, torch.bfloat16: 8e-3}


def _operands(
    rows: int, depth: int, columns: int, dtype: torch.dtype = torch.float16
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows * 10_000 + depth * 100 + columns)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    weight = draw(2 * columns, depth) * depth**-0.5
    return draw(rows, depth).to(dtype), weight.to(dtype), draw(2 * columns).to(dtype)


def _error(result: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> float:
    exact = reference(x.double(), weight.double(), None if bias is None else bias.double())
    assert result.shape == exact.shape
    assert result.dtype == x.dtype
    return float((result.double() - exact).norm() / exact.norm().clamp_min(1e-12))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("config", _SMALL, ids=["tiled", "persistent"])
@pytest.mark.parametrize(
    ("rows", "depth", "columns"), [(1, 1, 1), (5, 37, 11), (40, 64, 48), (17, 72, 24), (33, 40, 8), (70, 16, 40)]
)
def test_odd_sizes(rows: int, depth: int, columns: int, config: dict[str, int], dtype: torch.dtype) -> None:
    x, weight, bias = _operands(rows, depth, columns, dtype)
    for added in (bias, None):
        assert _error(linear.linear_geglu(x, weight, added, **config), x, weight, added) < _ERROR[dtype]


@pytest.mark.parametrize("config", _SMALL, ids=["tiled", "persistent"])
def test_strides(config: dict[str, int]) -> None:
    x, weight, bias = _operands(24, 40, 16)
    wide = torch.full((24, 56), torch.nan, dtype=x.dtype)
    wide[:, 8:48] = x
    by_columns = x.t().contiguous().t()
    sliced = torch.full((33, 48), torch.nan, dtype=x.dtype)
    sliced[1:, :40] = weight
    twice = torch.full((64,), torch.nan, dtype=x.dtype)
    twice[::2] = bias
    for each in (wide[:, 8:48], wide[:, 8:48].view(2, 3, 4, 40), by_columns, x[:1].expand(24, 40)):
        result = linear.linear_geglu(each, sliced[1:, :40], twice[::2], **config)
        assert _error(result, each, weight, bias) < 5e-4
        assert result.is_contiguous()


def test_reads_nothing_around_its_operands() -> None:
    x, weight, bias = _operands(19, 23, 13)
    fenced = []
    for operand in (x, weight, bias):
        room = torch.full((operand.numel() + 64,), torch.nan, dtype=operand.dtype)
        room[32:-32] = operand.flatten()
        fenced.append(room[32:-32].view(operand.shape))
    assert _error(linear.linear_geglu(*fenced, rows=16, columns=16, depth=16), x, weight, bias) < 5e-4


def test_gelu_is_the_exact_one() -> None:
    """The tanh formula is off by up to 4.7e-4 where this one is by rounding alone."""
    gate = torch.linspace(-9, 9, 400).half()[:, None]
    weight = torch.tensor([[0.0], [1.0]], dtype=torch.float16)
    bias = torch.tensor([1.0, 0.0], dtype=torch.float16)
    result = linear.linear_geglu(gate, weight, bias, rows=16, columns=16, depth=16)
    exact = torch.nn.functional.gelu(gate.double())
    # Between two subnormals lie 6e-8.
    assert ((result.double() - exact).abs() <= 5.5e-4 * exact.abs() + 3.1e-8).all()


def test_tanh_keeps_the_digits_of_small_numbers() -> None:
    """As a difference of two numbers near 1 it has an error of 6e-8 whatever its size."""
    x = torch.logspace(-6, 1, 200, dtype=torch.float64).half()[:, None]
    one = torch.ones(1, 1, dtype=torch.float16)
    for each in (x, -x):
        result = linear.linear_act(each, one, None, "tanh", rows=16, columns=16, depth=16)
        exact = torch.tanh(each.double())
        assert ((result.double() - exact).abs() <= 5e-4 * exact.abs() + 3.1e-8).all()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:overflow:RuntimeWarning")
def test_infinities() -> None:
    weight = torch.tensor([[0.0], [1.0]], dtype=torch.float16)
    bias = torch.tensor([2.0, 0.0], dtype=torch.float16)
    x = torch.tensor([[torch.inf], [-torch.inf], [torch.nan], [1.0]], dtype=torch.float16)
    # inf * 0 makes hidden NaN; without it hidden is the bias.
    assert linear.linear_geglu(x, weight, bias, rows=16, columns=16, depth=16).isnan().flatten().tolist() == [
        True,
        True,
        True,
        False,
    ]
    gates = torch.tensor([2.0, torch.inf], dtype=torch.float16)
    nothing = torch.zeros(1, 1, dtype=torch.float16)
    assert linear.linear_geglu(nothing, weight, gates, rows=16, columns=16, depth=16).item() == torch.inf
    gates = torch.tensor([2.0, -torch.inf], dtype=torch.float16)
    assert linear.linear_geglu(nothing, weight, gates, rows=16, columns=16, depth=16).isnan().item()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("config", _SMALL, ids=["tiled", "persistent"])
def test_activations(config: dict[str, int], activation: str, dtype: torch.dtype) -> None:
    for rows, depth, columns in ((19, 40, 12), (5, 37, 3)):
        x, weight, bias = _operands(rows, depth, columns, dtype)
        for added in (bias, None):
            result = linear.linear_act(x, weight, added, activation, **config)
            wide = None if added is None else added.double()
            exact = activate(torch.nn.functional.linear(x.double(), weight.double(), wide), activation)
            assert (result.shape, result.dtype) == (exact.shape, dtype)
            assert (result.double() - exact).norm() <= _ERROR[dtype] * exact.norm()


@pytest.mark.parametrize("config", _SMALL, ids=["tiled", "persistent"])
def test_residual(config: dict[str, int]) -> None:
    x, weight, bias = _operands(24, 40, 8)
    fenced = torch.full((26, 24), torch.nan, dtype=x.dtype)
    dense = fenced[1:25, 4:20].normal_(generator=torch.Generator().manual_seed(0))
    permuted = dense.t().contiguous().t()
    exact = torch.nn.functional.linear(x.double(), weight.double(), bias.double()) + dense.double()
    for residual in (dense, permuted, dense.contiguous()):
        result = linear.linear_add(x.view(2, 12, 40), weight, bias, residual.reshape(2, 12, 16), **config)
        assert result.is_contiguous()
        assert (result.view(24, 16).double() - exact).norm() < 5e-4 * exact.norm()


def test_refuses_a_residual_that_broadcasts() -> None:
    x, weight, bias = _operands(3, 8, 4)
    assert linear.takes_add(x, weight, bias, torch.zeros(3, 8).half()) is None
    assert linear.takes_add(x, weight, bias, torch.zeros(8).half()) == "the residual broadcasts or promotes"
    assert linear.takes_add(x, weight, bias, torch.zeros(3, 8)) == "the residual broadcasts or promotes"
    assert linear.takes_act(x, weight, bias, "swish") == "no kernel for swish"


def test_refusals() -> None:
    x, weight, bias = _operands(3, 8, 4)
    assert linear.takes_geglu(x, weight, bias) is None
    assert linear.takes_geglu(x.float(), weight.float(), None) is not None
    assert linear.takes_geglu(x, weight, bias.float()) is not None
    assert linear.takes_geglu(x[:0], weight, bias) == "an empty product"
    assert linear.takes_geglu(x[:, :7], weight, bias) is not None
    assert linear.takes_geglu(x, weight[:7], None) is not None


def test_the_accelerator_is_offered_only_what_it_can_read() -> None:
    x, weight, _ = _operands(32, 64, 16)
    assert product.describable(x, weight, 16)
    assert not product.describable(x[:, 1:], weight[:, 1:], 16)
    assert not product.describable(x, weight, 15)
    assert not product.describable(x[:1].expand(32, 64), weight, 16)
    assert not product.describable(x.t().contiguous().t(), weight, 16)
    # Rows of 24 elements: 48 bytes, and 24 in eight bits.
    narrow = torch.zeros(32, 24, dtype=torch.int8)
    assert product.describable(narrow.half(), narrow.half(), 16)
    assert not product.describable(narrow, narrow, 16)
    assert product.describable(narrow[:, :16].contiguous(), narrow[:, :16].contiguous(), 16)
    odd, odd_weight, odd_bias = _operands(4000, 4, 600)
    assert all(not config["persistent"] for config in linear.geglu_configs(odd, odd_weight, odd_bias))
    even, even_weight, even_bias = _operands(4000, 8, 600)
    assert any(config["persistent"] for config in linear.geglu_configs(even, even_weight, even_bias))
