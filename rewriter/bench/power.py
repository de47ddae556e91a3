"""What a GPU's work costs in energy, and whether its clocks are held back, as the driver counts it (NVML).

A card at its power limit is as fast as its work is cheap: energy tells modes apart then, not the time of a kernel.
"""

from __future__ import annotations

from typing import Any

import torch


class Meter:
    """That of one GPU. nvml: the module `pynvml`; handle: the GPU there."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self._limits = (
            nvml.nvmlClocksEventReasonSwPowerCap
            | nvml.nvmlClocksEventReasonHwSlowdown
            | nvml.nvmlClocksEventReasonSwThermalSlowdown
            | nvml.nvmlClocksEventReasonHwThermalSlowdown
            | nvml.nvmlClocksEventReasonHwPowerBrakeSlowdown
        )

    @staticmethod
    def of(device: torch.device) -> Meter | None:
        """The meter of a CUDA device, or None where there is none: another device, no `nvidia-ml-py`, an old driver, or
        a GPU older than Volta."""
        if device.type != "cuda":
            return None
        try:
            import pynvml
        except ImportError:
            return None
        try:
            pynvml.nvmlInit()
            uuid = torch.cuda.get_device_properties(device).uuid
            meter = Meter(pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}"))
            meter.joules()
            meter.held_back()
        except pynvml.NVMLError:
            return None
        return meter

    def joules(self) -> float:
        """The energy since the driver was loaded; it is renewed about every 50 ms. Raises NVMLError."""
        millijoules: int = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        return millijoules * 1e-3

    def held_back(self) -> bool:
        """Whether power, temperature or the supply keep the clocks below what they could be. Raises NVMLError."""
        return bool(self._nvml.nvmlDeviceGetCurrentClocksEventReasons(self._handle) & self._limits)
