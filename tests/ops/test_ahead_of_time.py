"""Every Triton kernel compiles for a real GPU, which the interpreter cannot tell: one case of each benchmarked op."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("triton")

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize("shapes", sorted((ROOT / "benchmarks" / "shapes").glob("*.py")), ids=lambda path: path.stem)
def test_kernels_compile(shapes: pathlib.Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "ahead_of_time.py"), str(shapes)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout
