"""How much GPU memory a step needs at first and once it is ready, eagerly and with rule packs, and what its weights do.

    python benchmarks/memory.py sdxl --packs default int8
    python benchmarks/memory.py flux-dev --packs default fp8

Each mode in turn in one process, on the same weights, in MiB: first is the most that is allocated until it is ready,
peak the most during ten further calls, resident what is allocated between them. Errors are relative L2 errors against
eager's result.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import pathlib
import sys
import time
from collections.abc import Callable

import torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import rewriter
from rewriter.models.targets import load_target

# Calls until a graph is recorded and its providers are chosen, and those that are measured.
_WARM, _MEASURED = 5, 10
_MIB = 2**20


@dataclasses.dataclass(frozen=True, slots=True)
class Needs:
    """MiB until ready, at most in a call from then on, and between calls; milliseconds of a call; what it gives."""

    first: float
    peak: float
    resident: float
    milliseconds: float
    result: torch.Tensor


def measured(call: Callable[[], torch.Tensor]) -> Needs:
    torch.cuda.reset_peak_memory_stats()
    for _ in range(_WARM):
        result = call()
    torch.cuda.synchronize()
    first = torch.cuda.max_memory_allocated()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    for _ in range(_MEASURED):
        result = call()
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - begin) / _MEASURED
    peak, resident = torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()
    return Needs(first / _MIB, peak / _MIB, resident / _MIB, 1e3 * seconds, result)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("target")
    parser.add_argument("--packs", nargs="+", default=["default"], help="what `rewriter.optimize` gets as rules")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("found no GPU, expected one whose memory can be measured")
    target = load_target(options.target, device="cuda")
    network = getattr(target.pipeline, target.denoiser)
    inputs = target.denoiser_inputs()

    def call() -> torch.Tensor:
        with torch.no_grad():
            first: torch.Tensor = network(**{**inputs, "return_dict": False})[0]
        return first

    eager = measured(call)
    rewriter.optimize(network, rules=options.packs)
    rows = [("eager", eager), (" + ".join(options.packs), measured(call))]
    print(rewriter.report(network))
    rewriter.restore(network)
    gc.collect()
    torch.cuda.empty_cache()
    rows.append(("restored", measured(call)))
    exact = eager.result.double()
    print(f"{'':24} {'first':>9} {'peak':>9} {'resident':>9} {'ms':>8} error")
    for name, needs in rows:
        error = float((needs.result.double() - exact).norm() / exact.norm())
        sizes = f"{needs.first:9.0f} {needs.peak:9.0f} {needs.resident:9.0f}"
        print(f"{name:24} {sizes} {needs.milliseconds:8.2f} {error:.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
