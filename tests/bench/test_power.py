"""Energy and limits of a GPU, by a driver that is played."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rewriter.bench import timing
from rewriter.bench.power import Meter

GPU = torch.device("cuda", 0)
LIMITS = {"SwPowerCap": 4, "HwSlowdown": 8, "SwThermalSlowdown": 0x20, "HwThermalSlowdown": 0x40}


# NVML's functions, and what plays them.
CALLS = {
    "nvmlInit": "begin",
    "nvmlDeviceGetHandleByUUID": "find",
    "nvmlDeviceGetTotalEnergyConsumption": "energy",
    "nvmlDeviceGetCurrentClocksEventReasons": "limits",
}


class NVMLError(Exception):
    pass


class Driver(types.ModuleType):
    """`pynvml` with one GPU, which takes half a joule between two readings. fails: the function that it lacks."""

    def __init__(self, reasons: int = 0, fails: str = "") -> None:
        super().__init__("pynvml")
        self.reasons, self.fails, self.millijoules, self.asked = reasons, fails, 1000, ""
        self.NVMLError = NVMLError
        for name, bit in {**LIMITS, "HwPowerBrakeSlowdown": 0x80}.items():
            setattr(self, f"nvmlClocksEventReason{name}", bit)
        for name in CALLS:
            setattr(self, name, functools.partial(self._call, name))

    def _call(self, name: str, *given: Any) -> Any:
        if name == self.fails:
            raise NVMLError(name)
        return getattr(self, CALLS[name])(*given)

    def begin(self) -> None:
        pass

    def find(self, uuid: str) -> str:
        self.asked = uuid
        return "handle"

    def energy(self, handle: str) -> int:
        assert handle == "handle"
        self.millijoules += 500
        return self.millijoules

    def limits(self, handle: str) -> int:
        assert handle == "handle"
        return self.reasons


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    def play(driver: Any) -> None:
        monkeypatch.setitem(sys.modules, "pynvml", driver)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: types.SimpleNamespace(uuid="1-2"))

    return play


def test_the_meter_is_that_of_the_device(played: Callable[[Any], None]) -> None:
    driver = Driver()
    played(driver)
    meter = Meter.of(GPU)
    assert meter is not None
    assert driver.asked == "GPU-1-2"
    assert meter.joules() == 2.0


@pytest.mark.parametrize(
    ("reasons", "limited"), [(0, False), (1, False), (2, False), (4, True), (0x20, True), (0x41, True), (0x80, True)]
)
def test_idle_clocks_are_not_limited_ones(played: Callable[[Any], None], reasons: int, limited: bool) -> None:
    played(Driver(reasons))
    meter = Meter.of(GPU)
    assert meter is not None
    assert meter.held_back() is limited


@pytest.mark.parametrize("name", CALLS)
def test_a_driver_that_cannot_tell_gives_no_meter(played: Callable[[Any], None], name: str) -> None:
    played(Driver(fails=name))
    assert Meter.of(GPU) is None


def test_elsewhere_there_is_no_meter(played: Callable[[Any], None]) -> None:
    assert Meter.of(torch.device("cpu")) is None
    # As Python has it for a package that is not installed.
    played(None)
    assert Meter.of(GPU) is None


def test_samples_are_told_what_they_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Meter, "of", lambda _: Meter(Driver(reasons=4), "handle"))
    calls = []
    times = timing.compare({"one": lambda: calls.append(1)}, torch.device("cpu"), seconds=0.01)["one"]
    assert times.held_back == 1.0
    # Half a joule for each sample, whatever the number of calls in it; two calls came before the samples.
    assert times.joules is not None
    assert times.joules * (len(calls) - 2) == pytest.approx(0.5 * times.samples)


def test_without_a_meter_nothing_is_told() -> None:
    times = timing.compare({"one": lambda: None}, torch.device("cpu"), seconds=0.01)["one"]
    assert (times.joules, times.held_back) == (None, None)
