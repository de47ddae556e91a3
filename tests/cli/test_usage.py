from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from rewriter.cli.main import main

COMMANDS = ("demo", "check", "rules", "explain", "bench")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["frobnicate"],
        ["check"],
        ["check", "--strict", "file.yaml"],
        ["rules", "one", "two"],
        ["explain"],
        ["bench"],
        ["bench", "sd15-tiny", "--seconds", "0"],
        ["bench", "sd15-tiny", "--seconds", "soon"],
        ["bench", "sd15-tiny", "--height", "-8"],
        ["bench", "sd15-tiny", "--device", "tpu"],
        ["demo", "--dtype", "f64"],
        ["demo", "--mod", "digits"],
        ["demo", "--steps", "0"],
        ["demo", "--seed", "x"],
    ],
)
def test_wrong_usage_is_told_on_stderr(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "usage: rewriter" in captured.err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_that_parses(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    from rewriter.cli.main import build_parser

    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    found = re.search(r"example:\n  rewriter (.+)\n", capsys.readouterr().out)
    assert found
    assert build_parser().parse_args(found[1].split()).command == command


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert re.fullmatch(r"rewriter \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize("command", ["explain", "bench"])
def test_unknown_target(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "sd51-tiny"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "sd15-tiny" in captured.err
    assert "Traceback" not in captured.err


def test_help_does_not_import_torch() -> None:
    program = "import sys; from rewriter.cli.main import build_parser; build_parser(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_closed_pipe_is_no_error(rule_file: Callable[..., pathlib.Path]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        run = subprocess.run(
            [sys.executable, "-m", "rewriter.cli.main", "rules", "--pack", str(rule_file())],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=120,
        )
    assert (run.returncode, run.stderr) == (0, "")
