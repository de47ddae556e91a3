"""The pytest plugin: a test for each rule, dtype and provider; nothing at all without its option."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest


@pytest.fixture
def project(rule_file: pathlib.Path, planted: str) -> pathlib.Path:
    """A folder with rules, and with a test of its own."""
    assert planted
    folder = rule_file.parent / "project"
    folder.mkdir()
    rule_file.rename(folder / "mine.yaml")
    (folder / "test_own.py").write_text("import sys\n\ndef test_own():\n    assert 'torch' not in sys.modules\n")
    return folder


def run(folder: pathlib.Path, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "error", "-v", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
    return done.returncode, done.stdout + done.stderr


def test_without_the_option_nothing_happens(project: pathlib.Path) -> None:
    status, out = run(project)
    assert status == 0, out
    assert "1 passed" in out
    assert "mine.yaml" not in out


def test_rules_are_tests(project: pathlib.Path) -> None:
    options = ("--rewriter-rules", "mine.yaml", "--rewriter-import", "planted", "--rewriter-examples", "5")
    status, out = run(project, *options, "-k", "silu-by-hand or wrong-gelu or noisy or aborts")
    assert status == 1, out
    assert "mine.yaml::silu-by-hand[f32-graph] PASSED" in out
    assert "mine.yaml::silu-by-hand[f16-graph] PASSED" in out
    assert "mine.yaml::planted-gelu[f32-noisy] PASSED" in out
    assert "wrong-gelu is not proved in f32 by graph: wrong result" in out
    assert "--rule wrong-gelu --provider graph --device cpu --example f32,normal," in out
    assert "planted-gelu is not proved in f32 by aborts: crashes" in out
    assert "2 failed, 3 passed, 5 deselected" in out
    assert "Traceback" not in out
    # Only the rules: other tests run beside them when they are named.
    assert "test_own" not in out


def test_a_bad_file_is_an_error_of_collection(project: pathlib.Path) -> None:
    text = (project / "mine.yaml").read_text()
    (project / "mine.yaml").write_text(text.replace("aten::gelu", "aten::gellu"))
    status, out = run(project, "--rewriter-rules", "mine.yaml", "test_own.py")
    assert status == 2, out
    assert "ERROR collecting mine.yaml" in out
    assert "rule wrong-gelu: match: unknown op (found aten::gellu)" in out
    assert "Traceback" not in out


def test_a_missing_file_is_wrong_usage(project: pathlib.Path) -> None:
    status, out = run(project, "--rewriter-rules", "yours.yaml")
    assert status == 4
    assert "--rewriter-rules: found" in out
    assert "expected a rule file or a folder of them" in out
