"""Calls that are recorded in another form with the same result."""

import pytest
import torch

from rewriter import torch_ir
from rewriter.capture.substitutes import Substitutes


class Repeats(torch.nn.Module):
    def __init__(self, dim: int | None, style: str) -> None:
        super().__init__()
        self.dim, self.style = dim, style

    def forward(self, x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        count = like.shape[0]
        with Substitutes():
            if self.style == "positional":
                return x.repeat_interleave(count, self.dim)
            if self.style == "sized" and self.dim == 0:
                return x.repeat_interleave(count, dim=0, output_size=x.shape[0] * count)
            return torch.repeat_interleave(x, repeats=count, dim=self.dim)


@pytest.mark.parametrize("style", ["positional", "named", "sized"])
@pytest.mark.parametrize("dim", [None, 0, 1, -1])
def test_repeats_from_a_shape_need_no_index(dim: int | None, style: str):
    module = Repeats(dim, style)
    graph, _ = torch_ir.trace(module, [torch.randn(2, 3), torch.randn(4)])
    assert not [node for node in graph.nodes() if "repeat_interleave" in node.kind()]
    torch_ir.simplify(graph)
    x, like = torch.randn(5, 3), torch.randn(2)
    with torch_ir.plain_executor():
        found = torch_ir.function_from_graph(graph)(x, like)
    assert torch.equal(found, torch.repeat_interleave(x, 2, dim=dim))


def test_repeats_of_each_element_stay_as_they_are():
    x, repeats = torch.arange(3), torch.tensor([1, 0, 2])
    with Substitutes():
        assert torch.repeat_interleave(x, repeats).tolist() == [0, 2, 2]
        assert x.repeat_interleave(repeats, 0).tolist() == [0, 2, 2]
        assert torch.repeat_interleave(repeats).tolist() == [0, 2, 2]
        assert x.repeat_interleave(2).tolist() == [0, 0, 1, 1, 2, 2]
