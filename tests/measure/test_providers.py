"""Which provider is chosen, what is left out and said, and what is known without computing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from op_cases import CASES, Case, drawer

from rewriter.measure import compiling, providers
from rewriter.measure.cache import TimingCache
from rewriter.ops import dispatch, registry
from rewriter.ops.dispatch import Choice

# Seconds of a call by each provider, as the clocks of this test read them, and of the host to launch it.
SECONDS: dict[str, float] = {}
HOST: dict[str, float] = {"seconds": 0.0}


class Clock:
    """Tells what `SECONDS` says of the provider that a call runs."""

    def __init__(self, call: Callable[[], Any], _device: str = "cuda", **_: object) -> None:
        ran.clear()
        call()
        self.provider = ran[-1]

    def seconds(self) -> float:
        timed.append(self.provider)
        return SECONDS[self.provider]


ran: list[str] = []
timed: list[str] = []


@pytest.fixture
def chooser(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> providers.ProviderChooser:
    monkeypatch.setenv("REWRITER_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(providers, "stopwatch", Clock)
    monkeypatch.setattr(providers, "launched_seconds", lambda call: (Clock(call).seconds(), HOST["seconds"]))
    SECONDS.clear()
    timed.clear()
    return providers.ProviderChooser(TimingCache("cpu"))


@pytest.fixture
def op() -> registry.Op:
    """`double`, with the providers that a test gives it."""
    return registry.Op(
        name="double", schema="double(Tensor x) -> Tensor", reference=reference, fake=reference, providers={}
    )


def reference(x: torch.Tensor) -> torch.Tensor:
    ran.append("torch")
    return x * 2


def provider(name: str, function: Callable[[torch.Tensor], torch.Tensor], seconds: float) -> registry.Provider:
    SECONDS[name] = seconds

    def run(x: torch.Tensor) -> torch.Tensor:
        ran.append(name)
        return function(x)

    return registry.Provider(fn=run, supports=lambda *_: None)


def choose(chooser: providers.ProviderChooser, op: registry.Op, x: torch.Tensor, **made: registry.Provider) -> Choice:
    op.providers.update(made)
    op.providers["torch"] = registry.Provider(fn=reference, supports=lambda *_: None)
    return chooser(op, (x,), dispatch.signature((x,)))


def test_the_fastest_is_chosen_and_kept(chooser: providers.ProviderChooser, op: registry.Op) -> None:
    SECONDS["torch"] = 3e-6
    x = torch.randn(8)
    found = choose(
        chooser, op, x, slow=provider("slow", lambda x: x * 2, 5e-6), fast=provider("fast", lambda x: x + x, 1e-6)
    )
    assert found.provider == "fast"
    timed.clear()
    assert chooser(op, (x,), dispatch.signature((x,))).provider == "fast"
    assert not timed


def test_a_provider_that_was_missing_is_timed_once_it_is_there(
    chooser: providers.ProviderChooser, op: registry.Op
) -> None:
    SECONDS["torch"] = 3e-6
    x = torch.randn(8)
    assert choose(chooser, op, x, early=provider("early", lambda x: x * 2, 2e-6)).provider == "early"
    late = provider("late", lambda x: x + x, 1e-6)
    assert choose(chooser, op, x, late=late).provider == "late"
    timed.clear()
    assert choose(chooser, op, x, late=late).provider == "late"
    assert not timed


def test_while_a_graph_is_recorded_nothing_is_timed_and_nothing_untimed_is_taken(
    chooser: providers.ProviderChooser, op: registry.Op, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    x = torch.randn(8)
    unsure = dataclasses.replace(provider("unsure", lambda x: x * 2, 1e-6), measured=True)
    assert choose(chooser, op, x, unsure=unsure).provider == "torch"
    sure = provider("sure", lambda x: x * 2, 1e-6)
    assert choose(chooser, op, x, unsure=unsure, sure=sure).provider == "sure"
    assert not timed


def test_the_reference_stays_where_nothing_is_faster(chooser: providers.ProviderChooser, op: registry.Op) -> None:
    SECONDS["torch"] = 1e-6
    assert choose(chooser, op, torch.randn(8), slow=provider("slow", lambda x: x * 2, 2e-6)).provider == "torch"


@pytest.mark.parametrize(
    "wrong",
    [lambda x: x * 2.1, lambda x: x * float("nan"), lambda x: (x * 2).index_fill(0, torch.tensor([0]), torch.inf)],
)
def test_a_wrong_result_is_left_out_and_said(
    chooser: providers.ProviderChooser, op: registry.Op, wrong: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    SECONDS["torch"] = 3e-6
    assert choose(chooser, op, torch.randn(8) + 1, wrong=provider("wrong", wrong, 1e-6)).provider == "torch"
    assert "off by" in chooser.problems["double by wrong"]


def test_after_a_wrong_one_the_next_is_compared_and_slower_ones_are_not(
    chooser: providers.ProviderChooser, op: registry.Op, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[str] = []
    distance = providers._distance
    monkeypatch.setattr(providers, "_distance", lambda *given: (compared.append(ran[-1]), distance(*given))[1])
    SECONDS["torch"] = 9e-6
    made = {
        "wrong": provider("wrong", lambda x: x * 3, 1e-6),
        "right": provider("right", lambda x: x * 2, 2e-6),
        "slow": provider("slow", lambda x: x * 3, 3e-6),
    }
    assert choose(chooser, op, torch.randn(8) + 1, **made).provider == "right"
    assert compared == ["wrong", "right"]
    assert list(chooser.problems) == ["double by wrong"]


class CompilerError(Exception):
    """As Triton's, which are no RuntimeError."""


@pytest.mark.parametrize("error", [RuntimeError, CompilerError, OSError])
def test_one_that_raises_is_left_out_and_said(
    chooser: providers.ProviderChooser, op: registry.Op, error: type[Exception]
) -> None:
    def broken(_: torch.Tensor) -> torch.Tensor:
        raise error("out of shared memory")

    SECONDS["torch"] = 3e-6
    assert choose(chooser, op, torch.randn(8), broken=provider("broken", broken, 1e-6)).provider == "torch"
    assert "out of shared memory" in chooser.problems["double by broken"]


def test_a_long_call_that_is_far_behind_is_run_once(chooser: providers.ProviderChooser, op: registry.Op) -> None:
    SECONDS["torch"] = 9e-3
    best, behind = provider("best", lambda x: x * 2, 1e-3), provider("behind", lambda x: x * 2, 2e-3)
    assert choose(chooser, op, torch.randn(8), best=best, behind=behind).provider == "best"
    assert timed.count("behind") == 1
    assert timed.count("best") > 1


@pytest.mark.parametrize(("ratio", "samples"), [(1.1, 1 + 3), (1.2, 1 + 1)])
def test_of_one_that_is_behind_one_replay_is_enough(
    chooser: providers.ProviderChooser, op: registry.Op, ratio: float, samples: int
) -> None:
    SECONDS["torch"] = 9e-5
    made = {"best": provider("best", lambda x: x * 2, 1e-5), "next": provider("next", lambda x: x * 2, ratio * 1e-5)}
    assert choose(chooser, op, torch.randn(8), **made).provider == "best"
    assert (timed.count("best"), timed.count("next")) == (1 + 3, samples)


@pytest.mark.parametrize(("host", "replayed"), [(1e-4, False), (5e-3, True)])
def test_long_calls_that_are_launched_in_time_are_not_recorded(
    chooser: providers.ProviderChooser,
    op: registry.Op,
    monkeypatch: pytest.MonkeyPatch,
    host: float,
    replayed: bool,
) -> None:
    recorded: list[str] = []

    class Recording(Clock):
        def seconds(self) -> float:
            recorded.append(self.provider)
            return super().seconds()

    monkeypatch.setattr(providers, "stopwatch", Recording)
    monkeypatch.setitem(HOST, "seconds", host)
    SECONDS["torch"] = 5e-3
    assert choose(chooser, op, torch.randn(8), long=provider("long", lambda x: x * 2, 4e-3)).provider == "long"
    assert set(recorded) == ({"long", "torch"} if replayed else set())
    assert timed.count("long") > 1


@pytest.fixture
def at_another_size(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Says which provider of `double` won for 9 elements."""
    monkeypatch.setattr(dispatch, "CHOSEN", {})

    def won(name: str) -> None:
        dispatch.CHOSEN["double", dispatch.signature((torch.empty(9),))] = Choice(name)

    return won


def test_another_size_is_timed_with_what_won_at_the_nearest(
    chooser: providers.ProviderChooser, op: registry.Op, at_another_size: Callable[[str], None]
) -> None:
    SECONDS["torch"] = 3e-6
    names = {"first": 2e-6, "second": 1e-6, "third": 5e-7}
    made = {name: provider(name, lambda x: x * 2, seconds) for name, seconds in names.items()}
    chooser.near = True
    at_another_size("second")
    x = torch.randn(8)
    assert choose(chooser, op, x, **made).provider == "second"
    assert set(timed) == {"first", "second"}
    timed.clear()
    assert choose(chooser, op, x, **made).provider == "second"
    assert not timed
    # What was chosen from some does not hold where all are wanted.
    chooser.near = False
    assert choose(chooser, op, x, **made).provider == "third"
    chooser.near = True
    assert choose(chooser, op, x, **made).provider == "third"


@pytest.mark.parametrize("right", [True, False])
def test_the_only_one_worth_timing_is_tried(
    chooser: providers.ProviderChooser, op: registry.Op, at_another_size: Callable[[str], None], right: bool
) -> None:
    SECONDS["torch"] = 3e-6
    chooser.near = True
    at_another_size("first")
    made = {"first": provider("first", lambda x: x * 2 if right else x * 3, 1e-6)}
    made["second"] = provider("second", lambda x: x * 2, 1e-7)
    assert choose(chooser, op, torch.randn(8), **made).provider == ("first" if right else "torch")
    assert not timed


@pytest.mark.parametrize("limit", [2**24, 5])
def test_the_distance_is_the_same_in_parts(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(providers, "_PART", limit)
    torch.manual_seed(0)
    expected = torch.randn(2, 7, 3).transpose(0, 1)
    found = expected + 0.1 * torch.randn(7, 2, 3)
    exact = float((found - expected).norm() / expected.norm())
    assert providers._distance(found, expected) == pytest.approx(exact, rel=1e-6)
    expected[3, 1, 2] = torch.inf
    assert providers._distance(found, expected) < 0.2
    found[0, 0, 0] = torch.nan
    assert not providers._distance(found, expected) < 1e30


@pytest.mark.parametrize("case", CASES, ids=str)
def test_zeros_are_laid_out_as_the_results(case: Case) -> None:
    arguments = case.arguments(drawer(torch.float32))
    op = registry.find(case.op)
    expected, found = op.reference(*arguments), compiling._zeros(op, {}, *arguments)
    pairs = zip(*([each] if isinstance(each, torch.Tensor) else each for each in (expected, found)), strict=True)
    for one, other in pairs:
        assert (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
        # Of a dimension of one element the stride means nothing.
        strides = ([s for s, n in zip(x.stride(), x.shape, strict=True) if n > 1] for x in (one, other))
        assert len({tuple(each) for each in strides}) == 1


def test_the_form_of_a_result_is_asked_for_once(op: registry.Op) -> None:
    asked: list[torch.Tensor] = []

    def fake(x: torch.Tensor) -> torch.Tensor:
        asked.append(x)
        return torch.empty_like(x)

    op = dataclasses.replace(op, fake=fake)
    known: dict[str, Any] = {}
    shapes = [(2, 3), (2, 3), (4, 3)]
    assert [tuple(compiling._zeros(op, known, torch.ones(shape)).shape) for shape in shapes] == shapes
    assert len(asked) == 2


def test_a_call_is_compiled_for_once_and_what_serves_unmeasured_first(
    op: registry.Op, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rewriter.ops.triton.ahead.task", lambda *call: call[2]["rows"])
    choices = [Choice("triton", {"rows": rows}) for rows in (4, 8)]
    monkeypatch.setattr(dispatch, "first_able", lambda *_: choices[1])
    added: list[tuple[int, bool]] = []
    collecting = compiling._Collecting(
        lambda *call: [] if call[2] == "known" else [*choices, Choice("torch")],
        lambda task, *, urgent: added.append((int(task), urgent)),
    )
    for collect in (collecting.first, collecting.every):
        for _ in range(2):
            assert collect(op, (torch.ones(2),), "a").provider == "zeros"
        assert collect(op, (torch.ones(2),), "known").provider == "zeros"
    # Once for what serves unmeasured, then for all.
    assert added == [(8, True), (8, True), (4, False), (8, True)]


def test_the_block_runs_while_kernels_are_compiled(op: registry.Op, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what the calls give in the place of a GPU and of the processes that compile."""
    events: list[str] = []

    class Compilation:
        def __init__(self, *_: Any, **__: Any) -> None:
            self.tasks: list[str] = []

        def add(self, task: str, *, urgent: bool) -> None:
            self.tasks.append(task)
            events.append(f"{task}{' urgent' if urgent else ''}")

        def wait_for_urgent(self) -> None:
            events.append("urgent are compiled")

        def wait(self) -> None:
            events.append("all are compiled")

    ahead = pytest.importorskip("rewriter.ops.triton.ahead", reason="Triton is not installed")
    monkeypatch.setattr(ahead, "Compilation", Compilation)
    monkeypatch.setattr(ahead, "task", lambda *call: f"{call[3][0].numel()} {call[2]['rows']}")
    monkeypatch.setattr(compiling, "_this_gpu", lambda: ahead.Target(90, 132))
    monkeypatch.setattr(dispatch.providers, "load", dict)
    monkeypatch.setattr(dispatch, "_on_gpu", lambda _: True)
    monkeypatch.setattr(dispatch, "first_able", lambda *_: Choice("triton", {"rows": 4}))
    monkeypatch.setattr(dispatch, "candidates", lambda *_: [Choice("triton", {"rows": rows}) for rows in (4, 8)])
    served = dispatch.Dispatcher(op)
    op.providers["triton"] = provider("triton", lambda x: x, 1e-3)
    monkeypatch.setitem(registry.OPS, op.name, op)

    def failing() -> None:
        raise RuntimeError("as it will where it is timed")

    calls = [lambda: served(torch.ones(2)), failing]
    first = [lambda: served(torch.ones(3))]
    with compiling.compiled(calls, first, cache=TimingCache("cpu")) as first_compiled:
        events.append("block")
        first_compiled()
    # What serves unmeasured is asked for twice, and compiled once.
    collected = ["3 4 urgent", "2 4 urgent", "2 4 urgent", "2 8"]
    assert events == [*collected, "block", "urgent are compiled", "all are compiled"]


def test_zeros_are_not_provided_beyond_their_use() -> None:
    before = {name: list(op.providers) for name, op in registry.OPS.items()}
    with compiling._zeros_provided():
        reason = registry.find("attention").providers["zeros"].supports()
        assert reason is not None
    assert {name: list(op.providers) for name, op in registry.OPS.items()} == before
