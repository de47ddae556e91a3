"""The machine that a proof holds for."""

from __future__ import annotations

import functools
import importlib.metadata
import subprocess

from rewriter.proof.results import Machine


@functools.cache
def this_machine(device: str) -> Machine:
    """This machine's GPU, or its CPU where `device` is "cpu", with the versions of what runs on it."""
    import torch

    import rewriter

    versions = {"rewriter": rewriter.__version__, "torch": torch.__version__}
    triton = _version("triton")
    if triton:
        versions["triton"] = triton
    sm = None
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        sm = 10 * major + minor
        versions |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
        versions["driver"] = _driver()
    return Machine(device=device, name=machine_name(device), sm=sm, versions=versions)


def machine_name(device: str) -> str:
    """The name of the GPU, or of the CPU."""
    import torch

    from rewriter.measure.cache import machine

    found = machine(device)
    return found["gpu"] if device == "cuda" and torch.cuda.is_available() else found.get("cpu", device)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _driver() -> str:
    """As nvidia-smi says it; CUDA itself has no name for the driver's version."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.strip().splitlines()[0] if found.strip() else "unknown"
