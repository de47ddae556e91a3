"""Every Triton kernel compiles for a real GPU, which the interpreter cannot tell: one case of each benchmarked op."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

ROOT = pathlib.Path(__file__).parents[2]
SHAPES = sorted((ROOT / "benchmarks" / "shapes").glob("*.py"))


@pytest.mark.parametrize("shapes", SHAPES, ids=lambda path: path.stem)
def test_every_config_compiles_without_spilling(shapes: pathlib.Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "ahead_of_time.py"), str(shapes)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if "registers=" in line]
    assert lines
    assert not [line for line in lines if not line.endswith("stack=0")]
    assert not [line for line in lines if " early=0 " not in line], (
        "memory is touched before earlier kernels have ended"
    )
