from __future__ import annotations

import json
import pathlib
import subprocess
import sys

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "matching.py"


def test_the_matching_benchmark_runs() -> None:
    command = [sys.executable, str(SCRIPT), "--nodes", "200", "400", "--copies", "1", "2", "--runs", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    small, large = json.loads(done.stdout)["rows"]
    assert set(small["rewrite"]) == {"1", "2"}
    assert large["nodes"] > 1.5 * small["nodes"]
    assert large["rewrites"] > 1.5 * small["rewrites"] > 0
