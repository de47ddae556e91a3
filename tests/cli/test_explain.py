from __future__ import annotations

import json

import pytest

from rewriter.cli.main import main


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "digits", "--device", "cpu"]) == 0
    assert "group-norm-silu" in capsys.readouterr().out


def test_explain_one_rule_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "digits", "--device", "cpu", "--rule", "group-norm-silu", "--json"]) == 0
    assert "group-norm-silu" in json.dumps(json.loads(capsys.readouterr().out))


def test_unknown_rule(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "digits", "--device", "cpu", "--rule", "group-norm-silo"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "did you mean group-norm-silu?" in captured.err
