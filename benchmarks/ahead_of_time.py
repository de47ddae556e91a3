"""Compiles for sm_90, without a GPU, every Triton kernel that the calls of a benchmark's cases would launch.

    python benchmarks/ahead_of_time.py benchmarks/shapes/group_norm.py [--all]

The providers run on CPU tensors whose values nobody reads, with each of their configs; launches become compilations
with the very arguments, alignments and constants of the call. Prints one line per kernel: its warps, bytes of shared
memory, what it does too early where it may begin before the kernel before it has ended, registers, and bytes of stack
(spills). Exit status 1 where a kernel does not compile. Without --all, one case of each op.

TRITON_INTERPRET must be unset: Triton decides when it is imported whether it interprets.
"""

from __future__ import annotations

import argparse
import importlib
import pathlib
import re
import subprocess
import sys
import tempfile
import types
from typing import Any

import torch

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import rewriter.ops  # noqa: E402
from benchmarks.cases import Draw  # noqa: E402

# Accesses to memory, and what may lead around the wait.
_TOO_EARLY = re.compile(r"\b(?:(?:ld|st|red|atom)\.(?:\w+\.)*global|cp\.async|prefetch|bra|ret)\b")


# Ops with kernels in CUDA C++ alone.
_NATIVE = frozenset({"quantised_conv", "quantised_linear_geglu", "upsample_conv"})


def too_early(kernel: Any) -> int:
    """Instructions of a compiled kernel that have to stand behind its wait for earlier kernels, and do not.

    0 for kernels that only begin when those have ended. See `ops/triton/overlap.py`.
    """
    if not kernel.metadata.launch_pdl:
        return 0
    before: str = kernel.asm["ptx"].partition("griddepcontrol.wait")[0]
    return len(_TOO_EARLY.findall(before))


def _described(kernel: Any) -> str:
    import triton

    dump = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    text = f"{kernel.metadata.name} warps={kernel.metadata.num_warps} shared={kernel.metadata.shared}"
    text += f" early={too_early(kernel)}"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [str(dump), "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        )
    found = dict(re.findall(r"\b(REG|STACK):(\d+)", usage.stdout))
    return f"{text} registers={found['REG']} stack={found['STACK']}"


def _module(path: pathlib.Path) -> types.ModuleType:
    return importlib.import_module(".".join(path.resolve().relative_to(ROOT).with_suffix("").parts))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("shapes", type=pathlib.Path)
    parser.add_argument("--all", action="store_true", help="every case, not one of each op")
    options = parser.parse_args()

    rewriter.ops.providers.load()
    from rewriter.ops.triton.ahead import Target
    from rewriter.ops.triton.compiling import compile_launches

    kernels = compile_launches(Target(capability=90, multiprocessors=132))
    failures = 0
    seen: set[str] = set()
    draw = Draw(device=torch.device("cpu"), fill=False)
    for case in _module(options.shapes).CASES:
        if case.op in seen and not options.all:
            continue
        seen.add(case.op)
        arguments = case.make(draw)
        providers = rewriter.ops.OPS[case.op].providers
        provider = providers.get("triton")
        # Its matrix product is torch's, which would run here, and its kernel that of other ops.
        if provider is None and "gemm+triton" in providers:
            continue
        if provider is None and case.op in _NATIVE:
            continue
        if provider is None:
            print(f"FAILED {case.op}: no provider triton")
            failures += 1
            continue
        for config in provider.configs(*arguments):
            before = set(kernels)
            try:
                provider.fn(*arguments, **config)
            except Exception as error:
                failures += 1
                print(f"FAILED {case.op} {case.label} {config}: {type(error).__name__}: {error}")
            for key in kernels.keys() - before:
                print(f"{case.op} {case.label} {config}: {_described(kernels[key])}")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
