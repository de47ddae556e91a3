"""Energy and limits of a GPU, by a driver that is played."""

from __future__ import annotations

import ctypes
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rewriter.bench import power, timing
from rewriter.bench.power import Meter

GPU = torch.device("cuda", 0)


class Driver:
    """NVML of one GPU that takes half a joule between two readings. status: of every call about the GPU."""

    def __init__(self, reasons: int = 0, status: int = 0) -> None:
        self.reasons, self.status, self.millijoules = reasons, status, 1000
        self.asked: bytes = b""

    def nvmlInit_v2(self) -> int:  # noqa: N802 - NVML's name
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, _handle: Any) -> int:  # noqa: N802
        self.asked = uuid
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, _handle: Any, value: Any) -> int:  # noqa: N802
        self.millijoules += 500
        value._obj.value = self.millijoules
        return self.status

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, _handle: Any, value: Any) -> int:  # noqa: N802
        value._obj.value = self.reasons
        return self.status


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    def play(driver: Any) -> None:
        monkeypatch.setattr(ctypes, "CDLL", lambda _: driver)
        properties = types.SimpleNamespace(uuid="1-2")
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)

    return play


def test_the_meter_is_that_of_the_device(played: Callable[[Any], None]) -> None:
    driver = Driver()
    played(driver)
    meter = Meter.of(GPU)
    assert meter is not None
    assert driver.asked == b"GPU-1-2"
    assert meter.joules() == 2.0


@pytest.mark.parametrize(
    ("reasons", "limited"), [(0, False), (1, False), (2, False), (4, True), (0x20, True), (0x41, True)]
)
def test_idle_clocks_are_not_limited_ones(played: Callable[[Any], None], reasons: int, limited: bool) -> None:
    played(Driver(reasons))
    meter = Meter.of(GPU)
    assert meter is not None
    assert meter.held_back() is limited


def test_without_a_driver_that_counts_there_is_no_meter(
    played: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Meter.of(torch.device("cpu")) is None
    played(Driver(status=3))
    assert Meter.of(GPU) is None
    played(types.SimpleNamespace(nvmlInit_v2=lambda: 0))
    assert Meter.of(GPU) is None

    def missing(_: str) -> None:
        raise OSError(power._LIBRARY)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert Meter.of(GPU) is None


def test_samples_are_told_what_they_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(reasons=4)
    monkeypatch.setattr(Meter, "of", lambda _: Meter(driver, ctypes.c_void_p()))
    calls = []
    times = timing.compare({"one": lambda: calls.append(1)}, torch.device("cpu"), seconds=0.01)["one"]
    assert times.held_back == 1.0
    # Half a joule for each sample, whatever the number of calls in it; two calls came before the samples.
    assert times.joules is not None
    assert times.joules * (len(calls) - 2) == pytest.approx(0.5 * times.samples)


def test_without_a_meter_nothing_is_told() -> None:
    times = timing.compare({"one": lambda: None}, torch.device("cpu"), seconds=0.01)["one"]
    assert (times.joules, times.held_back) == (None, None)
