"""The benchmark that looks where the time of a first start goes."""

from __future__ import annotations

import importlib
import pathlib
import sys
import time
from types import ModuleType

import pytest
import torch

from rewriter.bench import timing

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return importlib.import_module("benchmarks.first_start")


def test_the_eye_tells_what_the_thread_was_at_and_keeps_no_tensor(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "INTERVAL", 0.005)
    eye = benchmark.Eye()
    # By a look, not by the clock: a busy machine may look late.
    with eye:
        while ("timing.begin",) not in eye.seconds:
            timing.begin(lambda: lambda: time.sleep(0.01), torch.device("cpu"))
    assert "timing.begin" in eye.tree(0.0)
    assert eye.tree(1e9) == ""
    assert all(isinstance(name, str) for names in eye.seconds for name in names)
