"""Kernels that are compiled ahead lie where the launch looks for them."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
import types
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from compilation import compile_ahead

from rewriter.ops.low_precision import FORMATS
from rewriter.ops.triton import ahead, compiling

H100 = ahead.Target(capability=90, multiprocessors=132)


def calls() -> list[str]:
    x, weight = torch.empty(2, 9, 64, dtype=torch.float16), torch.empty(64, dtype=torch.float16)
    sliced = torch.empty(2, 9, 80, dtype=torch.float16)[..., 3:67]
    config = {"rows": 2, "num_warps": 4}
    return [ahead.task("layer_norm", "triton", config, (each, [64], weight, None, 1e-5)) for each in (x, sliced)]


def products() -> list[str]:
    """Every product of rows by rows, with both kernels. The interpreter takes more than the compiler does."""
    x, weight, bias = (torch.empty(shape, dtype=torch.bfloat16) for shape in ((1, 32, 64), (64, 64), (64,)))
    scales = torch.empty(1, 32, 1), torch.empty(64, 1)
    calls: list[tuple[str, tuple[Any, ...]]] = [
        ("linear_act", (x, weight, None, "gelu")),
        ("linear_add", (x, weight, bias, x)),
        ("linear_geglu", (x, weight, bias)),
    ]
    for dtype in FORMATS.values():
        rows = x.to(dtype), scales[0], weight.to(dtype), scales[1], bias
        calls += [("quantised_linear", rows), ("quantised_linear_add", (*rows, x))]
    config = {"rows": 64, "columns": 32, "depth": 64, "warps": 4, "stages": 2}
    return [
        ahead.task(op, "triton", {**config, "persistent": each}, arguments)
        for op, arguments in calls
        for each in (0, 1)
    ]


def compiled(folder: pathlib.Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*.cubin")}


def test_a_call_keeps_what_a_kernel_is_compiled_for() -> None:
    tensor, values = json.loads(calls()[1])["arguments"][:2]
    assert tensor == {"shape": [2, 9, 64], "stride": [720, 80, 1], "dtype": "float16", "offset": 6}
    assert values == {"value": [64]}
    again = compiling.argument(tensor)
    assert (again.shape, again.stride(), again.dtype) == ((2, 9, 64), (720, 80, 1), torch.float16)
    assert again.data_ptr() % 16 == 6


def test_a_second_time_finds_everything_in_the_cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert compile_ahead(calls(), H100, processes=1) == 2
    first = compiled(tmp_path)
    assert first
    assert compile_ahead(calls(), H100, processes=1) == 2
    assert compiled(tmp_path) == first


def test_fewer_than_are_worth_it_are_left_to_the_launch(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    first, second = calls()
    few = ahead.Compilation(H100, processes=1, fewest=2)
    few.add(first)
    few.add(first)
    assert few.wait() == 0
    assert not compiled(tmp_path)
    enough = ahead.Compilation(H100, processes=1, fewest=2)
    enough.add(first)
    enough.add(second)
    # Before the end is asked for.
    deadline = time.monotonic() + 60
    while not compiled(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert compiled(tmp_path)
    assert enough.wait() == 2


def test_urgent_calls_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process, which is asked as it would be asked; nothing is compiled until all calls are there."""
    there, asked = threading.Event(), []

    def ask(_: object, task: str) -> str:
        there.wait()
        asked.append(task)
        return "compiled"

    monkeypatch.setattr(ahead, "ask", ask)
    monkeypatch.setattr(ahead, "_workers", lambda _: types.SimpleNamespace(taken=lambda: contextlib.nullcontext(None)))
    compilation = ahead.Compilation(H100, processes=1)
    compilation.add("begun")
    while not compilation._waiting.empty():
        time.sleep(1e-3)
    for task, urgent in (("late", False), ("urgent", True), ("later", False), ("urgent too", True)):
        compilation.add(task, urgent=urgent)
    there.set()
    compilation.wait_for_urgent()
    assert asked[:3] == ["begun", "urgent", "urgent too"]
    assert compilation.wait() == 5
    assert asked[3:] == ["late", "later"]


def test_urgent_calls_are_not_waited_for_where_no_process_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken() -> None:
        raise OSError("no process")

    monkeypatch.setattr(ahead, "_workers", lambda _: types.SimpleNamespace(taken=taken))
    compilation = ahead.Compilation(H100, processes=2)
    compilation.add("urgent", urgent=True)
    compilation.wait_for_urgent()
    assert compilation.wait() == 0


def test_another_rewriter_in_the_working_folder_is_not_taken(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a clone of the repository, whose folder `rewriter` has no ops."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "rewriter").mkdir()
    (tmp_path / "rewriter" / "__init__.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert compile_ahead(calls()[:1], H100, processes=1) == 1


def test_nothing_compiled_is_said_aloud(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("rewriter.children.command", lambda *_: ["false"])
    assert compile_ahead(calls(), H100, processes=1) == 0
    assert "compiled 0 of 2 kernels ahead; the others are compiled one by one" in caplog.text


def test_every_product_compiles(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert compile_ahead(products(), H100, processes=1) == len(products())


def test_a_call_that_does_not_compile_is_left_to_the_launch(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    wrong = json.dumps({**json.loads(calls()[0]), "config": {"rows": 3, "num_warps": 4}})
    assert compile_ahead([wrong, calls()[0]], H100, processes=1) == 1


def test_a_process_that_dies_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert compile_ahead(calls(), H100) == 0


def test_the_worker_answers_line_by_line(tmp_path: pathlib.Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    wrong = json.dumps({**json.loads(calls()[0]), "op": "no such op"})
    done = subprocess.run(
        [sys.executable, "-m", "rewriter.ops.triton.compiling", "90", "132"],
        input="".join(f"{each}\n" for each in (wrong, calls()[0])),
        capture_output=True,
        text=True,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        check=True,
    )
    assert done.stdout == "KeyError: 'no such op'\ncompiled\n"


@pytest.mark.parametrize("error", [None, AssertionError("libcuda.so cannot be found")])
def test_what_launches_a_kernel_is_built_with_it_where_there_is_something_to_build(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    """By Triton 3.6 the first launch of each signature would else wait for a C compiler."""
    driver = pytest.importorskip("triton.backends.nvidia.driver")
    built: list[Any] = []

    def launcher(*described: Any) -> None:
        built.append(described)
        if error is not None:
            raise error

    monkeypatch.setattr(driver, "CudaLauncher", launcher)
    compiling._build_launcher(types.SimpleNamespace(src="source", metadata="metadata"))
    assert built == [("source", "metadata")]


def test_the_process_is_kept_for_the_next_kernels(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    begun: list[int] = []
    monkeypatch.setattr(subprocess.Popen, "__init__", counting(subprocess.Popen.__init__, begun))
    assert compile_ahead(calls()[:1], H100, processes=1) == 1
    assert compile_ahead(calls()[1:], H100, processes=1) == 1
    assert len(begun) == 1


def counting(function: Any, begun: list[int]) -> Any:
    def begin(self: Any, command: list[str], *args: Any, **kwargs: Any) -> None:
        begun.append(len(begun))
        function(self, command, *args, **kwargs)

    return begin


def test_one_that_died_is_started_anew(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert compile_ahead(calls(), H100, processes=1) == 2
    (process,) = ahead._workers(H100)._idle
    process.kill()
    process.wait()
    assert compile_ahead(calls(), H100, processes=1) == 2


def test_processes_that_have_compiled_before_are_known(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    other = ahead.Target(capability=90, multiprocessors=114)
    ahead._workers(other).start(1)
    (process,) = ahead._workers(other)._idle
    # They compile beside the caller, and must not hold it up.
    assert os.getpriority(os.PRIO_PROCESS, process.pid) == max(10, os.getpriority(os.PRIO_PROCESS, 0))
    assert not ahead.warm(other)
    assert compile_ahead(calls()[:1], other, processes=1) == 1
    assert ahead.warm(other)
    ahead._workers(other).end()
    assert not ahead.warm(other)


def test_processes_that_have_nothing_to_do_end(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("rewriter.ops.triton.workers._IDLE_SECONDS", 0.01)
    among = ahead._workers(H100)
    among.start(1)
    assert among._timer is not None
    among._timer.join()
    assert not among._idle


def test_the_process_ends_with_this_one() -> None:
    script = "\n".join(
        (
            "from rewriter.ops.triton import ahead",
            "target = ahead.Target(90, 132)",
            "ahead._workers(target).start(1)",
            "print(ahead._workers(target)._idle[0].pid)",
        )
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert not done.stderr
    assert not pathlib.Path(f"/proc/{int(done.stdout)}").exists()


@pytest.mark.parametrize(("gigabytes", "count"), [(0.5, 1), (3, 3), (1000, 4)])
def test_as_many_processes_as_cores_and_memory_allow(
    monkeypatch: pytest.MonkeyPatch, gigabytes: float, count: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4))
    monkeypatch.setattr(ahead, "_free_memory", lambda: int(gigabytes * 2**30))
    assert ahead._processes() == count


@pytest.mark.parametrize(
    ("text", "found"), [("MemFree: 5 kB\nMemAvailable:   2048 kB\n", 2**21), ("nothing\n", 2**34), (None, 2**34)]
)
def test_memory_that_can_be_had(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, text: str | None, found: int
) -> None:
    monkeypatch.setattr(ahead, "_MEMORY", tmp_path / "meminfo")
    if text is not None:
        (tmp_path / "meminfo").write_text(text)
    assert ahead._free_memory() == found
