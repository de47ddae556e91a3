"""The fp8 pack on a transformer block, where quantised layers read rows and only what attention gives is stored in
full, and on residual blocks."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from rewriter import torch_ir
from rewriter.graph import prepare
from rewriter.graph.canonical import canonicalise
from rewriter.graph.conditions import Target
from rewriter.graph.engine import Rewritten, rewrite
from rewriter.language import load_rules

HOPPER = Target(device="cuda", sm=90)


class Block(torch.nn.Module):
    """Self-attention and a feed-forward with GEGLU, each behind a norm, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(128) for _ in range(4))
        self.qkv = torch.nn.ModuleList(torch.nn.Linear(128, 384) for _ in range(2))
        self.out = torch.nn.ModuleList(torch.nn.Linear(128, 128) for _ in range(2))
        self.up = torch.nn.ModuleList(torch.nn.Linear(128, 512) for _ in range(2))
        self.down = torch.nn.ModuleList(torch.nn.Linear(256, 128) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for index in range(2):
            n = self.norms[2 * index](x)
            # The extents of a norm are read, as diffusers' attention does.
            batch, tokens, _ = n.shape
            q, k, v = self.qkv[index](n).view(batch, tokens, 3, 4, 32).permute(2, 0, 3, 1, 4).unbind(0)
            a = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, 128)
            x = self.out[index](a) + x
            hidden, gate = self.up[index](self.norms[2 * index + 1](x)).chunk(2, dim=-1)
            x = self.down[index](hidden * F.gelu(gate)) + x
        return x


def rewritten(
    module: torch.nn.Module,
    given: torch.Tensor | tuple[torch.Tensor, ...],
    packs: list[str],
    target: Target = HOPPER,
) -> tuple[Rewritten, torch.Tensor]:
    given = given if isinstance(given, tuple) else (given,)
    graph, weights = torch_ir.trace(module, given)
    canonicalise(graph)
    result = rewrite(graph, load_rules(packs), weights=len(weights), target=target)
    tensors = list(weights)
    for recipe in result.prepared:
        tensors.append(prepare.run(recipe, tensors))
    function = torch_ir.function_from_graph(result.graph)
    with torch.no_grad(), torch_ir.plain_executor():
        return result, function(*given, *tensors)


@pytest.mark.parametrize(
    ("target", "gates"),
    [
        pytest.param(HOPPER, {"quantised_linear_geglu": 2, "quantise_rows": 4}, id="Hopper"),
        pytest.param(Target(device="cuda", sm=89), {"gated_quantised": 2, "quantise_rows": 2}, id="Ada"),
    ],
)
def test_norms_and_gates_write_rows(target: Target, gates: dict[str, int]) -> None:
    """Rows of a tensor as it is are left only of what attention gives, and of gates at the end of a product."""
    torch.manual_seed(0)
    module = Block().half().eval()
    x = torch.randn(2, 10, 128).half()
    result, found = rewritten(module, x, ["default", "fp8"], target)
    ops = Counter(node.kind() for node in result.graph.nodes() if node.kind().startswith("rewriter::"))
    assert ops["rewriter::layer_norm_quantised"] == 1
    assert ops["rewriter::add_layer_norm_quantised"] == 3
    assert {name: ops[f"rewriter::{name}"] for name in gates} == gates
    assert sum(ops[f"rewriter::quantised_linear{kind}"] for kind in ("", "_add", "_geglu")) == 8
    assert not ops.keys() & {
        "rewriter::layer_norm",
        "rewriter::gated",
        "rewriter::linear_add",
        "rewriter::linear_geglu",
    }
    with torch.no_grad():
        exact = module.float()(x.float())
    assert 0 < float((found - exact).norm() / exact.norm()) < 0.05


class Residual(torch.nn.Module):
    """Two residual blocks of a UNet, each with a time embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = torch.nn.ModuleList(torch.nn.GroupNorm(8, 32) for _ in range(4))
        self.convs = torch.nn.ModuleList(torch.nn.Conv2d(32, 32, 3, padding=1) for _ in range(4))

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        for index in range(2):
            h = self.convs[2 * index](F.silu(self.norms[2 * index](x))) + time[:, :, None, None]
            x = x + self.convs[2 * index + 1](F.silu(self.norms[2 * index + 1](h)))
        return x


@pytest.mark.parametrize(("target", "count"), [(HOPPER, 2), (Target(device="cuda", sm=89), 0)], ids=["Hopper", "Ada"])
def test_the_first_convolution_of_a_residual_block_is_quantised(target: Target, count: int) -> None:
    """The second one's error would come on top."""
    torch.manual_seed(0)
    module = Residual().half().eval().to(memory_format=torch.channels_last)
    given = torch.randn(2, 32, 8, 8).half().contiguous(memory_format=torch.channels_last), torch.randn(2, 32).half()
    result, found = rewritten(module, given, ["default", "fp8"], target)
    ops = Counter(node.kind() for node in result.graph.nodes())
    assert ops["rewriter::quantised_conv"] == count
    assert ops["rewriter::group_norm_silu_quantised"] + ops["rewriter::add_group_norm_silu_quantised"] == count
    without, plain = rewritten(module, given, ["default", "fp8", "-fp8-*conv*"], target)
    assert "rewriter::quantised_conv" not in {node.kind() for node in without.graph.nodes()}
    with torch.no_grad():
        exact = module.float()(*(each.float() for each in given))
    errors = [float((each - exact).norm() / exact.norm()) for each in (plain, found)]
    assert errors[0] < 2e-3
    assert bool(count) == (2e-3 < errors[1] < 0.05)


def test_int8_costs_less_precision() -> None:
    torch.manual_seed(0)
    module = Block().half().eval()
    x = torch.randn(2, 10, 128).half()
    errors = []
    for packs in (["default"], ["default", "int8"], ["default", "fp8"]):
        found = rewritten(module.half(), x, packs)[1]
        with torch.no_grad():
            exact = module.float()(x.float())
        errors.append(float((found - exact).norm() / exact.norm()))
    assert errors[0] < 2e-3 < errors[1] < 2e-2
    assert errors[1] < errors[2]
