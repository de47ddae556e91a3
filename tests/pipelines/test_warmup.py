"""What was captured ahead need not be captured when it counts."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_cases import PROMPT
from tiny_pipelines import CASES
from twins import draw, picture_error

import rewriter

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def counts(pipe: Any) -> dict[str, tuple[int, int]]:
    return {name: (part.captures, part.eager_calls) for name, part in rewriter.report(pipe).components.items()}


@pytest.mark.parametrize("name", ["sd15", "flux-dev"])
def test_warm_shapes_are_neither_captured_nor_compared_again(name: str) -> None:
    pipe = CASES[name].build()
    twin = copy.deepcopy(pipe)
    rewriter.optimize(pipe, measure=False)
    scheduler, bars = pipe.scheduler, dict(pipe._progress_bar_config)
    torch.manual_seed(3)
    expected_noise = torch.rand(2)
    torch.manual_seed(3)
    more = {"max_sequence_length": 24} if name == "flux-dev" else {}
    assert rewriter.warmup(pipe, shapes=[(16, 16), (2, 16, 32), {"height": 32, "width": 16}], **more) is pipe
    assert torch.equal(torch.rand(2), expected_noise)
    assert pipe.scheduler is scheduler
    assert pipe._progress_bar_config == bars
    before = counts(pipe)
    for pictures, height, width in ((1, 16, 16), (2, 16, 32), (1, 32, 16)):
        call = {"prompt": PROMPT, "height": height, "width": width, "num_images_per_prompt": pictures, **more}
        assert picture_error(draw(pipe, **call), draw(twin, **call)) < 1e-4
    assert counts(pipe) == before


def test_without_shapes_the_default_is_called() -> None:
    pipe = CASES["sd15"].build()
    rewriter.optimize(pipe, measure=False)
    rewriter.warmup(pipe, guidance_scale=1.0)
    before = counts(pipe)
    draw(pipe, prompt=PROMPT, guidance_scale=1.0)
    assert counts(pipe) == before


def test_what_warmup_refuses() -> None:
    pipe = CASES["svd"].build()
    with pytest.raises(rewriter.RewriterError, match="is not optimised"):
        rewriter.warmup(pipe)
    with pytest.raises(
        TypeError, match=r"accepts a diffusers DiffusionPipeline, found torch\.nn\.modules\.linear\.Linear"
    ):
        rewriter.warmup(torch.nn.Linear(2, 2))
    rewriter.optimize(pipe, measure=False)
    for shape in ((16,), (16, -16), (1, 2, 3, 4), (16.0, 16)):
        with pytest.raises(ValueError, match=r"expected \(height, width\)"):
            rewriter.warmup(pipe, shapes=[(16, 16), shape])
    for shapes in (None, {"height": 16}, "16x16", (16, 16)):
        with pytest.raises(ValueError, match=r"expected (a list of )?.*\(height, width\)"):
            rewriter.warmup(pipe, shapes=shapes)
    with pytest.raises(ValueError, match="StableVideoDiffusionPipeline has no parameter prompt_2, strength"):
        rewriter.warmup(pipe, strength=1, prompt_2="b")
    assert all(part.calls == 0 for part in rewriter.report(pipe).components.values())
