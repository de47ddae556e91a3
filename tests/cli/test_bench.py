from __future__ import annotations

import argparse
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rewriter.cli import modes, targets, timing
from rewriter.cli.main import main
from rewriter.cli.output import WrongUsage
from rewriter.models import Target

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny() -> Target:
    return targets.load(argparse.Namespace(target="sd15-tiny", device="cpu", dtype=None))


def test_calls_take_turns() -> None:
    order: list[str] = []
    shares: list[float] = []
    calls = {name: lambda name=name: order.append(name) for name in ("a", "b", "c")}
    times = timing.compare(calls, CPU, seconds=0.01, advance=shares.append)
    assert list(times) == ["a", "b", "c"]
    assert all(entry.low <= entry.median <= entry.high for entry in times.values())
    assert times["a"].speed == 1
    assert math.isclose(sum(shares), 1)
    turns = [name for index, name in enumerate(order) if index == 0 or order[index - 1] != name]
    assert {"a", "b", "c"} == set(turns[-3:])


def test_memory_is_what_the_first_call_needs_on_top() -> None:
    def prepare() -> modes.Call:
        return lambda: torch.ones(16, 1024, 1024).sum()

    call, readied = timing.ready(prepare, CPU)
    assert float(readied.output) == float(call()) == 2**24
    assert readied.peak_bytes is None or 60 * 2**20 < readied.peak_bytes < 120 * 2**20


def test_twin_shares_weights_and_nothing_else() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 3))
    second = modes.twin(module)
    second.forward = lambda x: x  # type: ignore[method-assign]
    second.register_buffer("extra", torch.ones(1))
    x = torch.randn(2, 3)
    assert torch.equal(second(x), x)
    assert not torch.equal(module(x), x)
    assert "extra" not in dict(module.named_buffers())
    assert second[0].weight is module[0].weight


def test_relative_error() -> None:
    reference = {"a": torch.tensor([3.0, 0.0]), "b": (torch.tensor([4.0]), None)}
    assert modes.relative_error(reference, reference) == 0
    off = {"a": torch.tensor([3.0, 0.5]), "b": (torch.tensor([4.0]), None)}
    assert modes.relative_error(off, reference) == pytest.approx(0.1)
    assert modes.relative_error(torch.tensor([math.nan]), torch.ones(1)) == math.inf
    with pytest.raises(ValueError, match="zip"):
        modes.relative_error((torch.ones(1),), (torch.ones(1), torch.ones(1)))


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


def test_bench(rule_file: Callable[..., pathlib.Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "digits", "--device", "cpu", "--seconds", "0.1", "--rules", str(rule_file())]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "digits: unet on cpu, float32 [2, 1, 16, 16]"
    assert [line.split()[0] for line in lines[1:]] == ["MODE", "eager", "rewriter"]


def test_bench_as_json(rule_file: Callable[..., pathlib.Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "digits", "--device", "cpu", "--seconds", "0.1", "--rules", str(rule_file()), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    found: dict[str, Any] = {mode["name"]: mode for mode in document["modes"]}
    assert list(found) == ["eager", "rewriter"]
    assert found["eager"]["error"] == 0
    assert found["rewriter"]["error"] < 1e-5
    assert found["rewriter"]["times"]["samples"] >= 5
    (component,) = document["report"]["components"].values()
    assert component["status"] == "optimised"


def test_a_failing_mode_is_a_finding(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import rewriter

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of luck\nand more")

    monkeypatch.setattr(rewriter, "optimize", fail)
    assert main(["bench", "digits", "--device", "cpu", "--seconds", "0.1"]) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1].split() == ["rewriter", "failed"]
    assert "rewriter: RuntimeError: out of luck\n" in captured.err
