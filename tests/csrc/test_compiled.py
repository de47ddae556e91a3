"""What the assembler says about the kernels for Hopper."""

from __future__ import annotations

import pathlib
import re
import subprocess

import pytest

from rewriter.ops.cuda import build, compiler
from rewriter.ops.cuda.compiler import BuildError

KERNELS = sorted(path for path in build.sources() if path.suffix == ".cu")


@pytest.mark.parametrize("source", KERNELS, ids=lambda path: path.name)
def test_products_overlap_and_sums_stay_in_registers(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """With too few registers, or where sums are touched too early, the assembler lets each product wait for the one
    before: it says so and goes on. An address or two may be spilled, sums may not."""
    try:
        nvcc = compiler.find_nvcc()
    except BuildError as error:
        pytest.skip(str(error))
    options = ["-gencode=arch=compute_90a,code=sm_90a", "-Xptxas", "-v", "-cubin", "-o", str(tmp_path / "kernel.cubin")]
    done = subprocess.run([str(nvcc), *compiler.FLAGS, *options, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    spilled = [int(count) for count in re.findall(r"(\d+) bytes spill stores", done.stderr)]
    assert spilled
    assert max(spilled) <= 16
    assert "serialized" not in done.stderr
