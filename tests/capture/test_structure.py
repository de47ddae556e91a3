"""Taking Python values apart and putting them together again."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
import transformers
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.modeling_outputs import BaseModelOutput

from rewriter.capture.structure import difference, flatten, flatten_arguments, number_paths, tensor_class, unflatten
from rewriter.errors import CaptureError

scalars = st.none() | st.booleans() | st.text(max_size=3) | st.integers(-5, 5) | st.floats(allow_nan=False)
tensors = st.builds(torch.full, st.just((2,)), st.integers(0, 9))
values = st.recursive(
    scalars | tensors,
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=12,
)


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return a is b
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return type(a) is type(b) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


@settings(max_examples=100, deadline=None, derandomize=True)
@given(values)
def test_a_value_survives_the_round_trip(value: object) -> None:
    flat = flatten(value, what="value")
    hash(flat.structure)
    assert same(unflatten(flat.structure, flat.tensors, flat.numbers), value)


def test_a_tensor_in_two_places_is_listed_once() -> None:
    x, y = torch.zeros(2), torch.zeros(2)
    shared, separate = flatten([x, {"again": x}], what="value"), flatten([x, {"again": y}], what="value")
    assert len(shared.tensors) == 1
    assert shared.structure != separate.structure
    back = unflatten(shared.structure, shared.tensors, ())
    assert back[0] is back[1]["again"] is x


@pytest.mark.parametrize(("a", "b"), [(1, True), (1, 1.0), (0, False), ((1,), [1]), ({"a": 1}, OrderedDict(a=1))])
def test_equal_values_of_different_types_have_different_structures(a: object, b: object) -> None:
    assert flatten(a, what="value").structure != flatten(b, what="value").structure


def test_output_dataclasses_are_rebuilt() -> None:
    sample = torch.ones(1)
    for output in (
        UNet2DConditionOutput(sample=sample),
        BaseModelOutput(last_hidden_state=sample, hidden_states=(sample,)),
    ):
        flat = flatten(output, what="output")
        back = unflatten(flat.structure, flat.tensors, flat.numbers)
        assert type(back) is type(output)
        assert list(back.keys()) == list(output.keys())
        assert back[0] is sample


def test_an_unsupported_argument_is_named() -> None:
    with pytest.raises(CaptureError, match=r"argument options\['generator'\]\[0\] is a torch\..*Generator"):
        flatten_arguments({"sample": torch.zeros(1), "options": {"generator": [torch.Generator()]}})


def new_cache() -> Any:
    cache = transformers.DynamicCache()
    for layer in range(2):
        cache.update(torch.full((1, 2, 3, 4), 1.0 + layer), torch.full((1, 2, 3, 4), -1.0 - layer), layer)
    return cache


def test_a_cache_of_keys_and_values_is_rebuilt_where_it_is_returned() -> None:
    cache = new_cache()
    flat = flatten({"past": cache}, what="output", objects=True)
    assert hash(flat.structure) == hash(flatten({"past": new_cache()}, what="output", objects=True).structure)
    assert (len(flat.tensors), flat.numbers) == (4, ())
    back = unflatten(flat.structure, flat.tensors, ())["past"]
    assert type(back) is transformers.DynamicCache
    assert back is not cache
    assert vars(back).keys() == vars(cache).keys()
    for mine, theirs in zip(back.layers, cache.layers, strict=True):
        assert (type(mine), vars(mine)) == (type(theirs), vars(theirs))
    more = torch.ones(1, 2, 1, 4)
    for layer in range(3):
        assert all(map(torch.equal, back.update(more, more, layer), cache.update(more, more, layer)))
    assert back.get_seq_length() == cache.get_seq_length() == 4


class OwnCache(transformers.DynamicCache):
    pass


def test_a_cache_is_neither_an_argument_nor_of_another_class() -> None:
    with pytest.raises(CaptureError, match=r"argument past is a transformers\.cache_utils\.DynamicCache"):
        flatten_arguments({"past": new_cache()})
    with pytest.raises(CaptureError, match=r"output  is a .*OwnCache"):
        flatten(OwnCache(), what="output", objects=True)
    changed = new_cache()
    changed.layers.append(transformers.cache_utils.DynamicSlidingWindowLayer(8))
    with pytest.raises(CaptureError, match=r"output \.layers\[2\] is a .*DynamicSlidingWindowLayer"):
        flatten(changed, what="output", objects=True)


@pytest.mark.parametrize(
    ("found", "expected", "where"),
    [
        ({"a": [1, 2]}, {"a": [1, 2]}, None),
        ({"a": (None, True)}, {"a": (None, "b")}, ("['a'][1]", "True", "'b'")),
        (
            BaseModelOutput(last_hidden_state=torch.zeros(1)),
            BaseModelOutput(),
            (".last_hidden_state", "tensor 0", "None"),
        ),
        ([], [1], ("the result", "a list of 0", "a list of 1")),
        ({"a": 1}, {"b": 1}, ("the result", "a dict of 'a'", "a dict of 'b'")),
        ([None], [BaseModelOutput()], ("[0]", "None", "a BaseModelOutput")),
    ],
)
def test_the_first_difference_is_named(found: object, expected: object, where: object) -> None:
    a, b = (flatten(value, what="value").structure for value in (found, expected))
    assert difference(a, b) == where


def test_numbers_are_found_by_path() -> None:
    flat = flatten_arguments({"scale": 1.0, "nested": {"list": [2, True, 3.5]}, "none": None})
    assert flat.numbers == (1.0, 2, 3.5)
    assert list(number_paths(flat.structure)) == ["scale", "nested['list'][0]", "nested['list'][2]"]


def test_tensor_class_ignores_extents_but_not_channels_last() -> None:
    x = torch.zeros(2, 3, 4, 5)
    assert tensor_class(x) == tensor_class(torch.zeros(1, 8, 9, 9)) == tensor_class(x[:, 1:])
    assert tensor_class(x) != tensor_class(x.to(memory_format=torch.channels_last))
    assert tensor_class(x) != tensor_class(x.half())
    assert tensor_class(x) != tensor_class(x[0])
