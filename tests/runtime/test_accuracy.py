"""Rewritten networks have as many right digits as eager ones, on a CPU too."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import rewriter
from rewriter.capture.compare import relative_error


class Norm(torch.nn.Module):
    """A norm of pictures with a large mean, which channels-last memory costs digits in torch's kernel for a CPU."""

    def __init__(self, after: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.norm = torch.nn.GroupNorm(4, 8)
        self.after = after
        self.convolution.bias.data.fill_(100.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(self.norm(self.convolution(x)))


@pytest.mark.parametrize("measure", [False, True], ids=["all rules", "measured"])
@pytest.mark.parametrize("after", [torch.neg, F.silu], ids=["norm", "norm and SiLU"])
def test_norms_keep_their_digits_in_channels_last_memory(
    after: Callable[[torch.Tensor], torch.Tensor], measure: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("REWRITER_CACHE", str(tmp_path))
    torch.manual_seed(0)
    eager = Norm(after).eval()
    exact, network = copy.deepcopy(eager).double(), copy.deepcopy(eager)
    rewriter.optimize(network, measure=measure)
    worst = dict.fromkeys((eager, network), 0.0)
    for _ in range(20):
        # The first few sizes are compared with eager, on the weights as they lie then.
        x = torch.randn(2, 3, *torch.randint(2, 70, (2,)).tolist())
        for each in worst:
            worst[each] = max(worst[each], relative_error(each(x), exact(x.double())))
    assert worst[network] <= 2 * worst[eager]
    part = rewriter.report(network).components["Norm"]
    assert (part.status, part.captures) == ("optimised", 1)
    assert network.convolution.weight.is_contiguous()
