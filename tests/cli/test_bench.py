from __future__ import annotations

import argparse
import functools
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rewriter.cli import targets
from rewriter.cli.main import main
from rewriter.cli.output import WrongUsage
from rewriter.models import Target


@pytest.fixture(scope="module")
def tiny() -> Target:
    return targets.load(argparse.Namespace(target="sd15-tiny", device="cpu", dtype=None))


def test_the_denoiser_has_inputs_of_any_size(tiny: Target) -> None:
    step = targets.step_of(tiny, None, {"batch": 3, "height": 32, "width": 48})
    assert (step.component, step.method) == ("unet", "forward")
    assert step.description == "float32 [3, 4, 4, 6]"


@pytest.mark.parametrize(("component", "method"), [("vae", "decode"), ("text_encoder", "forward")])
def test_other_networks_are_watched_in_the_pipeline(tiny: Target, component: str, method: str) -> None:
    step = targets.step_of(tiny, component, {})
    assert step.method == method
    assert method not in vars(step.module)
    with torch.no_grad():
        assert getattr(step.module, method)(*step.args, **step.kwargs)


@pytest.mark.parametrize(
    ("component", "sizes", "message"),
    [
        ("scheduler", {}, "has no network 'scheduler'; it has text_encoder, unet, vae"),
        ("vae", {"batch": 2}, "only the denoiser's have a batch size"),
        (None, {"height": 33}, "multiple of 8"),
    ],
)
def test_impossible_steps(tiny: Target, component: str | None, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(WrongUsage, match=message):
        targets.step_of(tiny, component, sizes)


def test_no_such_device(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", "sd15-tiny", "--device", "cuda"]) == 2
    assert "torch sees no CUDA device here" in capsys.readouterr().err


def _bench(rule_file: Callable[..., pathlib.Path], *options: str) -> int:
    return main(["bench", "digits", "--device", "cpu", "--seconds", "0.05", "--rules", str(rule_file()), *options])


def test_bench(rule_file: Callable[..., pathlib.Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert _bench(rule_file) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "digits: unet on cpu, float32 [2, 1, 16, 16]"
    assert [line.split()[0] for line in lines[1:4]] == ["MODE", "eager", "rewriter"]
    assert "TFLOP/s in a product of" in lines[4]


def test_bench_as_json(rule_file: Callable[..., pathlib.Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert _bench(rule_file, "--error", "f32", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    found: dict[str, Any] = {mode["mode"]: mode for mode in document["modes"]}
    assert list(found) == ["eager", "rewriter"]
    assert found["eager"]["error_eager"] == found["eager"]["error_f32"] == 0
    assert found["rewriter"]["error_f32"] < 1e-5
    assert found["rewriter"]["times"]["samples"] >= 5
    assert found["rewriter"]["ready_seconds"] >= found["rewriter"]["first_seconds"] > 0
    assert document["flops"] > 1e6
    assert document["versions"]["torch"] == torch.__version__
    (component,) = found["rewriter"]["reports"][0]["components"].values()
    assert component["status"] == "optimised"


def test_files_and_profile(rule_file: Callable[..., pathlib.Path], tmp_path: pathlib.Path) -> None:
    out = tmp_path / "new" / "folder"
    assert _bench(rule_file, "--modes", "eager,rewriter,rewriter-again", "--profile", "--out", str(out)) == 0
    assert {path.name for path in out.iterdir()} == {"bench.json", "table.md", "plot.png", "profile.txt"}
    assert json.loads((out / "bench.json").read_text())["target"] == "digits"
    assert "| rewriter a second time |" in (out / "table.md").read_text()
    assert "convolution" in (out / "profile.txt").read_text()
    assert (out / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_ablation(
    rule_file: Callable[..., pathlib.Path], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = "    summary: dropout outside"
    free = functools.partial(rule_file, old=old, new=f"    phase: canonicalise\n{old}")
    assert _bench(free, "--modes", "rewriter", "--ablate", "--out", str(tmp_path)) == 0
    captured = capsys.readouterr().out
    assert "what each rule adds to the others (1 of 1 rules)" in captured
    assert any(line.startswith("dropout-off") for line in captured.splitlines())
    (worth,) = json.loads((tmp_path / "bench.json").read_text())["ablation"]
    assert worth["rule"] == "dropout-off"
    assert worth["kept"] > 0
    assert worth["with_rule"] > 0
    assert worth["without"] > 0


def test_ablation_of_some_rules(
    rule_file: Callable[..., pathlib.Path], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = "    summary: dropout outside"
    free = functools.partial(rule_file, old=old, new=f"    phase: canonicalise\n{old}")
    rules = ("--ablate-rule", "dropout-off", "--ablate-rule", "double-relu")
    assert _bench(free, "--modes", "rewriter", *rules, "--out", str(tmp_path)) == 0
    assert "what each rule adds to the others (2 of 2 rules)" in capsys.readouterr().out
    first, second = json.loads((tmp_path / "bench.json").read_text())["ablation"]
    assert (first["rule"], first["failure"]) == ("dropout-off", None)
    assert first["kept"] > 0
    assert (second["rule"], second["kept"], second["failure"]) == ("double-relu", 0, "none of its rewrites is kept")


def test_table_by_shape(rule_file: Callable[..., pathlib.Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert _bench(rule_file, "--shapes", "16x16,24x16", "--batches", "1,3", "--modes", "eager", "--json") == 0
    captured = capsys.readouterr()
    shapes = json.loads(captured.out)["shapes"]
    assert [shape["inputs"] for shape in shapes] == [
        "float32 [1, 1, 16, 16]",
        "float32 [3, 1, 16, 16]",
        "float32 [1, 1, 16, 24]",
        "float32 [3, 1, 16, 24]",
    ]
    assert all([mode["mode"] for mode in shape["modes"]] == ["eager"] for shape in shapes)


def test_batches_alone_keep_the_size(
    rule_file: Callable[..., pathlib.Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert _bench(rule_file, "--batches", "2") == 0
    head, row = capsys.readouterr().out.splitlines()[1:3]
    assert head.split()[:4] == ["SHAPE", "EAGER", "REWRITER", "REWRITER"]
    assert row.startswith("16x16 batch 2")


def test_whole_pipeline(rule_file: Callable[..., pathlib.Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert _bench(rule_file, "--pipeline", "--steps", "2", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    eager, rewritten = document["pipeline"]
    assert document["steps"] == 2
    assert (eager["mode"], eager["error"], eager["report"]) == ("eager", 0, None)
    assert rewritten["error"] < 1e-4
    assert rewritten["share"] == pytest.approx(rewritten["loop_rate"] / rewritten["denoiser_rate"])
    unet = rewritten["report"]["components"]["unet"]
    # Alone it is called as the pipeline calls it, so that it need not be traced once more.
    assert (unet["status"], unet["captures"]) == ("optimised", 1)


def test_compiled_modes(
    rule_file: Callable[..., pathlib.Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiled: list[Callable[..., Any]] = []

    def compile_(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        compiled.append(function)
        return function

    monkeypatch.setattr(torch, "compile", compile_)
    # Importing the compiler warns, and there is nothing to reset.
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    assert _bench(rule_file, "--modes", "compile,eager", "--json") == 0
    modes_ = json.loads(capsys.readouterr().out)["modes"]
    assert [(mode["mode"], mode["error_eager"]) for mode in modes_] == [("compile", 0), ("eager", 0)]
    assert len(compiled) == 1
    assert _bench(rule_file, "--pipeline", "--steps", "1", "--modes", "compile", "--json") == 0
    (drawn,) = json.loads(capsys.readouterr().out)["pipeline"]
    assert (drawn["mode"], drawn["error"], len(compiled)) == ("compile", 0, 2)


def test_a_failing_mode_is_a_finding(
    rule_file: Callable[..., pathlib.Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import rewriter

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of luck\nand more")

    monkeypatch.setattr(rewriter, "optimize", fail)
    assert _bench(rule_file) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines()[3].split() == ["rewriter", "failed"]
    assert "rewriter: RuntimeError: out of luck\n" in captured.err
    assert _bench(rule_file, "--pipeline", "--steps", "1") == 1
    assert "rewriter: RuntimeError: out of luck\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--modes", "eager,quick"], "--modes: found 'quick', expected some of eager, compile, rewriter"),
        (["--modes", "graph"], "--modes: found 'graph' on a CPU"),
        (["--pipeline", "--modes", "graph"], "expected some of eager, compile, rewriter with --pipeline"),
        (["--pipeline", "--ablate"], "--ablate: no use with --pipeline"),
        (["--shapes", "16x16", "--profile"], "--profile: no use with --shapes or --batches"),
        (["--pipeline", "--batch", "2"], "--batch, --height and --width: no use with --pipeline"),
        (["--shapes", "16x16", "--height", "16"], "--height and --width: no use with --shapes"),
        (["--batches", "2", "--batch", "2"], "--batch: no use with --batches"),
        (["--steps", "3"], "--steps: no use without --pipeline"),
        (["--pipeline", "--ablate-rule", "dropout-off"], "--ablate-rule: no use with --pipeline"),
        (["--ablate", "--ablate-rule", "dropout-off"], "--ablate-rule: no use with --ablate"),
        (["--ablate-rule", "dropout-of"], "--ablate-rule: found 'dropout-of', .*; did you mean dropout-off?"),
        (["--out", __file__], "--out: cannot make the folder"),
        (["--component", "vae", "--batches", "2"], "has no network 'vae'"),
    ],
)
def test_options_that_make_no_sense(
    options: list[str], message: str, rule_file: Callable[..., pathlib.Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert _bench(rule_file, *options) == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("option", ["--shapes=16", "--shapes=16x16x16", "--batches=0", "--seconds=-1"])
def test_unreadable_options(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "digits", option])
    assert "expected" in capsys.readouterr().err
