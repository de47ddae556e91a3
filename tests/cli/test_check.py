from __future__ import annotations

import io
import json
import pathlib
from collections.abc import Callable

import pytest

from rewriter.cli.main import main

WriteRules = Callable[..., pathlib.Path]


def test_good_file(rule_file: WriteRules, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(rule_file())]) == 0
    assert capsys.readouterr().out == "1 file, 2 rules: ok\n"


def test_every_bad_file_is_reported(rule_file: WriteRules, capsys: pytest.CaptureFixture[str]) -> None:
    bad_op = rule_file("op.yaml", "aten::dropout", "aten::dropuot")
    bad_key = rule_file("key.yaml", "doc:", "docs:")
    assert main(["check", str(bad_op), str(rule_file()), str(bad_key)]) == 1
    out = capsys.readouterr().out
    assert f"{bad_op}:10:" in out
    assert "aten::dropout" in out
    assert f"{bad_key}:7:5: " in out
    assert out.endswith("2 errors in 3 files\n")


def test_files_are_checked_together(rule_file: WriteRules, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = rule_file("first.yaml"), rule_file("second.yaml")
    assert main(["check", str(first), str(second)]) == 1
    assert "dropout-off" in capsys.readouterr().out


def test_a_folder_is_its_files(rule_file: WriteRules, capsys: pytest.CaptureFixture[str]) -> None:
    bad = rule_file("bad.yaml", "format: 1", "format: 2")
    good = rule_file()
    rule_file("worse.yaml", "format: 1", "format: one")
    assert main(["check", str(good.parent), str(bad)]) == 1
    assert capsys.readouterr().out.endswith("2 errors in 3 files\n")


def test_an_empty_folder(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path)]) == 1
    assert "a folder without rule files" in capsys.readouterr().out


def test_one_file_twice_is_one_file(rule_file: WriteRules, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(rule_file()), str(rule_file())]) == 0
    assert capsys.readouterr().out == "1 file, 2 rules: ok\n"


def test_missing_file(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "missing.yaml"
    assert main(["check", str(missing)]) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{missing}:1:1: cannot read the rule file: No such file or directory")
    assert captured.err == ""


def test_a_pack_name_is_not_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "default"]) == 1
    assert "cannot read the rule file" in capsys.readouterr().out


def test_json(rule_file: WriteRules, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = rule_file(), rule_file("bad.yaml", "inputs:", "inptus:")
    assert main(["check", str(good), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"files": [str(good)], "rules": 2, "errors": []}
    assert main(["check", "--json", str(bad)]) == 1
    document = json.loads(capsys.readouterr().out)
    (error,) = document["errors"]
    assert (error["file"], error["found"], error["suggestion"]) == (str(bad), "inptus", "inputs")
    assert error["line"] == 14
    assert error["column"] == 5


RELU = "    inputs:\n      x: {shape: [N]}"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            RELU,
            f"    where:\n      x: {{rank: 2}}\n{RELU}",
            ("20:9: rule double-relu", "does not fire", "x has rank 1"),
        ),
        ("shape: [N, C]", "shape: [N - 4, C]", ("5:9: rule dropout-off", "x: N - 4 is -", "expected `dims` that")),
        ("p: [0.1, 0.5]", "p: [3.0]", ("5:9: rule dropout-off", "the pattern refuses", "has to be between 0 and 1")),
        ("x: {shape: [N]}", "x: {shape: [N], dtype: bool}", ("20:9: rule double-relu", "the pattern refuses", "bool")),
        (RELU, f"    where:\n      x: {{dtype: f8e4m3}}\n{RELU}", ("20:9: rule double-relu", "no dtype", "`where`")),
    ],
    ids=["rank", "shape", "constant", "dtype", "no-dtype"],
)
def test_an_entry_that_allows_no_proof(
    rule_file: WriteRules, capsys: pytest.CaptureFixture[str], old: str, new: str, words: tuple[str, ...]
) -> None:
    path = rule_file("bad.yaml", old, new)
    assert main(["check", str(path), str(rule_file())]) == 1
    line, summary = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{path}:")
    assert "no proof can be generated from its entry" in line
    for word in words:
        assert word in line
    assert summary == "1 error in 2 files"


def test_ops_without_a_cpu_implementation_are_no_error(
    rule_file: WriteRules, capsys: pytest.CaptureFixture[str]
) -> None:
    path = rule_file("gpu.yaml", "a = aten::relu(x)\n      y = aten::relu(a)", "y = aten::_cslt_compress(x)")
    assert main(["check", str(path)]) == 0, capsys.readouterr().out


def test_a_terminal_without_the_files_letters(rule_file: WriteRules, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(out, encoding="ascii"))
    bad = rule_file("bad.yaml", "id: dropout-off", "id: größe")
    assert main(["check", str(bad)]) == 1
    assert b"(found gr\\xf6\\xdfe, expected such as group-norm-silu)" in out.getvalue()
