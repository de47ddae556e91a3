from __future__ import annotations

import importlib.util
import json
import math
import pathlib
import subprocess
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from rewriter.bench.ablation import Worth, worth_rows
from rewriter.bench.ceilings import Ceilings, ceilings
from rewriter.bench.document import plain
from rewriter.bench.plot import Bar, bars
from rewriter.bench.profile import _outermost, kind_of, profiled
from rewriter.bench.runs import Result
from rewriter.bench.tables import aligned, markdown, mode_rows
from rewriter.bench.timing import Memory, Times

GIB = 2**30


def _result(mode: str, seconds: float, peak: int, error: float) -> Result:
    return Result(
        mode=mode,
        title=mode,
        failure=None,
        first_seconds=1.0,
        ready_seconds=2.0,
        memory=Memory(extra=peak, peak=peak, running=peak, reserved=2 * peak),
        error_eager=0.0,
        error_f32=error,
        times=Times(median=seconds, low=seconds / 2, high=seconds * 2, samples=5, speed=0.1 / seconds),
    )


def test_table_of_modes() -> None:
    results = [_result("eager", 0.1, 2 * GIB, 1e-3), _result("rewriter", 0.02, 3 * GIB, 1.1e-3)]
    results.append(Result(mode="compile", title="torch.compile", failure="no luck"))
    top = Ceilings(tflops=200.0, copy=3000.0, rows=8192)
    head, eager, rewriter, failed = mode_rows(results, 10**12, top)
    cells = dict(zip(head, rewriter, strict=True))
    assert cells == {
        "MODE": "rewriter",
        "MEDIAN": "20.000 ms",
        "10..90 %": "10.000..40.000",
        "IT/S": "50.00",
        "SPEED": "5.00x",
        "TFLOP/S": "50 (25%)",
        "FIRST": "1.0 s",
        "READY": "2.0 s",
        "PEAK": "3.00 GiB 1.50x",
        "RESERVED": "6.00 GiB 1.50x",
        "VS EAGER": "0.0e+00",
        "VS F32": "1.1e-03 1.10x",
    }
    assert eager[0] == "eager"
    assert failed[:3] == ("torch.compile", "failed", "")


def test_rows_as_text_and_markdown() -> None:
    rows = [("A", "B"), ("long name", "1"), ("x|y", "22")]
    assert aligned(rows).splitlines() == ["A           B", "long name   1", "x|y        22"]
    assert markdown(rows).splitlines()[1:3] == ["| --- | ---: |", "| long name | 1 |"]
    assert "x/y" in markdown(rows)


def test_what_a_rule_is_worth() -> None:
    gain = Worth(rule="gain", kept=3, with_rule=0.01, without=0.012, speedup=1.25)
    rows = worth_rows([gain, Worth(rule="bad", kept=1, failure="no luck")])
    assert rows[1] == ("gain", "3", "12.000 ms", "+2.500 ms", "+25.0%")
    assert rows[2] == ("bad", "1", "failed", "no luck", "")


def test_bars_are_as_long_as_their_values() -> None:
    found = [Bar(label="a", value=4.0, low=3.0, high=5.0), Bar(label="b", value=2.0, low=2.0, high=2.0, best=True)]
    picture = bars("title", [*found, Bar(label="c", value=None, note="no luck")])
    colours = picture.getcolors(1 << 20)
    assert colours is not None
    count = {colour: number for number, colour in colours}
    long, short = count[150, 170, 200], count[46, 125, 90]
    assert long / short == pytest.approx(2, rel=0.1)
    assert picture.height > bars("title", found).height


def test_kernels_count_for_the_op_of_the_graph() -> None:
    def event(name: str, parent: object = None) -> SimpleNamespace:
        return SimpleNamespace(name=name, cpu_parent=parent)

    linear = event("rewriter::linear_act", event("forward", event("cudaGraphLaunch")))
    assert _outermost(event("cudaLaunchKernel", event("aten::addmm", event("aten::linear", linear)))) == linear.name
    assert _outermost(event("cudaLaunchKernel")) == "cudaLaunchKernel"


def test_ceilings_and_profile() -> None:
    found = ceilings(torch.device("cpu"), torch.float32)
    assert found.tflops > 0
    assert found.copy > 0
    x = torch.ones(16, 16)
    text = profiled(lambda: x @ x, torch.device("cpu"))
    assert "in all" in text.splitlines()[0]
    assert any(line.endswith("aten::mm") for line in text.splitlines())


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("sm90_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc_tilesize128x128x64", "convolution"),
        ("nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_TNT", "matrix product"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16", "attention"),
        ("_group_norm_apply", "normalisation"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add>", "elementwise"),
        ("Memcpy DtoD (Device -> Device)", "copy and layout"),
        ("mystery", "other"),
    ],
)
def test_kinds_of_kernels(kernel: str, kind: str) -> None:
    assert kind_of(kernel) == kind


def test_documents_hold_what_json_has() -> None:
    found = plain({"a": (math.inf, 1.5), "b": Memory(extra=None), 3: [math.nan]})
    assert json.loads(json.dumps(found, allow_nan=False)) == {
        "a": ["inf", 1.5],
        "b": {"extra": None, "peak": None, "running": None, "reserved": None},
        "3": ["nan"],
    }


@pytest.fixture(scope="module")
def models() -> ModuleType:
    path = pathlib.Path(__file__).parents[2] / "benchmarks" / "models.py"
    spec = importlib.util.spec_from_file_location("benchmarks_models", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _fake(monkeypatch: pytest.MonkeyPatch, seen: list[list[str]]) -> None:
    """In place of the processes: one model works, one leaves half a result when its time is up, one fails."""
    machine = {"device": "a GPU", "versions": {"torch": "2.11"}, "date": "2026-01-01T00:00:00+00:00"}
    modes = [plain(_result("eager", 0.1, GIB, 1e-3)), plain(_result("rewriter", 0.05, GIB, 1e-3))]

    def run(command: list[str], *, stdout: Any, timeout: float | None, **_: Any) -> Any:
        seen.append(command)
        target, folder = command[4], pathlib.Path(command[6])
        if target == "fails":
            stdout.write("rewriter: error: no luck\n")
            return subprocess.CompletedProcess(command, 1)
        if target == "slow":
            modes[1] = plain(Result(mode="rewriter", title="rewriter"))
        (folder / "bench.json").write_text(json.dumps({**machine, "modes": modes}))
        (folder / "table.md").write_text(f"the table of {target}\n")
        if target == "slow":
            raise subprocess.TimeoutExpired(command, timeout or 0)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)


def test_page_of_several_models(
    models: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[list[str]] = []
    _fake(monkeypatch, seen)
    page = tmp_path / "page.md"
    page.write_text(f"Before.\n{models.BEGIN}\nold\n{models.END}\nAfter.\n")
    arguments = ["--targets", "good,slow,fails", "--out", str(tmp_path / "out"), "--page", str(page)]
    assert models.main([*arguments, "--budget", "1000", "--", "--modes", "eager,rewriter"]) == 1
    text = page.read_text()
    assert text.startswith("Before.\n")
    assert text.endswith("After.\n")
    assert "old" not in text
    assert "a GPU, torch 2.11, 2026-01-01." in text
    assert "| good | rewriter | 50.00 | 20.00 | 2.00x | 2.0 s | 1.00x | 1.00x |" in text
    assert "| slow | rewriter | not run yet | | | | | |" in text
    assert "Not complete: stopped after" in text
    assert "Not complete: exit status 1: rewriter: error: no luck" in text
    assert "the table of slow" in text
    assert seen[0][1:5] == ["-m", "rewriter.cli.main", "bench", "good"]
    assert seen[0][0] == sys.executable
    assert seen[0][-2:] == ["--modes", "eager,rewriter"]
    assert "== good: complete" in capsys.readouterr().out


def test_no_model_is_started_without_time(
    models: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    seen: list[list[str]] = []
    _fake(monkeypatch, seen)
    assert models.main(["--targets", "good", "--out", str(tmp_path), "--budget", "1"]) == 1
    assert not seen
    assert "not run, the 1 s were spent" in (tmp_path / "RESULTS.md").read_text()
