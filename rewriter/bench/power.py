"""What a GPU's work costs in energy, and whether its clocks are held back, as the driver counts it (NVML).

A card at its power limit is as fast as its work is cheap: energy tells modes apart then, not the time of a kernel.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch

_LIBRARY = "libnvidia-ml.so.1"
# Bits of nvmlClocksEventReasons: the power cap, slowdowns by hardware, by temperature and by the power supply.
_HELD_BACK = 0x4 | 0x8 | 0x20 | 0x40 | 0x80


class Meter:
    """That of one GPU. library: NVML; handle: the GPU there."""

    def __init__(self, library: Any, handle: ctypes.c_void_p) -> None:
        self._library, self._handle = library, handle

    @staticmethod
    def of(device: torch.device) -> Meter | None:
        """The meter of a CUDA device, or None where there is none: another device, no NVML, a GPU older than Volta."""
        if device.type != "cuda":
            return None
        uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
        handle = ctypes.c_void_p()
        try:
            library = ctypes.CDLL(_LIBRARY)
            if library.nvmlInit_v2() or library.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode(), ctypes.byref(handle)):
                return None
        except (OSError, AttributeError):
            return None
        meter = Meter(library, handle)
        return None if meter.joules() is None else meter

    def joules(self) -> float | None:
        """The energy since the driver was loaded; it is renewed about every 50 ms. None where it is not counted."""
        return _scaled(self._read("nvmlDeviceGetTotalEnergyConsumption"), 1e-3)

    def held_back(self) -> bool:
        """Whether power, temperature or the supply keep the clocks below what they could be."""
        reasons = self._read("nvmlDeviceGetCurrentClocksThrottleReasons")
        return reasons is not None and bool(reasons & _HELD_BACK)

    def _read(self, name: str) -> int | None:
        value = ctypes.c_ulonglong()
        try:
            status = getattr(self._library, name)(self._handle, ctypes.byref(value))
        except AttributeError:
            return None
        return None if status else value.value


def _scaled(value: int | None, by: float) -> float | None:
    return None if value is None else value * by
