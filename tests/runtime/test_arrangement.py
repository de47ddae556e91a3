"""Weights move from candidate to candidate, and home again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

import rewriter
from rewriter.errors import VerificationError
from rewriter.graph import prepare
from rewriter.graph.prepare import Prepared
from rewriter.runtime import building
from rewriter.runtime.arrangement import Arrangement
from rewriter.runtime.prepared import PreparedStore

pytestmark = pytest.mark.usefixtures("weights_move")

NAMES = ("q", "k", "v", "conv")


def concat(*sources: int) -> Prepared:
    return Prepared(function="concat", sources=sources, options=(("dim", 0),))


ORDERED = Prepared(function="channels_last", sources=(3,), options=())
CANDIDATES: list[list[Prepared]] = [
    [],
    [concat(0, 1, 2)],
    [concat(0, 1, 2), ORDERED],
    [ORDERED, concat(1, 2)],
    [concat(2, 0)],
    [Prepared(function="transpose", sources=(1,), options=(("dim0", 0), ("dim1", 1))), concat(0, 2)],
    [],
]


@pytest.fixture
def weights() -> list[torch.Tensor]:
    shapes: list[tuple[int, ...]] = [(8, 4), (8, 4), (16, 4), (5, 6, 3, 3)]
    return [torch.nn.Parameter(torch.randn(*shape)) for shape in shapes]


def size(tensors: Sequence[torch.Tensor]) -> int:
    """Bytes of all that the tensors lie in."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def at_home(weights: Sequence[torch.Tensor]) -> bool:
    return all(weight.is_contiguous() and weight.untyped_storage().nbytes() == weight.nbytes for weight in weights)


def test_each_candidate_gets_what_it_wants_in_the_memory_of_one(weights: list[torch.Tensor]) -> None:
    values, objects = [weight.detach().clone() for weight in weights], list(weights)
    alone = size(weights)
    with Arrangement(NAMES, weights, PreparedStore(), ()) as arrangement:
        for recipes in CANDIDATES:
            known = list(values)
            for recipe in recipes:
                known.append(prepare.run(recipe, known))
            derived = arrangement.derive(recipes)
            assert all(torch.equal(a, b) for a, b in zip([*weights, *derived], known, strict=True))
            turned = sum(
                made.nbytes for recipe, made in zip(recipes, derived, strict=True) if recipe.function == "transpose"
            )
            assert size([*weights, *derived]) == alone + turned
            moved = {source for recipe in recipes if recipe.function != "transpose" for source in recipe.sources}
            assert at_home([weight for index, weight in enumerate(weights) if index not in moved])
    assert all(weight is before for weight, before in zip(weights, objects, strict=True))


def test_what_two_candidates_share_stays_where_it_is(weights: list[torch.Tensor]) -> None:
    arrangement = Arrangement(NAMES, weights, PreparedStore(), ())
    (first,) = arrangement.derive([concat(0, 1, 2)])
    second, _ = arrangement.derive([concat(0, 1, 2), ORDERED])
    assert second.data_ptr() == first.data_ptr()


def test_weights_that_another_capture_has_moved_stay_there(weights: list[torch.Tensor]) -> None:
    store = PreparedStore()
    kept = Arrangement(NAMES, weights, store, ()).settle([ORDERED])
    with Arrangement(NAMES, weights, store, ()) as arrangement:
        arrangement.derive([concat(0, 1)])
        arrangement.derive([])
    assert weights[3].is_contiguous(memory_format=torch.channels_last)
    assert kept.refresh(weights)[0].data_ptr() == weights[3].data_ptr()
    assert at_home(weights[:3])


def test_an_untouched_weight_is_copied(weights: list[torch.Tensor]) -> None:
    pointers = [weight.data_ptr() for weight in weights]
    Arrangement(NAMES, weights, PreparedStore(), {id(weights[1])}).derive([concat(0, 1, 2), ORDERED])
    assert [weight.data_ptr() for weight in weights[:3]] == pointers[:3]
    assert weights[3].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_goes_wrong_gives_every_weight_back(weights: list[torch.Tensor], error: type[BaseException]) -> None:
    def fail() -> None:
        with Arrangement(NAMES, weights, PreparedStore(), ()) as arrangement, torch.inference_mode():
            arrangement.settle([concat(0, 1, 2), ORDERED])
            raise error

    values = [weight.detach().clone() for weight in weights]
    with pytest.raises(error):
        fail()
    assert at_home(weights)
    assert not any(weight.is_inference() for weight in weights)
    assert all(torch.equal(weight, value) for weight, value in zip(weights, values, strict=True))


def test_a_graph_that_is_wrong_leaves_the_module_as_it_was(
    make_unet: Any, inputs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_: Any) -> Any:
        raise VerificationError("planted")

    unet, given = make_unet(), inputs()
    with torch.no_grad():
        expected = unet(**given)[0]
    strides = [weight.stride() for weight in unet.parameters()]
    rewriter.optimize(unet, measure=False)
    monkeypatch.setattr(building, "judge", wrong)
    for _ in range(2):
        with torch.no_grad():
            assert torch.equal(unet(**given)[0], expected)
    (part,) = rewriter.report(unet).components.values()
    assert part.status == "eager"
    assert at_home(list(unet.parameters()))
    assert [weight.stride() for weight in unet.parameters()] == strides
