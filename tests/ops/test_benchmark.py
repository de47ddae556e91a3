"""The benchmark of the ops: its cases, a measurement on the CPU, its table."""

from __future__ import annotations

import dataclasses
import importlib
import pathlib
import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from rewriter.ops import OPS, providers, registry

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return importlib.import_module("benchmarks.ops")


def draw(benchmark: ModuleType) -> Any:
    return benchmark.Draw(device=torch.device("cpu"), dtype=torch.float32)


def tiny(benchmark: ModuleType) -> Any:
    return benchmark.Case(
        "group_norm", "tiny", lambda draw: (draw(1, 4, 2, 3, channels_last=True), 2, draw(4), None, 1e-5)
    )


def test_cases_name_known_ops_and_have_labels_of_their_own(benchmark: ModuleType) -> None:
    cases = benchmark.cases()
    assert {case.op for case in cases} <= set(OPS)
    assert len({(case.op, case.label) for case in cases}) == len(cases)


def test_a_case_is_measured_with_every_provider(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> torch.Tensor:
        raise RuntimeError("no such thing\nmore")

    def wrong(x: torch.Tensor, *_: Any, shift: float) -> torch.Tensor:
        return x + shift

    providers.load()
    given = {
        "broken": registry.Provider(fn=broken, supports=lambda *_: None),
        "wrong": registry.Provider(fn=wrong, supports=lambda *_: None, configs=lambda *_: ({"shift": 1.0},)),
        "absent": registry.Provider(fn=broken, supports=lambda *_: "not here"),
        "torch": OPS["group_norm"].providers["torch"],
    }
    monkeypatch.setitem(OPS, "group_norm", dataclasses.replace(OPS["group_norm"], providers=given))
    torch.manual_seed(0)
    broken_row, wrong_row, reference = benchmark.measure(tiny(benchmark), draw(benchmark))
    assert (broken_row.us, broken_row.failure) == (None, "RuntimeError: no such thing")
    assert (wrong_row.config, wrong_row.failure, wrong_row.best) == ("shift=1.0", "wrong", False)
    assert reference.best
    assert reference.error < 1e-6
    # x, the weight and the result.
    assert reference.rate == pytest.approx((24 + 4 + 24) * 4 / reference.us / 1e3)
    lines = benchmark.table([broken_row, wrong_row, reference]).splitlines()
    assert [line.split()[0] for line in lines] == ["op", "group_norm", "group_norm", "*"]
    assert lines[1].endswith("RuntimeError: no such thing")


def test_bytes_of_an_expanded_tensor_are_those_in_memory(benchmark: ModuleType) -> None:
    case = tiny(benchmark)
    assert case.bytes((torch.ones(3, 1).expand(3, 7), None, 2), [torch.ones(5, dtype=torch.float16)]) == 3 * 4 + 5 * 2


def test_cases_are_drawn_in_the_order_asked_for(benchmark: ModuleType) -> None:
    x = draw(benchmark)(2, 4, 3, 5, channels_last=True)
    assert x.shape == (2, 4, 3, 5)
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_options_choose_cases(benchmark: ModuleType) -> None:
    parse = benchmark.parser().parse_args
    chosen = benchmark.chosen(parse(["--op", "group_norm", "--label", "64x64"]))
    assert chosen
    assert all(case.op == "group_norm" and "64x64" in case.label for case in chosen)
    with pytest.raises(SystemExit, match="no case"):
        benchmark.chosen(parse(["--op", "group_norm", "--label", "nowhere"]))


def test_what_is_close_to_the_best_is_looped_too(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def after(calls: int) -> registry.Provider:
        def function(*given: Any) -> Any:
            return OPS["group_norm"].reference(*given)

        microseconds[function] = calls
        return registry.Provider(fn=function, supports=lambda *_: None)

    microseconds: dict[Any, float] = {}
    providers.load()
    given = {"best": after(10), "close": after(11), "behind": after(13), "torch": after(20)}
    monkeypatch.setitem(OPS, "group_norm", dataclasses.replace(OPS["group_norm"], providers=given))
    monkeypatch.setattr(benchmark, "plain_time", lambda call: microseconds[call.__defaults__[0]])
    monkeypatch.setattr(benchmark, "looped", lambda _call, seconds, _meter: (seconds, None))
    rows = benchmark.measure(tiny(benchmark), draw(benchmark), 0.7)
    assert [(row.provider, row.looped) for row in rows] == [
        ("best", 0.7),
        ("close", 0.7),
        ("behind", None),
        ("torch", None),
    ]
    head, first, *_ = benchmark.table(rows).splitlines()
    assert "us in a loop" in head
    assert "0.7" in first
    assert "us in a loop" not in benchmark.table(benchmark.measure(tiny(benchmark), draw(benchmark)))
