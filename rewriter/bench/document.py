"""Results as plain data, and the files that keep them."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import math
import pathlib
import platform
from collections.abc import Mapping
from typing import Any

import torch

from rewriter.bench.ceilings import Ceilings
from rewriter.bench.runs import Reference, Result
from rewriter.bench.step import Step

_PACKAGES = ("rewriter", "torch", "triton", "diffusers", "transformers")


def machine(device: torch.device) -> dict[str, Any]:
    """The device by name, and the versions of what runs on it."""
    on_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_cuda else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            **{package: _version(package) for package in _PACKAGES},
            **({"cuda": torch.version.cuda} if on_cuda else {}),
        },
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def step_document(
    step: Step, results: list[Result], reference: Reference, flops: int | None, ceilings: Ceilings | None
) -> dict[str, Any]:
    """One step in all its modes."""
    return {
        "component": step.component,
        "inputs": step.description,
        "dtype": str(step.dtype).removeprefix("torch."),
        "flops": flops,
        "ceilings": None if ceilings is None else dataclasses.asdict(ceilings),
        "note": reference.note,
        "modes": [dataclasses.asdict(result) for result in results],
    }


def plain(value: Any) -> Any:
    """The same for JSON: dataclasses become objects, and numbers that it does not have become text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def write_text(folder: pathlib.Path, name: str, text: str) -> None:
    """Writes a file as a whole, so that whoever is interrupted leaves the one before. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{name}.part"
    part.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
    part.replace(folder / name)


def write_json(folder: pathlib.Path, name: str, document: Mapping[str, Any]) -> None:
    """Writes a document. Raises OSError."""
    write_text(folder, name, json.dumps(plain(document), indent=1, allow_nan=False))


def _version(package: str) -> str:
    if package == "rewriter":
        # It runs from a checkout too.
        from rewriter import __version__

        return __version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
