from __future__ import annotations

import math

import pytest
import torch

from rewriter.bench import timing

CPU = torch.device("cpu")


def test_calls_take_turns() -> None:
    order: list[str] = []
    shares: list[float] = []
    calls = {name: lambda name=name: order.append(name) for name in ("a", "b", "c")}
    times = timing.compare(calls, CPU, seconds=0.01, advance=shares.append)
    assert list(times) == ["a", "b", "c"]
    assert all(entry.low <= entry.median <= entry.high for entry in times.values())
    assert times["a"].speed == 1
    assert math.isclose(sum(shares), 1)
    turns = [name for index, name in enumerate(order) if index == 0 or order[index - 1] != name]
    assert {"a", "b", "c"} == set(turns[-3:])


def test_a_mode_is_ready_after_its_last_slow_call() -> None:
    begun = timing.Begun(preparing=1.0, calls=(5.0, 0.1, 2.0, 0.1, 0.1), output=None)
    assert begun.first == 6.0
    assert begun.ready(0.1) == pytest.approx(8.1)
    assert begun.ready(9.0) == 6.0


def test_the_first_calls_are_made_and_the_last_result_kept() -> None:
    results = iter(range(100))
    call, begun = timing.begin(lambda: lambda: next(results), CPU)
    assert len(begun.calls) == begun.output + 1
    assert call() == begun.output + 1


def test_memory_is_what_is_needed_on_top() -> None:
    watch = timing.MemoryWatch(CPU)
    torch.ones(16, 1024, 1024).sum()
    memory = watch.read()
    assert memory.extra is None or 60 * 2**20 < memory.extra < 120 * 2**20
    assert memory.peak is memory.reserved is None


def test_times_of_modes_that_ran_one_after_the_other() -> None:
    first = timing.Times(median=3.0, low=1.0, high=4.0, samples=5, speed=1.0)
    second = timing.Times(median=2.0, low=1.0, high=4.0, samples=5, speed=1.0)
    assert timing.against(second, first).speed == 1.5


@pytest.mark.parametrize(
    ("seconds", "calls"),
    [pytest.param(1e-3, 200, id="short"), (5e-3, 40), (30e-3, 20), (128e-3, 8), pytest.param(0.65, 4, id="a video's")],
)
def test_a_sample_on_a_gpu_is_as_long_as_a_loop(seconds: float, calls: int) -> None:
    assert timing.calls_of_a_sample(seconds, torch.device("cuda")) == calls
