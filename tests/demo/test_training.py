"""The script that made the bundled weights still runs and writes a folder that loads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from rewriter.models.digits import load_digits

ROOT = Path(__file__).parents[2]


def test_a_short_training_writes_a_pipeline(tmp_path: Path) -> None:
    out, sheet = tmp_path / "digits", tmp_path / "sheet.png"
    command = [sys.executable, str(ROOT / "examples" / "train_digits.py"), "--steps", "2", "--batch", "4"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--out", out, "--sheet", sheet], check=True, cwd=ROOT, env=environment, timeout=120)
    assert load_digits(out).unet.config.num_class_embeds == 10
    assert sheet.is_file()
