"""What pays is kept, what does not is not, and a timing is made on what the graph really gets."""

from __future__ import annotations

import contextlib
import itertools
import json
import types
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rewriter import torch_ir
from rewriter.graph import engine, prepare
from rewriter.graph.canonical import canonicalise
from rewriter.graph.conditions import Target
from rewriter.graph.prepare import Prepared
from rewriter.language import RuleSet, load_rules
from rewriter.measure import cache, choice, region, regions, timing, whole
from rewriter.measure.region import Pair, TensorPlan
from rewriter.measure.timing import Timing

CPU = Target(device="cpu")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REWRITER_CACHE", str(tmp_path))
    return tmp_path


class Norms(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.GroupNorm(2, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.silu(self.norm(F.dropout(x, 0.0, False))).relu()


class Crossing(torch.nn.Module):
    """Attention whose keys and values are longer than its queries."""

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        heads = (tensor.transpose(1, 2) for tensor in (q + 1, k + 1, v + 1))
        return F.scaled_dot_product_attention(*heads).transpose(1, 2).neg()


def traced(module: torch.nn.Module, *example: torch.Tensor) -> tuple[torch_ir.Graph, list[torch.Tensor]]:
    graph, weights = torch_ir.trace(module.eval(), example)
    canonicalise(graph)
    return graph, weights


def fixed(before: float, after: float) -> Callable[..., Timing]:
    return lambda *_: Timing(before=before, after=after)


def kept(graph: torch_ir.Graph, weights: int, rules: RuleSet) -> dict[str, bool]:
    found = choice.choose(graph, rules, weights=weights, target=CPU)
    return {done.rule: done.kept for done in found.rewritten.rewrites}


@pytest.mark.parametrize(("before", "after", "stays"), [(10.0, 5.0, True), (10.0, 9.9, False), (10.0, 20.0, False)])
def test_only_what_is_faster_is_kept(
    monkeypatch: pytest.MonkeyPatch, before: float, after: float, *, stays: bool
) -> None:
    monkeypatch.setattr(regions, "compare", fixed(before, after))
    graph, weights = traced(Norms(), torch.randn(2, 8, 4, 4))
    found = kept(graph, len(weights), RuleSet((load_rules()["group-norm-silu"], load_rules()["dropout"])))
    assert found == {"dropout": True, "group-norm-silu": stays}


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        ("failed.\nTraceback of TorchScript (most recent call last):\n  %y\nRuntimeError: no kernel\n", "no kernel"),
        ("", "RuntimeError"),
    ],
)
def test_what_cannot_be_timed_is_not_kept_and_says_why(
    monkeypatch: pytest.MonkeyPatch, message: str, cause: str
) -> None:
    def compare(*_: Any) -> Timing:
        raise RuntimeError(message)

    monkeypatch.setattr(regions, "compare", compare)
    graph, weights = traced(Norms(), torch.randn(2, 8, 6))
    rules = RuleSet((load_rules()["group-norm-silu"],))
    found = choice.choose(graph, rules, weights=len(weights), target=CPU)
    (said,) = found.unmeasurable
    assert said.startswith(f"group-norm-silu: {cause} (first at ")
    assert {done.rule: done.kept for done in found.rewritten.rewrites}["group-norm-silu"] is False


def test_one_cause_in_many_places_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each place was a line with another name of a value: sixty of them for one fault."""

    def plan(cutter: Any, value: Any) -> Any:
        value.facts = None
        return cutter.tensor(value)

    monkeypatch.setattr(region._Cutter, "plan", plan)
    module = torch.nn.Sequential(*(layer for _ in range(3) for layer in (torch.nn.GroupNorm(2, 8), torch.nn.SiLU())))
    graph, weights = traced(module, torch.randn(2, 8, 6))
    rules = RuleSet((load_rules()["group-norm-silu"],))
    found = choice.choose(graph, rules, weights=len(weights), target=CPU)
    assert [said.partition(" (first at ")[0] for said in found.unmeasurable] == [
        "group-norm-silu: the shape of an input is not known",
        "group-norm-silu: the shape of a result of rewriter::group_norm_silu is not known",
    ]
    assert found.unmeasurable[1].endswith(", in 2 places)")
    assert "places" not in found.unmeasurable[0]


def test_inputs_have_the_shapes_that_were_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    # Values were once told apart by names that copying a graph gives anew: keys got the shape of queries, and cuDNN's
    # attention does not raise for that, it crashes.
    shapes: list[list[tuple[int, ...]]] = []

    def timed(_self: Any, pair: Pair, _known: Any) -> Timing:
        for side in (pair.before, pair.after):
            shapes.append([plan.shape for plan in side.plans if isinstance(plan, TensorPlan)])
        return Timing(before=2.0, after=1.0)

    monkeypatch.setattr(regions.Regions, "time", timed)
    q, kv = torch.randn(2, 5, 3, 4), torch.randn(2, 9, 3, 4)
    graph, weights = traced(Crossing(), q, kv, kv + 1)
    assert kept(graph, len(weights), RuleSet((load_rules()["attention-tokens"],))) == {"attention-tokens": True}
    assert shapes == [[(2, 5, 3, 4), (2, 9, 3, 4), (2, 9, 3, 4)]] * 2


class Merged(torch.nn.Module):
    """Attention whose three projections become one, so that what it reads are parts of a wider tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (torch.nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = (layer(x).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        return F.scaled_dot_product_attention(*heads).transpose(1, 2).neg()


def test_inputs_lie_as_they_do_after_the_other_rewrites(monkeypatch: pytest.MonkeyPatch) -> None:
    """What copies values, or reads them badly, takes longer where they have gaps: Flux's `cat` eight times as long."""
    strides: list[list[tuple[int, ...]]] = []

    def timed(_self: Any, pair: Pair, _known: Any) -> Timing:
        if any("attention" in node.kind() for node in pair.after.graph.nodes()):
            for region in (pair.before, pair.after):
                strides.append([plan.strides for plan in region.plans if isinstance(plan, TensorPlan)])
        return Timing(before=2.0, after=1.0)

    monkeypatch.setattr(regions.Regions, "time", timed)
    graph, weights = traced(Merged(), torch.randn(2, 5, 8))
    rules = RuleSet(tuple(load_rules()[name] for name in ("merge-projections", "attention-tokens")))
    assert kept(graph, len(weights), rules) == {"merge-projections": True, "attention-tokens": True}
    assert strides == [[(120, 24, 4, 1)] * 3] * 2


def test_the_fastest_whole_graph_is_taken_and_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regions, "compare", fixed(10.0, 5.0))
    x = torch.randn(2, 8, 4, 4)
    graph, weights = traced(Norms(), x)
    rules = RuleSet((load_rules()["group-norm-silu"],))
    timed: list[float] = []

    def best_of(make: Callable[[], Callable[[], Any]], _: str) -> float:
        assert make()().shape == x.shape
        # The graph as it is comes first, and is the fastest.
        timed.append(0.5 if not timed else 1.0)
        return timed[-1]

    monkeypatch.setattr(whole, "best_of", best_of)
    for _ in range(2):
        found = choice.choose(graph, rules, weights=len(weights), target=CPU, arguments=[x, *weights])
        assert [done.kept for done in found.rewritten.rewrites] == [False]
    # Two turns for the first; the other is far behind after one.
    assert timed == [0.5, 1.0, 1.0]


def test_what_takes_the_place_of_a_loser_is_compiled_before_it_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 8, 4, 4)
    graph, weights = traced(Norms(), x)
    events: list[str] = []

    def compare(*_: Any) -> Timing:
        events.append("timed")
        return Timing(before=10.0, after=20.0)

    @contextlib.contextmanager
    def compiled(calls: Any, *_: Any, **__: Any) -> Iterator[Callable[[], None]]:
        events.append(f"compiled {[tuple(call().shape) for call in calls]}")
        yield lambda: None

    monkeypatch.setattr(regions, "compare", compare)
    monkeypatch.setattr(choice, "compiled", compiled)
    monkeypatch.setattr(whole, "best_of", lambda *_: 1.0)
    # The norm alone, where its fusion with the activation loses.
    rules = RuleSet(tuple(load_rules()[name] for name in ("group-norm-silu", "group-norm")))
    target = Target(device="cuda", sm=90)
    inputs = whole.Inputs([x, *weights], len(weights))
    choice._Choice(rules, len(weights), target, cache.TimingCache("cpu"), inputs).choose(graph)
    shapes = [tuple(x.shape)]
    assert events == [f"compiled {2 * shapes}", "timed", f"compiled {shapes}", "timed", "compiled []"]


@pytest.mark.parametrize(
    ("seconds", "turns"),
    [
        pytest.param({"a": 0.5, "b": 0.51}, "ab", id="long"),
        pytest.param({"a": 1e-3, "b": 1.1e-3, "c": 2e-3}, "abcab", id="short, and one far behind"),
    ],
)
def test_long_graphs_are_timed_once(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float], turns: str) -> None:
    """On a GPU, where they take the same time again and again."""
    timed: list[str] = []

    def best_of(make: Callable[[], str], _: str) -> float:
        timed.append(make())
        return seconds[timed[-1]]

    monkeypatch.setattr(whole, "best_of", best_of)
    monkeypatch.setattr(whole.Inputs, "call", lambda _, candidate: candidate.graph)
    candidates: Any = [types.SimpleNamespace(graph=name) for name in seconds]
    assert whole.fastest(candidates, whole.Inputs([], 0), "cuda", cache.TimingCache("cpu")).graph == "a"
    assert "".join(timed) == turns


def spoiling(weights: Sequence[torch.Tensor]) -> Callable[[Sequence[Prepared]], list[torch.Tensor]]:
    """Derives weights, and spoils what was given for other recipes before."""
    given: list[torch.Tensor] = []

    def derive(recipes: Sequence[Prepared], _: Collection[int]) -> list[torch.Tensor]:
        for tensor in given:
            tensor.fill_(torch.nan)
        known = [weight.detach().clone() for weight in weights]
        for recipe in recipes:
            known.append(prepare.run(recipe, known).clone())
        given[:] = known[len(weights) :]
        return list(given)

    return derive


def convolutions() -> tuple[torch.nn.Module, torch.Tensor]:
    return torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3), torch.nn.Conv2d(8, 4, 3)), torch.randn(1, 4, 9, 9)


def test_candidates_have_their_weights_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regions, "compare", fixed(10.0, 5.0))
    module, x = convolutions()
    graph, weights = traced(module, x)

    def best_of(make: Callable[[], Callable[[], Any]], _: str) -> float:
        torch.testing.assert_close(make()(), module(x), rtol=1e-4, atol=1e-5)
        return 1.0

    monkeypatch.setattr(whole, "best_of", best_of)
    rules = RuleSet((load_rules()["conv-channels-last"],))
    found = choice.choose(
        graph, rules, weights=len(weights), target=CPU, arguments=[x, *weights], derive=spoiling(weights)
    )
    assert {done.rule for done in found.rewritten.rewrites} == {"conv-channels-last"}


def test_what_is_compiled_ahead_has_its_weights_when_its_turn_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = convolutions()
    graph, weights = traced(module, x)
    results: list[torch.Tensor] = []

    @contextlib.contextmanager
    def compiled(every: Any, first: Any, **_: Any) -> Iterator[Callable[[], None]]:
        with torch.no_grad():
            results.extend(call() for call in first)
            results.extend(call() for call in every)
        yield lambda: None

    monkeypatch.setattr(choice, "compiled", compiled)
    rules = RuleSet((load_rules()["conv-channels-last"],))
    inputs = whole.Inputs([x, *weights], len(weights), spoiling(weights))
    target = Target(device="cuda", sm=90)
    chooser = choice._Choice(rules, len(weights), target, cache.TimingCache("cpu"), inputs)
    plain = chooser.regions(engine.rewrite(graph, RuleSet(()), weights=len(weights), target=target), rules, "layout")
    with chooser.compile_ahead(plain, plain.base):
        pass
    # The whole graph without the rule, the whole graph with it, a region for each convolution.
    assert [tuple(result.shape) for result in results] == [(1, 4, 5, 5), (1, 4, 5, 5), (1, 8, 7, 7), (1, 4, 5, 5)]
    assert not any(result.isnan().any() for result in results)
    for result in results[:2]:
        torch.testing.assert_close(result, module(x), rtol=1e-4, atol=1e-5)


def test_graphs_are_timed_while_what_others_need_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3), torch.nn.GroupNorm(2, 8), torch.nn.SiLU())
    x = torch.randn(1, 4, 9, 9)
    graph, weights = traced(module, x)
    events: list[str] = []

    @contextlib.contextmanager
    def compiled(*_: Any, **__: Any) -> Iterator[Callable[[], None]]:
        events.append("began")
        yield lambda: events.append("first are compiled")
        events.append("all are compiled")

    def best_of(make: Callable[[], Callable[[], Any]], _: str) -> float:
        events.append("whole graph")
        make()()
        return 1.0

    def compare(*_: Any) -> Timing:
        events.append("region")
        return Timing(before=10.0, after=5.0)

    monkeypatch.setattr(choice, "compiled", compiled)
    monkeypatch.setattr(choice, "record_layouts", lambda *_: None)
    monkeypatch.setattr(whole, "best_of", best_of)
    monkeypatch.setattr(regions, "compare", compare)
    rules = RuleSet(tuple(load_rules()[name] for name in ("conv-channels-last", "group-norm-silu")))
    inputs = whole.Inputs([x, *weights], len(weights))
    target = Target(device="cuda", sm=90)
    with torch.no_grad():
        choice._Choice(rules, len(weights), target, cache.TimingCache("cpu"), inputs).choose(graph)
    # As it was, then in both memory orders.
    timed = ["began", "whole graph", "first are compiled", "whole graph", "whole graph", "all are compiled"]
    assert events[: len(timed)] == timed
    assert "region" in events
    assert "region" not in events[: len(timed)]


@pytest.mark.parametrize(
    ("device", "after", "pairs"),
    [("cuda", 1.2e-3, 2), ("cuda", 0.8e-3, 2), ("cuda", 1.1e-3, 7), ("cpu", 1.2e-3, 7), ("cpu", 1.6e-3, 2)],
)
def test_what_is_clear_after_two_pairs_is_not_timed_longer(
    monkeypatch: pytest.MonkeyPatch, device: str, after: float, pairs: int
) -> None:
    taken: list[float] = []

    class Watch:
        def __init__(self, seconds: float) -> None:
            self._seconds = seconds

        def seconds(self) -> float:
            taken.append(self._seconds)
            return self._seconds

    monkeypatch.setattr(timing, "stopwatch", lambda function, _: Watch(function()))
    found = timing.compare(lambda: 1e-3, lambda: after, device)
    assert len(taken) == 2 * pairs
    assert found == Timing(before=1e-3 * 1e6, after=after * 1e6)


@pytest.mark.parametrize(("seconds", "samples"), [(0.7, 1), (0.05, 6)], ids=["long", "short"])
def test_a_long_whole_graph_is_sampled_once(monkeypatch: pytest.MonkeyPatch, seconds: float, samples: int) -> None:
    taken: list[float] = []
    clock = itertools.count(0.0, 0.7 if seconds > 0.1 else 1e-3)

    class Watch:
        def seconds(self) -> float:
            taken.append(seconds)
            return seconds

    monkeypatch.setattr(timing, "stopwatch", lambda *_, **__: Watch())
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    assert timing.best_of(lambda: lambda: None, "cuda") == seconds
    assert len(taken) == samples


def test_random_state_is_left_alone() -> None:
    graph, weights = traced(Norms(), torch.randn(2, 8, 4, 4))
    before = torch.random.get_rng_state()
    choice.choose(graph, load_rules(), weights=len(weights), target=CPU)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', '{"format": 1, "machine": {}, "timings": 3}'])
def test_a_corrupt_or_foreign_cache_is_rebuilt(content: str) -> None:
    path = cache.TimingCache("cpu").path
    path.parent.mkdir(parents=True)
    path.write_text(content)
    found = cache.TimingCache("cpu")
    assert not found.timings
    found.put("region", Timing(before=2.0, after=1.0))
    found.save()
    assert cache.TimingCache("cpu").get("region") == Timing(before=2.0, after=1.0)
    assert json.loads(path.read_text())["format"] == 2


def test_a_folder_that_cannot_be_written_only_costs_time(own_cache: Path) -> None:
    (own_cache / "timings").write_text("a file where the folder should be")
    found = cache.TimingCache("cpu")
    found.put("region", Timing(before=2.0, after=1.0))
    found.save()
    assert found.get("region") is not None
