"""Networks that take things out of the lists that they are given, or leave things there."""

# ruff: noqa: ARG001, ARG005 (what is called here has a signature given from outside)

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

import rewriter


class Net(torch.nn.Module):
    def __init__(self, body: Callable[..., Any]) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
        self.body = body

    def forward(self, x: torch.Tensor, items: Any, scale: float = 1.0) -> Any:
        return self.body(self.linear(x), items, scale)


def take(y: torch.Tensor, items: Any, scale: float) -> torch.Tensor:
    while len(items) > 1:
        y = y + items.pop(0) * scale
    return y


def remember(y: torch.Tensor, items: Any, scale: float) -> torch.Tensor:
    """Like the caches of video decoders: a counter, what the call before left, and marks."""
    index = items[0]
    before = items[1] if isinstance(items[1], torch.Tensor) else torch.zeros_like(y)
    items[1] = y
    items[2] = "seen"
    items[0] = index + 1
    return before + y * scale


def mark(y: torch.Tensor, items: Any, scale: float) -> torch.Tensor:
    items["count"] = 3
    items["last"] = y
    return y


def x(rows: int = 3) -> torch.Tensor:
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(rows))


def items_of(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else list(value)


def same(mine: Any, theirs: Any, given: list[Any] | None = None) -> None:
    """Equal, and what is left of what was given is that very tensor."""
    assert type(mine) is type(theirs)
    if isinstance(theirs, dict):
        assert list(mine) == list(theirs)
    assert len(mine) == len(theirs)
    for a, b in zip(items_of(mine), items_of(theirs), strict=True):
        if isinstance(b, list | tuple):
            same(a, b)
        elif isinstance(b, torch.Tensor):
            torch.testing.assert_close(a, b)
            assert (a is b) == any(b is each for each in given or ())
        else:
            assert (type(a), a) == (type(b), b)


@pytest.mark.parametrize(
    ("body", "items", "captures"),
    [
        (take, lambda rows: [x(rows), x(rows) + 1, x(rows) + 2], 1),
        (take, lambda rows: [], 1),
        # The counter becomes part of the key.
        (remember, lambda rows: [0, None, None], 2),
        (remember, lambda rows: [0, x(rows), None], 2),
        (mark, lambda rows: {"count": 0}, 2),
        (mark, lambda rows: {"last": x(rows)}, 1),
    ],
)
def test_lists_are_left_as_eager_leaves_them(optimized: Any, body: Any, items: Any, captures: int) -> None:
    module = Net(body).eval()
    twin = copy.deepcopy(module)
    optimized(module)
    for rows in (3, 3, 3, 5, 5):
        mine = items(rows)
        theirs, given = copy.copy(mine), items_of(mine)
        torch.testing.assert_close(module(x(rows), mine), twin(x(rows), theirs))
        same(mine, theirs, given)
    (part,) = rewriter.report(module).components.values()
    assert (part.status, part.captures) == ("optimised", captures)
    assert part.eager_calls < part.calls


def test_what_a_call_left_is_there_for_the_next(optimized: Any) -> None:
    module = Net(remember).eval()
    twin = copy.deepcopy(module)
    optimized(module)
    for _ in range(3):
        mine: list[Any] = [0, None, None]
        theirs = list(mine)
        for step in range(3):
            torch.testing.assert_close(module(x() + step, mine), twin(x() + step, theirs))
        same(mine, theirs)
    (part,) = rewriter.report(module).components.values()
    assert part.status == "optimised"


@pytest.mark.parametrize(
    ("body", "items"),
    [
        (lambda y, items, scale: (items[0].append(y), y)[1], lambda: [[]]),
        (lambda y, items, scale: (items[0].pop(), y)[1], lambda: ([1],)),
        (lambda y, items, scale: (items.append([y]), y)[1], list),
    ],
)
def test_deeper_changes_run_eagerly(optimized: Any, body: Any, items: Any) -> None:
    module = Net(body).eval()
    twin = copy.deepcopy(module)
    optimized(module)
    for _ in range(2):
        mine, theirs = items(), items()
        torch.testing.assert_close(module(x(), mine), twin(x(), theirs))
        same(mine, theirs)
    (part,) = rewriter.report(module).components.values()
    assert part.reason == "the call changes the argument items in more than the items of a list"


def test_a_number_in_a_list_that_only_counts_is_seen_to_change(optimized: Any) -> None:
    def count(y: torch.Tensor, items: Any, scale: float) -> torch.Tensor:
        items[0] += 1
        return y

    module = Net(count).eval()
    optimized(module)
    for _ in range(3):
        items = [4]
        module(x(), items)
        assert items == [5]
        assert type(items[0]) is int
