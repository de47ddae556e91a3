"""How many rows there are may depend on what a tensor holds: a graph must not fix that to the first call's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

import rewriter
from rewriter.runtime.session import components_of

Body = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Net(torch.nn.Module):
    """A linear layer, and what is made of its rows by where marks are not negative."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
        self.body = body

    def forward(self, x: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
        return self.body(self.linear(x), marks)


def ranked(rows: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
    (found,) = torch.where(marks >= 0)
    ranks = torch.zeros(len(rows))
    ranks[found] = torch.arange(1.0, len(found) + 1)
    return rows + ranks[:, None]


def empty(rows: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
    chosen = rows[marks >= 0]
    return rows * 2 if chosen.shape[0] == 0 else rows + chosen.mean(0)


def distinct(rows: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
    return rows * len(torch.unique(marks))


def counted(rows: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
    return rows + sum(1 for _ in torch.masked_select(marks, marks >= 0))


def few(rows: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
    kept = torch.nonzero(marks >= 0)
    return rows if kept.numel() < 3 else rows - 1


def repeated(rows: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
    several = rows.repeat_interleave(marks.clamp(min=0), 0)
    return rows + torch.full((len(several),), 0.5).sum()


def one_hot(rows: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
    return rows + len(torch.nn.functional.one_hot(marks.clamp(min=0)).t())


def in_the_graph(rows: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
    found = torch.nonzero(marks >= 0).flatten()
    return rows + torch.ones(found.numel()).sum() + found.size(0)


def filled_up(rows: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
    """As Mochi's attention leaves out what fills a prompt up: the sum is as large as the rows, whatever is chosen."""
    chosen = rows[torch.nonzero(marks >= 0).flatten()]
    total = rows + torch.nn.functional.pad(chosen, (0, 0, 0, rows.size(0) - chosen.size(0)))
    return torch.stack([total[index] * index for index in range(total.shape[0])])


def written(rows: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
    """As tokens are scattered back to their places."""
    places = torch.zeros_like(rows)
    places[marks >= 0] = rows[marks >= 0]
    return places * len(places)


FIXED: tuple[Body, ...] = (ranked, empty, distinct, counted, few, repeated, one_hot)
FREE: tuple[Body, ...] = (in_the_graph, filled_up, written)
SOME, ALL, NONE = torch.tensor([3, -1, 0, 0, -1, 2]), torch.tensor([1, 2, 0, 3, 3, 1]), torch.full((6,), -1)
ORDERS = {"some first": (SOME, ALL, NONE), "none first": (NONE, SOME, ALL), "all first": (ALL, NONE, SOME)}


def check(body: Body, order: tuple[torch.Tensor, ...]) -> Any:
    torch.manual_seed(0)
    net = Net(body).eval().requires_grad_(False)
    twin = copy.deepcopy(net)
    rewriter.optimize(net, measure=False)
    for marks in order * 2:
        x = torch.randn(6, 4)
        torch.testing.assert_close(net(x, marks), twin(x, marks))
    (part,) = rewriter.report(net).components.values()
    return part


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("body", FIXED)
def test_a_number_of_rows_that_code_reads_is_not_fixed(body: Body, order: str) -> None:
    part = check(body, ORDERS[order])
    assert part.status == "eager"
    assert "depends on the elements of a tensor at test_extents.py" in str(part.reason)


@pytest.mark.parametrize("body", FREE)
def test_one_that_stays_in_the_graph_is_no_obstacle(body: Body) -> None:
    part = check(body, (SOME, ALL, SOME))
    assert (part.status, part.captures) == ("optimised", 1)


def test_a_length_that_code_reads_is_compared_with_eager_at_each_size() -> None:
    net = Net(lambda rows, marks: rows + marks.sum() * len(rows)).eval().requires_grad_(False)
    twin = copy.deepcopy(net)
    rewriter.optimize(net, measure=False)
    for rows in (6, 5, 4, 3, 2, 7, 6, 5):
        x = torch.randn(rows, 4)
        torch.testing.assert_close(net(x, SOME), twin(x, SOME))
    (component,) = components_of(net).values()
    assert all(program.recording.reads_shapes for program in component.programs)
