from __future__ import annotations

import json
import pathlib
from collections.abc import Callable

import pytest

from rewriter.cli.main import main

WriteRules = Callable[..., pathlib.Path]


def test_list(rule_file: WriteRules, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "--pack", str(rule_file())]) == 0
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["RULE", "PHASE", "FILE", "SUMMARY"]
    assert first.split(maxsplit=3) == [
        "dropout-off",
        "fuse",
        "good.yaml",
        "dropout outside training passes its input on",
    ]
    assert second.startswith("double-relu")


def test_default_pack(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["pack"] == "default"
    assert "group-norm-silu" in [rule["id"] for rule in document["rules"]]


def test_one_rule_as_it_stands_in_its_file(rule_file: WriteRules, capsys: pytest.CaptureFixture[str]) -> None:
    path = rule_file()
    assert main(["rules", "dropout-off", "--pack", str(path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("dropout-off (cleanup, fuse): dropout outside training passes its input on\n")
    assert "\nInference has no use for it.\n" in out
    assert f"\n{path}:5\n" in out
    assert "\nid: dropout-off\n" in out
    assert "\n  y = aten::dropout(x, p, False)\n" in out
    assert out.endswith("\ndims: {N: 1..3, C: 1..40}\n")


def test_one_rule_as_json(rule_file: WriteRules, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "double-relu", "--json", "--pack", str(rule_file())]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["id"] == "double-relu"
    assert document["match"] == "a = aten::relu(x)\ny = aten::relu(a)\n"
    assert document["ignore"] == {}
    assert document["tolerance"] == 2


def test_unknown_rule(rule_file: WriteRules, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "droput-off", "--pack", str(rule_file())]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "unknown rule 'droput-off'" in captured.err
    assert "did you mean dropout-off?" in captured.err


def test_unknown_pack(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "--pack", "defualt"]) == 2
    assert "unknown pack (found defualt" in capsys.readouterr().err
