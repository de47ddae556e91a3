"""Decoders that return their keys and values in a cache, as text encoders of pipelines do."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
import transformers
from small_nets import status

# Later releases of transformers call the argument and the field of results `cache`.
CACHE = "cache" if "cache" in inspect.signature(transformers.Qwen3Model.forward).parameters else "past_key_values"


@pytest.fixture
def decoder() -> Any:
    config = transformers.Qwen3Config(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    return transformers.Qwen3Model(config).eval()


def prompt(tokens: int, batch: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    ids = torch.randint(32, (batch, tokens), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def same(mine: Any, theirs: Any) -> None:
    assert type(mine) is type(theirs)
    assert list(mine) == list(theirs)
    torch.testing.assert_close(mine.last_hidden_state, theirs.last_hidden_state)
    torch.testing.assert_close(mine.hidden_states, theirs.hidden_states)
    cache, expected = mine[CACHE], theirs[CACHE]
    assert type(cache) is type(expected) is transformers.DynamicCache
    assert cache.get_seq_length() == expected.get_seq_length()
    for layer, other in zip(cache.layers, expected.layers, strict=True):
        assert vars(layer).keys() == vars(other).keys()
        torch.testing.assert_close([layer.keys, layer.values], [other.keys, other.values])


def test_a_cache_is_returned_as_eager_does(optimized: Any, decoder: Any) -> None:
    twin = copy.deepcopy(decoder)
    optimized(decoder)
    for tokens, batch in ((7, 1), (7, 1), (9, 1), (5, 2), (3, 1), (11, 3), (11, 3)):
        given = {**prompt(tokens, batch), "output_hidden_states": True}
        same(decoder(**given), twin(**given))
    part = status(decoder)
    assert (part.status, part.captures) == ("optimised", 1)
    assert part.eager_calls < part.calls


def test_each_call_returns_a_cache_of_its_own(optimized: Any, decoder: Any) -> None:
    optimized(decoder)
    given = prompt(6)
    decoder(**given)
    first, second = (decoder(**given)[CACHE] for _ in range(2))
    kept = second.layers[0].keys.clone()
    first.update(torch.ones(1, 1, 1, 8), torch.ones(1, 1, 1, 8), 0)
    assert (first.get_seq_length(), second.get_seq_length()) == (7, 6)
    assert torch.equal(second.layers[0].keys, kept)


def test_the_cache_of_a_graph_can_be_used_to_go_on(optimized: Any, decoder: Any) -> None:
    twin = copy.deepcopy(decoder)
    optimized(decoder)
    given = prompt(6)
    decoder(**given)
    next_token = torch.tensor([[3]])
    found, expected = (
        module(input_ids=next_token, output_hidden_states=True, **{CACHE: module(**given)[CACHE]})
        for module in (decoder, twin)
    )
    same(found, expected)
    assert found[CACHE].get_seq_length() == 7
    assert any(f"argument {CACHE} is a" in message for message in status(decoder).messages)
