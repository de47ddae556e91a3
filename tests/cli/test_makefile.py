from __future__ import annotations

import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def _make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "--no-print-directory", *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )


def test_no_python(tmp_path: pathlib.Path) -> None:
    made = _make("demo", f"VENV={tmp_path / 'venv'}", "PYTHON=/bin/false")
    assert made.returncode == 2
    assert "no Python 3.11, 3.12 or 3.13 found" in made.stderr


def test_python_without_venv(tmp_path: pathlib.Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; esac\n', encoding="utf-8")
    python.chmod(0o755)
    made = _make("demo", f"VENV={tmp_path / 'venv'}", f"PYTHON={python}")
    assert made.returncode == 2
    assert "apt-get install python3-venv" in made.stderr


def test_second_run_installs_nothing(tmp_path: pathlib.Path) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("bin/python", ".installed-torch", ".installed-demo"):
        (tmp_path / name).touch()
    made = _make("--dry-run", "demo", f"VENV={tmp_path}")
    assert made.stdout.splitlines() == [f"{tmp_path}/bin/rewriter demo"]


def test_torch_goes_first(tmp_path: pathlib.Path) -> None:
    made = _make("--dry-run", "demo", f"VENV={tmp_path / 'venv'}", "TORCH=torch==2.12.0 --index-url ADDRESS")
    installs = [line for line in made.stdout.splitlines() if "pip" in line and " install " in line]
    assert [line.split(" install ")[1] for line in installs] == ["torch==2.12.0 --index-url ADDRESS", "-e ."]
