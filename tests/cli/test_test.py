from __future__ import annotations

import json
import pathlib
import stat

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
    assert captured.err == ""
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
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "out"
    arguments = ["test", str(rules), "--examples", "2", "--no-mutants", "--jobs", "1", "--dtype", "f32"]
    assert main([*arguments, "--out", str(folder)]) == 3
    captured = capsys.readouterr()
    assert "1 of 1 rules proved" in captured.out
    assert captured.err == f"rewriter: error: the report could not be written to {folder}: Not a directory\n"


def test_a_verdict_that_cannot_be_kept(
    rules: pathlib.Path, cache: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache.write_text("")
    assert not stat.S_ISDIR(cache.stat().st_mode)
    assert main(["test", str(rules), "--examples", "2", "--no-mutants", "--jobs", "1", "--dtype", "f32"]) == 3
    assert "the verdict could not be written to" in capsys.readouterr().err
