"""`run_demo`: loads, compares, draws and writes."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import torch

from rewriter.demo.comparison import Comparison, compare
from rewriter.demo.drawing import amplified, grid
from rewriter.demo.page import render
from rewriter.demo.result import Component, DemoResult, Matches
from rewriter.models import load_target


def run_demo(
    model: str = "digits",
    *,
    out: Path,
    steps: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    rules: Any = "default",
) -> DemoResult:
    """Draws the same seeds eagerly and optimised, and writes what came out to the folder `out`.

    `model` is a built-in name, a local folder or a hub id; `steps` defaults to what suits it, `device` to the CPU,
    `dtype` to float32 on a CPU and half precision elsewhere; `rules` is what `rewriter.optimize` takes.
    Writes `eager.png`, `optimised.png`, `difference.png` (amplified; the report says how much) and `report.html`.
    Raises UnknownTarget for a model that cannot be loaded or gives no pictures, NotADirectoryError where `out` is a
    file, ValueError for `steps` below 1, and what `rewriter.optimize` raises.
    """
    if steps is not None and steps < 1:
        raise ValueError(f"steps: found {steps}, expected at least 1")
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"out: {out} is a file, expected a folder or a name that is free")
    target = load_target(model, dtype=dtype, device=device)
    comparison = compare(target, rules=rules, seed=seed, steps=steps)
    network = getattr(target.pipeline, target.denoiser)
    weight = next(network.parameters())
    result = DemoResult(
        target=target.name,
        device=_device_name(weight.device),
        dtype=str(weight.dtype).removeprefix("torch."),
        seed=seed,
        steps=comparison.steps,
        rounds=comparison.rounds,
        interleaved=comparison.interleaved,
        pictures=len(comparison.eager),
        eager=comparison.eager_timing,
        optimised=comparison.optimised_timing,
        speedup=comparison.speedup,
        first_call_seconds=comparison.first_call_seconds,
        max_difference=comparison.max_difference,
        relative_difference=comparison.relative_difference,
        matches=_matches(comparison.report),
        components=_components(comparison.report),
        files={},
        versions=_versions(),
    )
    return write(result, comparison, out)


def write(result: DemoResult, comparison: Comparison, out: Path) -> DemoResult:
    """Draws the three grids and the page into `out`, which is made if need be. Returns the result with its files."""
    out.mkdir(parents=True, exist_ok=True)
    difference, factor = amplified(comparison.difference)
    sheets = {
        "eager": grid(comparison.eager, columns=comparison.columns),
        "optimised": grid(comparison.optimised, columns=comparison.columns),
        "difference": grid(difference, columns=comparison.columns, smooth=False),
    }
    files = {name: out / f"{name}.png" for name in sheets}
    for name, sheet in sheets.items():
        sheet.save(files[name])
    what = f"Difference, amplified {factor:,} times" if result.max_difference else "Difference: none, bit for bit"
    captions = {"eager": "Eager", "optimised": "Optimised, same seeds", "difference": what}
    files["report"] = out / "report.html"
    result = dataclasses.replace(result, files=files)
    files["report"].write_text(render(result, captions), encoding="utf-8")
    return result


def _matches(report: Any) -> dict[str, Matches]:
    """Counts per rule over all networks, most frequent first."""
    counts: dict[str, Matches] = {}
    for component in report.components.values():
        for rule, count in component.matches.items():
            so_far = counts.get(rule, Matches(matched=0, kept=0))
            counts[rule] = Matches(matched=so_far.matched + count.matched, kept=so_far.kept + count.kept)
    return dict(sorted(counts.items(), key=lambda item: (-item[1].kept, -item[1].matched, item[0])))


def _components(report: Any) -> tuple[Component, ...]:
    return tuple(
        Component(name=name, status=part.status, reason=part.reason, error=part.error)
        for name, part in report.components.items()
    )


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type.upper()} ({threads} thread{'s' if threads > 1 else ''})"


def _versions() -> dict[str, str]:
    packages = {name: _version(name) for name in ("rewriter", "torch", "diffusers", "transformers")}
    return {**packages, "Python": platform.python_version()}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
