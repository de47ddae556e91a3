"""Recordings share memory, are not disturbed by old ones, and one that breaks costs the later ones nothing."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from rewriter.measure import recordings
from rewriter.measure.recordings import Pools, record


class Graph:
    """What torch's class does to the pool that it is given."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.pool: Any = None

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
        assert capture_error_mode == "thread_local"
        if pool in self.device.underway:
            raise RuntimeError("already recording to this pool")
        self.pool = pool
        self.device.underway.add(pool)

    def capture_end(self) -> None:
        if self.device.invalid:
            self.device.invalid = False
            raise RuntimeError("operation failed due to a previous error during capture")
        self.device.underway.discard(self.pool)
        self.device.recorded.append(self.pool)


class Stream:
    def wait_stream(self, _: Stream) -> None:
        pass


class Device:
    """Of a GPU as much as recording asks of it. invalid: the recording under way cannot be ended."""

    def __init__(self) -> None:
        self.underway: set[Any] = set()
        self.recorded: list[Any] = []
        self.handles = iter(range(100))
        self.invalid = False
        self.emptied = 0

    def empty_cache(self) -> None:
        self.emptied += 1

    def end_allocate(self, _device: int, pool: Any) -> None:
        self.underway.remove(pool)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    made = Device()
    for name, value in {
        "CUDAGraph": lambda: Graph(made),
        "Stream": Stream,
        "stream": lambda _: contextlib.nullcontext(),
        "current_stream": Stream,
        "current_device": lambda: 0,
        "graph_pool_handle": lambda: next(made.handles),
        "empty_cache": made.empty_cache,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", made.end_allocate, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda *_: None, raising=False)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)
    monkeypatch.setattr(recordings, "_STREAMS", {})
    yield made
    recordings._BROKEN.clear()


def test_all_of_one_purpose_share_memory_until_it_is_forgotten(device: Device) -> None:
    pools = Pools()
    for _ in range(2):
        assert record(lambda: "result", pools)[1] == "result"
    pools.forget()
    record(lambda: None, pools)
    record(lambda: None)
    anchored = [0, 0, 0], [1, 1]
    assert device.recorded == [*anchored[0], *anchored[1], None]


def waits(device: Device) -> Callable[[], None]:
    def function() -> None:
        device.invalid = True
        raise RuntimeError("operation not permitted when stream is capturing")

    return function


def test_one_that_breaks_says_why_and_costs_the_later_ones_nothing(device: Device) -> None:
    pools = Pools()
    with pytest.raises(RuntimeError, match="not permitted"):
        record(waits(device), pools)
    assert not device.underway
    assert len(recordings._BROKEN) == 1
    record(lambda: None, pools)
    assert device.recorded == [0, 1, 1]


def test_what_a_broken_one_held_is_given_back_when_its_purpose_ends(device: Device) -> None:
    pools = Pools()
    with pytest.raises(RuntimeError, match="not permitted"):
        record(waits(device), pools)
    pools.forget()
    pools.forget()
    assert device.emptied == 1


def test_one_that_was_made_invalid_is_an_error_too(device: Device) -> None:
    def disturbed() -> None:
        device.invalid = True

    pools = Pools()
    with pytest.raises(RuntimeError, match="previous error"):
        record(disturbed, pools)
    record(lambda: None, pools)
    assert device.recorded == [0, 1, 1]


def test_what_raises_without_touching_the_device_leaves_the_memory_as_it_is(device: Device) -> None:
    def wrong() -> None:
        raise ValueError("mine")

    pools = Pools()
    with pytest.raises(ValueError, match="mine"):
        record(wrong, pools)
    record(lambda: None, pools)
    assert device.recorded == [0, 0, 0]


@pytest.mark.usefixtures("device")
def test_threads_take_turns() -> None:
    """They share a stream: what one launches there while another records would be recorded too."""
    inside, seen, tried = threading.Event(), [], threading.Event()

    def first() -> None:
        inside.set()
        tried.wait(5)
        seen.append("first")

    one = threading.Thread(target=record, args=(first,))
    other = threading.Thread(target=record, args=(lambda: seen.append("second"),))
    one.start()
    assert inside.wait(5)
    other.start()
    other.join(0.2)
    assert not seen
    tried.set()
    one.join()
    other.join()
    assert seen == ["first", "second"]


@pytest.mark.usefixtures("device")
def test_nothing_is_collected_meanwhile() -> None:
    """An old graph that is collected is destroyed, and CUDA then refuses to end the recording."""
    assert gc.isenabled()
    assert record(gc.isenabled)[1] is False
    assert gc.isenabled()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_old_graphs_do_not_disturb_new_ones() -> None:
    x, pools = torch.ones(8, device="cuda"), Pools()

    def garbage() -> None:
        graph, _ = record(lambda: x + 1, pools)
        cycle: list[Any] = [graph]
        cycle.append(cycle)

    def busy() -> torch.Tensor:
        total = x
        for _ in range(50):
            total = total + torch.stack([x, x]).sum(0)
        return total

    before = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        for _ in range(20):
            garbage()
            graph, result = record(busy, pools)
            graph.replay()
            assert result.tolist() == [101.0] * 8
    finally:
        gc.set_threshold(*before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_after_one_that_waits_for_the_device_others_are_recorded_in_the_same_memory() -> None:
    x, pools = torch.ones(2**20, device="cuda"), Pools()
    for _ in range(3):
        with pytest.raises(RuntimeError, match="captur"):
            record(lambda: float((x * 2).sum()), pools)
        graph, result = record(lambda: x * 3, pools)
        graph.replay()
        assert result[0].item() == 3.0
        del graph, result
    pools.forget()
    before = torch.cuda.memory_reserved()
    for _ in range(10):
        with pytest.raises(RuntimeError, match="captur"):
            record(lambda: float((x * 2).sum()), pools)
        pools.forget()
    assert torch.cuda.memory_reserved() <= before
