"""Kernels begin before the end of the kernel before them where the GPU can do that, and wait for it."""

from __future__ import annotations

import json
import pathlib
import types

import pytest
import torch

pytest.importorskip("triton")

from compilation import compile_ahead

from benchmarks.ahead_of_time import too_early
from rewriter.ops.triton import ahead, device, overlap

CPU = torch.device("cpu")
PLAIN = {"OVERLAP": False}
FULL = {"OVERLAP": True, "launch_pdl": True}


@pytest.fixture(autouse=True)
def _recent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU, and a driver and a torch for it, that know such launches."""
    monkeypatch.setattr(overlap, "INTERPRETED", False)
    monkeypatch.setattr(overlap, "_driver", lambda: 13000)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(device, "_assumed", None)
    device.assume((9, 0), 132)


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (12, 0)])
def test_kernels_overlap_from_hopper_on(capability: tuple[int, int]) -> None:
    device.assume(capability, 132)
    assert overlap.overlapping(CPU) == (FULL if capability >= (9, 0) else PLAIN)


@pytest.mark.parametrize(("driver", "expected"), [(0, FULL), (12020, PLAIN), (12030, FULL)])
def test_old_drivers_cannot_record_them(
    driver: int, expected: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overlap, "_driver", lambda: driver)
    assert overlap.overlapping(CPU) == expected


def test_the_interpreter_knows_no_such_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "INTERPRETED", True)
    assert overlap.overlapping(CPU) == PLAIN


def test_amd_gpus_know_no_such_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert overlap.overlapping(CPU) == PLAIN


@pytest.mark.parametrize(("capability", "expected"), [(80, False), (90, True)])
def test_compiling_ahead_asks_for_the_launch_of_that_gpu(
    capability: int, expected: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    x, weight = torch.empty(2, 9, 64, dtype=torch.float16), torch.empty(64, dtype=torch.float16)
    call = ahead.task("layer_norm", "triton", {"rows": 2, "num_warps": 4}, (x, [64], weight, None, 1e-5))
    assert compile_ahead([call], ahead.Target(capability, 132), processes=1) == 1
    (text,) = tmp_path.rglob("*.ptx")
    options = json.loads(text.with_suffix(".json").read_text())
    assert options["launch_pdl"] is expected
    assert ("griddepcontrol.wait" in text.read_text()) is expected


def kernel(ptx: str, launch_pdl: bool = True) -> types.SimpleNamespace:
    return types.SimpleNamespace(metadata=types.SimpleNamespace(launch_pdl=launch_pdl), asm={"ptx": ptx})


@pytest.mark.parametrize(
    ("ptx", "expected"),
    [
        ("ld.param.b64 %rd1; griddepcontrol.wait; ld.global.b16 %rs1; st.global.b16 %rs1;", 0),
        ("ld.global.v4.b32 %r1; griddepcontrol.wait;", 1),
        ("st.relaxed.gpu.global.b32 %r1; griddepcontrol.wait;", 1),
        ("cp.async.cg.shared.global [%r1]; griddepcontrol.wait;", 1),
        ("@%p1 bra $L__BB0_2; griddepcontrol.wait;", 1),
        ("ld.global.b16 %rs1; st.global.b16 %rs1; ret;", 3),
    ],
)
def test_what_a_kernel_does_before_it_waits_is_noticed(ptx: str, expected: int) -> None:
    assert too_early(kernel(ptx)) == expected
    assert too_early(kernel(ptx, launch_pdl=False)) == 0
