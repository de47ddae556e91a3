from __future__ import annotations

import json
import pathlib
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
import torch

from rewriter.cli.main import main
from rewriter.proof import verdict
from rewriter.proof.outcome import Example

RULES = """\
format: 1
pack: mine
summary: Rules over stock ops.
rules:
  - id: silu-by-hand
    summary: x * sigmoid(x) is silu
    match: |
      s = aten::sigmoid(x)
      y = aten::mul(x, s)
    where:
      x: {dtype: [f16, f32]}
    replace: |
      y = aten::silu(x)
    inputs:
      x: {shape: [N, C], layouts: [contiguous, sliced]}
    dims: {N: 1..3, C: 1..40}
"""
WRONG = """\

  - id: wrong-gelu
    summary: silu is not gelu
    match: |
      y = aten::gelu(x)
    where:
      x: {dtype: f32}
    replace: |
      y = aten::silu(x)
    inputs:
      x: {shape: [N, C]}
    dims: {N: 1..3, C: 1..40}
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("REWRITER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def rules(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "mine.yaml"
    path.write_text(RULES, encoding="utf-8")
    return path


def test_a_rule_over_stock_ops_is_proved(
    rules: pathlib.Path, tmp_path: pathlib.Path, cache: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["test", str(rules), "--examples", "8", "--jobs", "1", "--out", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("# 1 of 1 rules proved on ")
    assert "| silu-by-hand | graph " in captured.out
    # Not a terminal: a line for each job.
    assert [line.split("s  ")[1].partition(" (")[0] for line in captured.err.splitlines()] == [
        "starting a process for the proofs",
        "3 jobs for 1 process",
        "1/3 silu-by-hand f32 graph: 8 examples",
        "2/3 silu-by-hand f16 graph: 8 examples",
        "3/3 silu-by-hand mutants: 60 of 60 killed",
    ]
    assert (tmp_path / "out" / "summary.md").read_text() == captured.out
    assert "silu-by-hand" in (tmp_path / "out" / "verdict.html").read_text()
    results = verdict.read(tmp_path / "out" / "verdict.json")
    assert [(proof.dtype, proof.examples) for proof in results.proofs] == [("f32", 8), ("f16", 8)]
    (kept,) = (cache / "verdicts").iterdir()
    assert verdict.read(kept) == results


def test_a_wrong_rule_fails_with_a_command_that_repeats_it(
    rules: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules.write_text(RULES + WRONG, encoding="utf-8")
    arguments = ["test", str(rules), "--examples", "5", "--no-mutants", "--jobs", "1"]
    assert main([*arguments, "--dtype", "f32", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    right, wrong = document["proofs"]
    assert (right["rule"], right["failure"]) == ("silu-by-hand", None)
    assert wrong["failure"]["kind"] == "wrong result"
    example = Example.parse(wrong["failure"]["example"])
    assert dict(example.dims or ()) == {"N": 1, "C": 1}
    repeated = ["test", str(rules), "--rule", "wrong-gelu", "--provider", "graph", "--example", str(example)]
    assert main(repeated) == 1
    out = capsys.readouterr().out
    assert "| wrong-gelu | graph    | failed |" in out
    assert f"--example {example}`" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--example", "f32"], "--example: expected one --rule and one --provider beside it"),
        (["--rule", "a", "--provider", "b", "--example", "f32"], "--example: not an example: found 'f32'"),
        (["--time"], "--time: found --device cpu, expected --device cuda"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"rewriter: error: {message}")


def test_an_unknown_rule_names_the_nearest(rules: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", str(rules), "--rule", "silu-by-hands"]) == 2
    assert "--rule: found 'silu-by-hands'" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_no_gpu(rules: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", str(rules), "--device", "cuda"]) == 2
    assert "--device: found cuda, but torch sees no CUDA device here; expected cpu" in capsys.readouterr().err


def test_dims_that_make_no_operand_fail_and_the_other_rules_go_on(
    rules: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    impossible = WRONG.replace("wrong-gelu", "impossible").replace("[N, C]", "[N, C-50]").replace("1..40", "1..9")
    rules.write_text(RULES + impossible, encoding="utf-8")
    assert main(["test", str(rules), "--examples", "3", "--no-mutants", "--jobs", "1", "--dtype", "f32"]) == 1
    out = capsys.readouterr().out
    assert "impossible, f32, graph: no example: " in out
    assert "C-50 is -" in out
    assert out.startswith("# 1 of 2 rules proved on ")


def test_a_report_that_cannot_be_written(
    rules: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    (folder / "verdict.json").mkdir(parents=True)
    arguments = ["test", str(rules), "--examples", "2", "--no-mutants", "--jobs", "1", "--dtype", "f32"]
    assert main([*arguments, "--out", str(folder)]) == 3
    captured = capsys.readouterr()
    assert "1 of 1 rules proved" in captured.out
    assert captured.err.endswith(f"rewriter: error: the report could not be written to {folder}: Is a directory\n")
    # What can be known beforehand does not cost a proof.
    assert main([*arguments, "--out", __file__]) == 2
    assert capsys.readouterr().err.startswith(f"rewriter: error: --out: cannot make the folder {__file__}")


def test_a_verdict_that_cannot_be_kept(
    rules: pathlib.Path, cache: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache.write_text("")
    assert not stat.S_ISDIR(cache.stat().st_mode)
    assert main(["test", str(rules), "--examples", "2", "--no-mutants", "--jobs", "1", "--dtype", "f32"]) == 3
    assert "the verdict could not be written to" in capsys.readouterr().err


PLANTED = """\
import pathlib
import time
from rewriter.ops import registry

def hang(x):
    pathlib.Path(__file__).with_name("hanging").touch()
    time.sleep(1000)

registry.define("planted_silu(Tensor x) -> Tensor", lambda x: x.sigmoid() * x)
registry.provide("planted_silu", "hangs", hang, lambda *_: None)
"""


@pytest.fixture
def hanging(rules: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments for a rule whose first proof ends at once and whose second one never does."""
    (tmp_path / "planted_silu.py").write_text(PLANTED, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    rules.write_text(RULES.replace("aten::silu(x)", "rewriter::planted_silu(x)"), encoding="utf-8")
    arguments = [str(rules), "--import", "planted_silu", "--dtype", "f32", "--examples", "2", "--jobs", "1"]
    return ["test", *arguments, "--out", str(tmp_path / "out")]


def test_what_is_not_done_in_time_is_left(
    hanging: list[str],
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Timer(threading.Thread):
        """Over once the second proof hangs: how long the first one takes depends on the machine."""

        def __init__(self, seconds: float, function: Callable[..., None], args: list[str]) -> None:
            super().__init__(daemon=True)
            assert 0 < seconds <= 1000
            self.end, self.cancelled = (lambda: function(*args)), threading.Event()

        def run(self) -> None:
            while not self.cancelled.wait(0.05):
                if (tmp_path / "hanging").exists():
                    self.end()
                    return

        def cancel(self) -> None:
            self.cancelled.set()

    monkeypatch.setattr(threading, "Timer", Timer)
    assert main([*hanging, "--within", "1000"]) == 3
    captured = capsys.readouterr()
    assert "not everything could be tried" in captured.out
    line = "- 2 not done, out of time after 1000 s: silu-by-hand f32 hangs, silu-by-hand mutants"
    assert line in captured.out.splitlines()
    (proof,) = verdict.read(tmp_path / "out" / "verdict.json").proofs
    assert (proof.provider, proof.examples, proof.proved) == ("torch", 2, True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_what_it_found(
    number: signal.Signals, hanging: list[str], tmp_path: pathlib.Path
) -> None:
    command = [sys.executable, "-m", "rewriter.cli.main", *hanging]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "1/3 silu-by-hand f32 torch" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(number)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 3
    assert f"2 not done, ended by {number.name}: silu-by-hand f32 hangs" in out
    assert verdict.read(tmp_path / "out" / "verdict.json").problems
