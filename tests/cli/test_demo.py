from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from types import SimpleNamespace

import pytest

import rewriter.demo
from rewriter.cli.main import main
from rewriter.demo import comparison


def test_demo(
    rule_file: Callable[..., pathlib.Path],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(comparison, "_TIMING_SECONDS", 0.5)
    options = ["--steps", "2", "--seed", "7", "--rules", str(rule_file()), "--out", str(tmp_path / "out")]
    assert main(["demo", "--device", "cpu", *options, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["target"], document["steps"], document["seed"]) == ("digits", 2, 7)
    assert document["matches"]["dropout-off"]["matched"] > 0
    assert all(pathlib.Path(path).stat().st_size for path in document["files"].values())


def test_a_fallback_is_a_finding(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Result(SimpleNamespace):
        def __str__(self) -> str:
            return "what came out"

    monkeypatch.setattr(rewriter.demo, "run_demo", lambda *_, **__: Result(fallbacks=("unet",)))
    assert main(["demo", "--device", "cpu", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().out == "what came out\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "digist"], "digits"),
        (["--rules", "defualt"], "unknown pack"),
        (["--without", "no-such-rule"], "no such rule to remove"),
        (["--out", __file__], "cannot make the folder"),
    ],
)
def test_wrong_usage(
    arguments: list[str], message: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--device", "cpu", "--out", str(tmp_path), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("rewriter: error: ")
    assert message in captured.err
