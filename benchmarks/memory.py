"""How much GPU memory a step needs once it is ready, eagerly and with rule packs, and how much stays for its weights.

    python benchmarks/memory.py sdxl --packs default int8
    python benchmarks/memory.py flux-dev --packs default fp8

Each mode in turn in one process, on the same weights: peak is the most that is allocated during ten further calls,
resident what is allocated between them; both in MiB, and relative L2 error against eager's result.
"""

from __future__ import annotations

import argparse
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


def measured(call: Callable[[], torch.Tensor]) -> tuple[float, float, float, torch.Tensor]:
    """Peak and resident MiB, median-like milliseconds of a call, and its result."""
    for _ in range(_WARM):
        result = call()
    torch.cuda.synchronize()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    for _ in range(_MEASURED):
        result = call()
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - begin) / _MEASURED
    return torch.cuda.max_memory_allocated() / _MIB, torch.cuda.memory_allocated() / _MIB, 1e3 * seconds, result


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
    exact = eager[3].double()
    print(f"{'':24} {'peak':>9} {'resident':>9} {'ms':>8} error")
    for name, (peak, resident, milliseconds, result) in rows:
        error = float((result.double() - exact).norm() / exact.norm())
        print(f"{name:24} {peak:9.0f} {resident:9.0f} {milliseconds:8.2f} {error:.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
