"""Weights derived from weights follow their sources."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch

from rewriter.graph.prepare import Prepared
from rewriter.runtime.prepared import PreparedStore, PreparedWeights

CONCAT = Prepared(function="concat", sources=(0, 1), options=(("dim", 0),))
TURNED = Prepared(function="transpose", sources=(2,), options=(("dim0", 0), ("dim1", 1)))
NAMES = ("q", "k")


def sources() -> list[torch.Tensor]:
    return [torch.nn.Parameter(torch.randn(64, 3)), torch.nn.Parameter(torch.randn(32, 3))]


def replace(weights: list[torch.Tensor]) -> None:
    weights[1] = torch.nn.Parameter(torch.randn(32, 3))


CHANGES: dict[str, Callable[[list[torch.Tensor]], object]] = {
    "in place": lambda weights: weights[0].mul_(2),
    "one element": lambda weights: weights[0][5, 1].zero_(),
    "through data": lambda weights: weights[1].data.add_(1),
    "other data": lambda weights: setattr(weights[0], "data", torch.randn(64, 3)),
    "other tensor": replace,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_source_renews_the_result_in_its_storage(change: str) -> None:
    weights = sources()
    prepared = PreparedWeights((CONCAT, TURNED), NAMES, weights, PreparedStore())
    first = prepared.refresh(weights)
    pointers = [tensor.data_ptr() for tensor in first]
    assert prepared.refresh(weights)[0] is first[0]
    CHANGES[change](weights)
    joined, turned = prepared.refresh(weights)
    assert torch.equal(joined, torch.cat(weights))
    assert torch.equal(turned, torch.cat(weights).T)
    assert [joined.data_ptr(), turned.data_ptr()] == pointers


def test_nothing_is_computed_while_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = sources()
    prepared = PreparedWeights((CONCAT,), NAMES, weights, PreparedStore())
    monkeypatch.setattr("rewriter.graph.prepare.run", lambda *_: pytest.fail("computed again"))
    for _ in range(3):
        prepared.refresh(weights)


def test_another_dtype_gets_another_storage() -> None:
    weights = sources()
    prepared = PreparedWeights((CONCAT,), NAMES, weights, PreparedStore())
    for weight in weights:
        weight.data = weight.data.half()
    assert prepared.refresh(weights)[0].dtype is torch.float16


def test_a_recipe_that_only_looks_differently_costs_no_memory_and_follows() -> None:
    weights = [torch.nn.Parameter(torch.randn(4, 3))]
    recipe = Prepared(function="reshape", sources=(0,), options=(("shape", (3, 4)),))
    store = PreparedStore()
    prepared = PreparedWeights((recipe,), ("w",), weights, store)
    assert store.bytes() == 0
    weights[0].data.add_(1)
    assert torch.equal(prepared.refresh(weights)[0], weights[0].reshape(3, 4))
    before = prepared.refresh(weights)[0].clone()
    weights[0].data = torch.randn(4, 3)
    assert torch.equal(prepared.refresh(weights)[0], weights[0].reshape(3, 4))
    assert not torch.equal(before, weights[0].reshape(3, 4))


def test_captures_share_what_they_both_need_and_free_it() -> None:
    weights, store = sources(), PreparedStore()
    first = PreparedWeights((CONCAT,), NAMES, weights, store)
    second = PreparedWeights((CONCAT, TURNED), NAMES, weights, store)
    assert first.refresh(weights)[0] is second.refresh(weights)[0]
    assert store.bytes() == 2 * 96 * 3 * 4
    del first, second
    gc.collect()
    assert store.bytes() == 0


def test_another_state_of_the_module_computes_anew() -> None:
    # Adapters are fused by writing through `.data`, which moves neither pointer nor version.
    weights = [torch.ones(2, 3), torch.ones(4, 3)]
    prepared = PreparedWeights((CONCAT,), NAMES, weights, PreparedStore())
    prepared.refresh(weights, 1)
    weights[0].data.mul_(2)
    assert prepared.refresh(weights, 1)[0][0, 0] == 1
    assert prepared.refresh(weights, 2)[0][0, 0] == 2


ORDERED = Prepared(function="channels_last", sources=(0,), options=())


@pytest.mark.parametrize("change", CHANGES)
def test_adopted_weights_follow_every_change_and_cost_nothing(change: str) -> None:
    weights, store = sources(), PreparedStore()
    values = [weight.detach().clone() for weight in weights]
    prepared = PreparedWeights((CONCAT,), NAMES, weights, store, untouched=())
    assert store.bytes() == 0
    assert [torch.equal(weight, value) for weight, value in zip(weights, values, strict=True)] == [True, True]
    before = prepared.refresh(weights)[0]
    kept = before.clone()
    CHANGES[change](weights)
    joined = prepared.refresh(weights)[0]
    assert torch.equal(joined, torch.cat(weights))
    # What lay there may be put back; only a write to it may change it.
    replaced = change in ("other data", "other tensor")
    assert (joined.data_ptr() != before.data_ptr()) is replaced
    assert torch.equal(before, kept) is replaced
    assert store.bytes() == 0


def test_a_write_to_an_adopted_weight_counts_for_the_whole() -> None:
    # What is computed once in a loop, such as the text's keys, looks at the version of the whole alone.
    weights = sources()
    prepared = PreparedWeights((CONCAT,), NAMES, weights, PreparedStore(), untouched=())
    before = prepared.refresh(weights)[0]._version
    with torch.no_grad():
        weights[1].mul_(2)
    assert prepared.refresh(weights)[0]._version != before


@pytest.mark.usefixtures("weights_move")
def test_adopted_convolutions_keep_their_shape_and_are_given_back_contiguous() -> None:
    weight, store = torch.nn.Parameter(torch.randn(4, 3, 3, 3)), PreparedStore()
    value = weight.detach().clone()
    prepared = PreparedWeights((ORDERED,), ("w",), [weight], store, untouched=())
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(weight, value)
    weight.data.mul_(2)
    assert torch.equal(prepared.refresh([weight])[0], 2 * value)
    store.adoptions.release()
    assert weight.is_contiguous()
    assert torch.equal(weight, 2 * value)
    weight.data.mul_(2)
    assert torch.equal(prepared.refresh([weight])[0], 4 * value)


def test_convolutions_on_a_cpu_stay_where_they_are_and_are_followed() -> None:
    weight, store = torch.nn.Parameter(torch.randn(4, 3, 3, 3)), PreparedStore()
    prepared = PreparedWeights((ORDERED,), ("w",), [weight], store, untouched=())
    assert weight.is_contiguous()
    assert store.bytes() == weight.nbytes
    for change in (lambda: weight.data.mul_(2), lambda: weight.detach().add_(1)):
        change()
        (ordered,) = prepared.refresh([weight])
        assert ordered.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(ordered, weight)


def test_a_weight_lies_in_one_place_only() -> None:
    weights, store = sources(), PreparedStore()
    first = PreparedWeights((CONCAT,), NAMES, weights, store, untouched=())
    turned = Prepared(function="concat", sources=(1, 0), options=(("dim", 0),))
    second = PreparedWeights((turned,), NAMES, weights, store, untouched=())
    assert store.bytes() == 96 * 3 * 4
    weights[0].data.add_(1)
    assert torch.equal(first.refresh(weights)[0], torch.cat(weights))
    assert torch.equal(second.refresh(weights)[0], torch.cat(weights[::-1]))


def test_a_buffer_and_a_view_of_something_larger_stay_where_they_are() -> None:
    whole = torch.randn(128, 3)
    weights = [torch.nn.Parameter(whole[:64]), torch.nn.Parameter(torch.randn(32, 3))]
    store = PreparedStore()
    prepared = PreparedWeights((CONCAT,), NAMES, weights, store, untouched=())
    assert weights[0].data_ptr() == whole.data_ptr()
    assert store.bytes() == 96 * 3 * 4
    whole.add_(1)
    assert torch.equal(prepared.refresh(weights)[0], torch.cat(weights))
