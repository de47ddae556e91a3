"""The loop's time and steps come from the progress bar that a pipeline asks for, however it uses it."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from rewriter.demo.stopwatch import timed_call

CPU = torch.device("cpu")


class Iterating:
    def progress_bar(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("the class's own bar must not be used")

    def __call__(self, steps: int) -> str:
        time.sleep(0.02)
        for _ in self.progress_bar(torch.arange(steps)):
            time.sleep(0.01)
        return "done"


class Updating(Iterating):
    def __call__(self, steps: int) -> str:
        time.sleep(0.02)
        with self.progress_bar(total=steps) as bar:
            bar.set_postfix({"anything": 1})
            for _ in range(steps):
                time.sleep(0.01)
                bar.update()
        return "done"


class Straight(Iterating):
    def __call__(self, steps: int) -> str:  # noqa: ARG002
        time.sleep(0.02)
        return "done"


@pytest.mark.parametrize("kind", [Iterating, Updating])
def test_steps_are_counted_and_timed(kind: type[Iterating]) -> None:
    pipeline, heard = kind(), []
    lap = timed_call(pipeline, {"steps": 3}, CPU, lambda step, steps: heard.append((step, steps)))
    assert lap.output == "done"
    assert lap.steps == 3
    assert heard == [(1, 3), (2, 3), (3, 3)]
    assert 0.03 <= lap.loop_seconds <= lap.seconds - 0.02
    assert "progress_bar" not in vars(pipeline)


def test_a_pipeline_without_a_loop_is_one_step() -> None:
    lap = timed_call(Straight(), {"steps": 3}, CPU)
    assert lap.steps == 1
    assert lap.loop_seconds == lap.seconds >= 0.02


def test_the_bar_is_given_back_after_an_error() -> None:
    pipeline = Iterating()
    with pytest.raises(TypeError):
        timed_call(pipeline, {"steps": None}, CPU)
    assert "progress_bar" not in vars(pipeline)
