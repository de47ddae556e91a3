"""Weights that only their quantised form is read of leave the memory that they were in, and come back."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F

import rewriter
from rewriter.errors import VerificationError
from rewriter.graph import prepare
from rewriter.graph.prepare import Prepared
from rewriter.language import RuleSet, load_rules
from rewriter.runtime import building, stowing

STOWED: list[torch.Tensor] = []


def elsewhere(tensor: torch.Tensor) -> torch.Tensor:
    placed = tensor.clone()
    STOWED.append(placed)
    return placed


@pytest.fixture(autouse=True)
def another_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    STOWED.clear()
    monkeypatch.setattr(stowing.Stowing.__init__, "__defaults__", (elsewhere,))


class Attention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (torch.nn.Linear(128, 128) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (layer(x)[:, None] for layer in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v)[:, 0]) + x


def rules() -> RuleSet:
    """The pack on any device and in f32, after the merge of projections."""
    lossy = (
        dataclasses.replace(
            rule, devices=(), where={k: dataclasses.replace(c, dtype=()) for k, c in rule.where.items()}
        )
        for rule in load_rules("int8")
    )
    kept = (rule for rule in load_rules() if rule.id in ("merge-projections", "linear-add"))
    return RuleSet.ordered((*kept, *lossy))


@pytest.fixture
def optimised() -> tuple[Attention, Attention, torch.Tensor]:
    """An optimised module that has run, its untouched twin, and an input."""
    torch.manual_seed(0)
    module = Attention().eval().requires_grad_(False)
    twin, x = copy.deepcopy(module), torch.randn(2, 8, 128)
    rewriter.optimize(module, rules=rules(), measure=False, strict=True)
    for _ in range(2):
        module(x)
    return module, twin, x


def apart(module: Attention, twin: Attention, x: torch.Tensor) -> float:
    found, wanted = module(x), twin(x)
    return float((found - wanted).norm() / wanted.norm())


def test_weights_wait_elsewhere_with_their_values(optimised: tuple[Attention, Attention, torch.Tensor]) -> None:
    module, twin, x = optimised
    assert [list(each.shape) for each in STOWED] == [[384, 128], [128, 128]]
    places = [each.untyped_storage().data_ptr() for each in STOWED]
    layers = (module.q, module.k, module.v, module.out)
    assert [layer.weight.untyped_storage().data_ptr() for layer in layers] == [*places[:1] * 3, places[1]]
    for (name, one), other in zip(module.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    assert 0 < apart(module, twin, x) < 0.02


@pytest.mark.parametrize("measure", [False, True])
def test_each_weight_leaves_before_the_next_rows_are_made(monkeypatch: pytest.MonkeyPatch, measure: bool) -> None:
    """A network whose weights just fit has no room for the rows of all of them beside these."""
    made: set[Prepared] = set()
    beside: list[int] = []
    run = prepare.run

    def noted(recipe: Prepared, known: Sequence[torch.Tensor]) -> torch.Tensor:
        if recipe.function == "rows_i8":
            made.add(recipe)
            beside.append(len(made) - len(STOWED))
        return run(recipe, known)

    monkeypatch.setattr(prepare, "run", noted)
    module = Attention().eval().requires_grad_(False)
    rewriter.optimize(module, rules=rules(), measure=measure, strict=True)
    module(torch.randn(2, 8, 128))
    assert len(STOWED) == 2
    assert max(beside) == 1


def test_a_capture_that_fails_brings_them_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise VerificationError("wrong")

    monkeypatch.setattr(building, "judge", fail)
    module = Attention().eval().requires_grad_(False)
    twin, x = copy.deepcopy(module), torch.randn(2, 8, 128)
    rewriter.optimize(module, rules=rules(), measure=False)
    assert apart(module, twin, x) == 0
    assert len(STOWED) == 2
    places = {each.untyped_storage().data_ptr() for each in STOWED}
    assert all(each.untyped_storage().data_ptr() not in places for each in module.parameters())


def test_what_is_written_is_seen(optimised: tuple[Attention, Attention, torch.Tensor]) -> None:
    module, twin, x = optimised
    for each in (module, twin):
        each.q.weight.mul_(3)
        each.v.weight.neg_()
        each.out.weight.data = each.out.weight.data * 0.5
    assert apart(module, twin, x) < 0.02
    # What was set anew has been stowed anew.
    assert len(STOWED) == 3
    assert apart(module, twin, torch.randn(3, 5, 128)) < 0.02


def test_another_capture_leaves_them_where_they_are(optimised: tuple[Attention, Attention, torch.Tensor]) -> None:
    module, _, x = optimised
    module(x[0][None].double().float())
    module(x)
    assert len(STOWED) == 2


def test_restoring_brings_them_back(optimised: tuple[Attention, Attention, torch.Tensor]) -> None:
    module, twin, x = optimised
    rewriter.restore(module)
    places = {each.untyped_storage().data_ptr() for each in STOWED}
    assert all(each.untyped_storage().data_ptr() not in places for each in module.parameters())
    assert apart(module, twin, x) == 0


def test_what_cannot_be_stowed_stays() -> None:
    x = torch.ones(3)
    assert stowing.in_host_memory(x) is x
