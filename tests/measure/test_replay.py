"""When a call on a GPU is launched to be timed, and behind what."""

from __future__ import annotations

import pytest
import torch

from rewriter.measure import replay


@pytest.mark.parametrize(
    ("total", "launched", "in_time"),
    [
        pytest.param(0.1, 0.03, True, id="launched early"),
        pytest.param(0.1, 0.06, False, id="the host shows"),
        pytest.param(0.3, 0.18, True, id="so long that it does not"),
        pytest.param(0.3, 0.25, False, id="the host shows there too"),
        pytest.param(0.01, 0.001, False, id="short"),
    ],
)
def test_whether_the_host_shows_in_the_time_of_a_call(
    monkeypatch: pytest.MonkeyPatch, total: float, launched: float, in_time: bool
) -> None:
    clock = iter([0.0, launched, total])
    monkeypatch.setattr(replay.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert replay.launched_in_time(lambda: None) == (in_time, total)


def test_a_long_call_is_timed_behind_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that has rested is faster than in a loop: Stable Video Diffusion kept the slower one of two memory orders,
    which was timed first."""
    done: list[str] = []

    class Event:
        def record(self) -> None:
            done.append("mark")

        def synchronize(self) -> None:
            done.append("wait")

        def elapsed_time(self, _: Event) -> float:
            return 300.0

    monkeypatch.setattr(replay, "_events", lambda: (Event(), Event()))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("wait"))
    clock = iter([0.0, 0.1, 0.1, 0.2])
    monkeypatch.setattr(replay.time, "perf_counter", lambda: next(clock))
    assert replay.keeping_up(lambda: done.append("call")) == (True, 0.3)
    assert done == ["call", "wait", "call", "mark", "call", "mark", "wait"]
