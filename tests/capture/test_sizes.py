"""What stands in for Python's own functions while a module is traced, and that it does so no longer."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from diffusers.models import embeddings
from diffusers.models.transformers import transformer_qwenimage, transformer_z_image

from rewriter import torch_ir
from rewriter.capture import sizes
from rewriter.capture.repeated import without_repeats

QWEN, Z_IMAGE = transformer_qwenimage.QwenEmbedRope, transformer_z_image.ZImageTransformer2DModel


class Sizes(torch.nn.Module):
    """Cuts the first rows off: as many as the larger extent of the second argument, and one more."""

    def forward(self, x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        count = sizes._largest(sizes._length(like), like.shape[1], 2)
        return x[sizes._integer(count) + 1 :]


@pytest.mark.parametrize("extents", [(1, 1), (3, 4), (5, 2)])
def test_a_graph_follows_what_is_computed_from_sizes(extents: tuple[int, int]) -> None:
    graph, _ = torch_ir.trace(Sizes(), [torch.randn(9, 2), torch.randn(3, 3)])
    x = torch.randn(9, 2)
    with torch_ir.plain_executor():
        (found,) = torch_ir.function_from_graph(graph)(x, torch.randn(extents))
    assert torch.equal(found, x[max(*extents, 2) + 1 :])


def test_outside_of_a_trace_the_functions_are_pythons() -> None:
    assert sizes._length([1, 2]) == 2
    assert type(sizes._length(torch.ones(3))) is int
    assert (sizes._integer("7"), sizes._integer("11", 2), sizes._integer()) == (7, 3, 0)
    assert type(sizes._integer(torch.tensor(3))) is int
    assert sizes._largest(1, 2.5) == sizes._largest([2.5, 1]) == 2.5
    assert sizes._largest([], default=4) == 4
    assert sizes._largest("ab", "c", key=len) == "ab"


def test_everything_is_put_back_even_after_an_error() -> None:
    def state() -> list[Any]:
        modules = (transformer_qwenimage, transformer_z_image)
        names = [{name: vars(module).get(name) for name in ("max", "len", "int")} for module in modules]
        return [*names, QWEN._compute_video_freqs, Z_IMAGE._pad_with_ids]

    patches = torch.nn.ModuleList([embeddings.PatchEmbed(height=8, width=8, patch_size=2, embed_dim=8)])
    before = state()
    with contextlib.suppress(ValueError), sizes.followed(patches):
        assert state() != before
        assert patches[0].height == -1
        raise ValueError
    assert state() == before
    assert (patches[0].height, patches[0].width) == (4, 4)


@pytest.mark.parametrize(
    "options", [{"height": 8, "width": 16}, {"pos_embed_max_size": 8}, {"pos_embed_type": None}], ids=str
)
def test_positions_that_are_not_computed_alike_for_all_sizes_stay_as_they_are(options: dict[str, Any]) -> None:
    patches = embeddings.PatchEmbed(**{"height": 8, "width": 8, "patch_size": 2, "embed_dim": 8, **options})
    before = patches.height
    with sizes.followed(patches):
        assert patches.height == before


def transformer(**options: Any) -> torch.nn.Module:
    network: torch.nn.Module = transformer_qwenimage.QwenImageTransformer2DModel(
        num_layers=1,
        in_channels=4,
        out_channels=1,
        attention_head_dim=16,
        num_attention_heads=1,
        joint_attention_dim=4,
        axes_dims_rope=(8, 4, 4),
        **options,
    )
    return network


@pytest.mark.parametrize(
    ("options", "given", "expected"),
    [
        ({}, [[(1, 4, 4)]] * 3, [[(1, 4, 4)]]),
        ({}, [(1, 4, 4), (1, 4, 4)], [(1, 4, 4)]),
        ({}, [[(1, 4, 4)], [(1, 4, 6)]], None),
        ({}, [[(1, 4, 4.0)], [(1, 4, 4)]], None),
        ({"zero_cond_t": True}, [[(1, 4, 4)]] * 3, None),
    ],
)
def test_equal_sizes_of_a_batch_are_given_once(options: Any, given: Any, expected: Any) -> None:
    found = without_repeats(transformer(**options), {"img_shapes": given, "other": 1})
    assert found == {"img_shapes": given if expected is None else expected, "other": 1}
    assert without_repeats(torch.nn.Linear(1, 1), {"img_shapes": given})["img_shapes"] is given
