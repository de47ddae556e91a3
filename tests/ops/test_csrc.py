from __future__ import annotations

import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import rewriter
from rewriter.ops import providers
from rewriter.ops.cuda import build, compiler, linear
from rewriter.ops.cuda.compiler import BuildError

# Writes a line for each call, and one when it is done, beside itself. A library is the list of its sources.
_FAKE = """#!/bin/sh
folder=$(dirname "$0")
case "$*" in
*--version*) echo "Cuda compilation tools, release $(cat "$folder/release")"; exit 0;;
*--help*) cat "$folder/help"; exit 0;;
*-shared*) kind=link;;
*) kind=compile;;
esac
echo $kind >> "$folder/calls"
echo "$@" >> "$folder/options"
cut -d " " -f 5 /proc/$$/stat >> "$folder/groups"
cut -d " " -f 19 /proc/$$/stat >> "$folder/niceness"
test -e "$folder/slow" && sleep 0.3
while test -e "$folder/held"; do sleep 0.05; done
echo done >> "$folder/calls"
test -e "$folder/fail" && { echo "linear.cpp(7): error: expected a ';'" >&2; exit 2; }
given=
while [ "$1" != "-o" ]; do
    case "$1" in *.o) given="$given $1";; esac
    test "$1" = "-c" && source=$2
    shift
done
if [ $kind = link ]; then cat $given > "$2"; else basename "$source" > "$2"; fi
"""

# Has a library built beside itself and goes on once the compiler runs.
_BEGINS = """
import os, pathlib, signal, time
import torch
from rewriter.ops.cuda import build
from rewriter.ops.cuda.compiler import BuildError

calls = pathlib.Path(os.environ["CUDA_HOME"], "bin", "calls")
build.begin(["90a"])
while not calls.exists():
    time.sleep(0.01)
"""

# Then forks while compilers run and none is being started, and needs the library in both processes. The child lives on,
# with all that was open at the fork.
_FORKS = """
while len(calls.read_text().split()) < min(os.cpu_count(), len(build.sources())):
    time.sleep(0.01)
time.sleep(0.2)
torch.ops.load_library = lambda path: None
reading, writing = os.pipe()
child = os.fork()
calls.with_name("held").unlink(missing_ok=True)
if child == 0:
    signal.alarm(60)
try:
    build.load(["90a"])
    outcome = b"built"
except BuildError:
    outcome = b"failed"
if child == 0:
    os.write(writing, outcome)
    time.sleep(60)
print(outcome.decode(), os.read(reading, 9).decode())
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
"""


class _Nvcc:
    def __init__(self, home: pathlib.Path) -> None:
        self.folder = home / "bin"
        self.folder.mkdir(parents=True)
        self.set("release", "13.0")
        self.set("help")
        path = self.folder / "nvcc"
        path.write_text(_FAKE)
        path.chmod(0o755)

    def set(self, name: str, text: str = "") -> None:
        (self.folder / name).write_text(text)

    def read(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().split() if path.exists() else []

    def calls(self, kind: str) -> int:
        return self.read("calls").count(kind)


@pytest.fixture
def nvcc(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> _Nvcc:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    monkeypatch.setenv("REWRITER_CACHE", str(tmp_path / "cache"))
    return _Nvcc(tmp_path / "toolkit")


@pytest.fixture
def sources(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A copy of the sources that may be changed."""
    folder = tmp_path / "csrc"
    shutil.copytree(build.sources_folder(), folder)
    monkeypatch.setattr(build, "sources_folder", lambda: folder)
    return folder


def _kept(tmp_path: pathlib.Path) -> list[str]:
    """What a build has left in the cache, apart from the lock."""
    return [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH")
def test_every_source_compiles(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_HOME", raising=False)
    # For sm_90a each of them is compiled where the assembler's words are read (tests/csrc/test_compiled.py).
    path = build.build(["80", "100"], tmp_path)
    registered = path.read_bytes()
    assert path.stat().st_size > 50_000
    for source in build.sources():
        for schema in re.findall(r'library\.def\(\s*"(.*?)"', source.read_text()):
            assert schema.encode() in registered


def test_kernels_are_compiled_without_torch() -> None:
    # nvcc reads what a file includes four times, and torch's headers take longer than the kernels.
    for source in build.sources():
        read, texts = {source}, [source.read_text()]
        for text in texts:
            included = {source.parent / name for name in re.findall(r'#include "(.*?)"', text)} - read
            read |= included
            texts += [path.read_text() for path in included]
        reads_torch = any("#include <torch/" in text for text in texts)
        assert (source.suffix == ".cpp") == reads_torch, f"{source.name}: torch's headers belong into .cpp files"


def test_built_once(nvcc: _Nvcc) -> None:
    first = build.library(["90a"])
    assert first.read_text().split() == [source.name for source in build.sources()]
    assert build.library(["90a"]) == first
    assert nvcc.calls("compile") == len(build.sources())
    assert nvcc.calls("link") == 1


@pytest.mark.parametrize("known", [False, True])
def test_optimises_at_once_where_the_compiler_can(nvcc: _Nvcc, known: bool) -> None:
    nvcc.set("help", "--split-compile <number>" if known else "--threads <number>")
    build.library(["90a"])
    assert nvcc.read("options").count("-split-compile=0") == (len(build.sources()) if known else 0)


def test_says_that_it_builds(nvcc: _Nvcc, caplog: pytest.LogCaptureFixture) -> None:  # noqa: ARG001
    build.library(["80", "90a"])
    build.library(["80", "90a"])
    assert [record.message for record in caplog.records] == [
        "building the CUDA kernels for sm_80, sm_90a with Cuda compilation tools, release 13.0, once"
    ]


def test_another_compiler_torch_or_architecture_builds_anew(nvcc: _Nvcc, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {build.library(["90a"]), build.library(["100"])}
    nvcc.set("release", "13.1")
    paths.add(build.library(["90a"]))
    monkeypatch.setattr(torch, "__version__", "2.99")
    paths.add(build.library(["90a"]))
    assert len(paths) == 4


@pytest.mark.parametrize("changed", ["runtime.h", "linear.cpp", "convolution.cu"])
def test_changed_source_builds_anew(nvcc: _Nvcc, sources: pathlib.Path, changed: str) -> None:  # noqa: ARG001
    first = build.library(["90a"])
    with (sources / changed).open("a") as file:
        file.write("\n")
    assert build.library(["90a"]) != first


def test_sources_of_one_name_are_both_in_the_library(nvcc: _Nvcc, sources: pathlib.Path) -> None:  # noqa: ARG001
    for name in ("twice.cpp", "twice.cu"):
        (sources / name).touch()
    assert {"twice.cpp", "twice.cu"} <= set(build.library(["90a"]).read_text().split())


def test_one_of_several_that_need_it_builds(nvcc: _Nvcc) -> None:
    nvcc.set("slow")
    with concurrent.futures.ThreadPoolExecutor(max_workers=4) as pool:
        paths = set(pool.map(lambda _: build.library(["90a"]), range(4)))
    assert len(paths) == 1
    assert nvcc.calls("link") == 1


def test_failure_names_the_error_and_leaves_nothing(nvcc: _Nvcc, tmp_path: pathlib.Path) -> None:
    nvcc.set("fail")
    with pytest.raises(
        BuildError, match=r"^nvcc ended with status 2: linear\.cpp\(7\): error: expected a ';'"
    ) as error:
        build.library(["90a"])
    assert f"The command was: {nvcc.folder}/nvcc " in str(error.value).splitlines()[-1]
    assert not _kept(tmp_path)


def test_an_interrupt_of_the_caller_does_not_reach_the_compiler(nvcc: _Nvcc) -> None:
    build.library(["90a"])
    assert str(os.getpgrp()) not in nvcc.read("groups")


def test_begun_early_is_built_once(nvcc: _Nvcc, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[pathlib.Path] = []
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    nvcc.set("slow")
    build.begin(["90a"])
    build.begin(["90a"])
    build.load(["90a"])
    assert loaded == [build.library(["90a"])]
    assert nvcc.calls("link") == 1


def test_failure_of_what_was_begun_is_told_to_who_needs_it(nvcc: _Nvcc, caplog: pytest.LogCaptureFixture) -> None:
    nvcc.set("fail")
    build.begin(["90a"])
    with pytest.raises(BuildError, match="expected a ';'"):
        build.load(["90a"])
    assert len([record for record in caplog.records if "building the CUDA kernels" in record.message]) == 1


def test_end_of_the_process_waits_for_what_was_begun(nvcc: _Nvcc, tmp_path: pathlib.Path) -> None:
    nvcc.set("slow")
    subprocess.run([sys.executable, "-c", _BEGINS], check=True, timeout=60)
    assert nvcc.calls("done") == nvcc.calls("compile") + nvcc.calls("link")
    # Whether it got to the link is up to the interpreter.
    assert [pathlib.Path(name).suffix for name in _kept(tmp_path)] == [".so"] * nvcc.calls("link")


@pytest.mark.parametrize("outcome", ["built", "failed"])
def test_fork_while_it_builds(nvcc: _Nvcc, outcome: str) -> None:
    nvcc.set("held")
    if outcome == "failed":
        nvcc.set("fail")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _BEGINS + _FORKS], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == [outcome, outcome]


def test_no_compiler(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setattr(compiler, "_USUAL", tmp_path / "nvcc")
    with pytest.raises(BuildError, match="nvcc was not found"):
        build.library(["90a"])


def test_compiler_that_does_not_run(nvcc: _Nvcc) -> None:
    nvcc.set("nvcc", "no program")
    with pytest.raises(BuildError, match="does not run"):
        build.library(["90a"])


def test_cache_that_cannot_be_written(
    nvcc: _Nvcc,  # noqa: ARG001
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("REWRITER_CACHE", str(tmp_path / "file"))
    with pytest.raises(BuildError, match=r"cannot be kept in .*; set REWRITER_CACHE"):
        build.library(["90a"])


def test_library_that_does_not_load_is_built_again(nvcc: _Nvcc, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build.library(["90a"])
    path.write_text("damaged")
    loaded: list[str] = []

    def load(library: pathlib.Path) -> None:
        if library.read_text() == "damaged":
            raise OSError("file too short")
        loaded.append(library.read_text())

    monkeypatch.setattr(torch.ops, "load_library", load)
    build.load(["90a"])
    assert loaded == ["".join(f"{source.name}\n" for source in build.sources())]
    assert nvcc.calls("link") == 2


def test_library_built_ahead_of_time_needs_no_compiler(
    nvcc: _Nvcc, sources: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build.main(["--arch", "80", "--arch", "90a"]) == 0
    made = pathlib.Path(capsys.readouterr().out.strip())
    assert made.parent == sources
    nvcc.set("fail")
    assert build.library(["90a"]) == made
    with pytest.raises(BuildError):
        build.library(["100"])


def test_ahead_of_time_failure_ends_with_one(
    nvcc: _Nvcc, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nvcc.set("fail")
    assert build.main(["--arch", "90a", "--out", str(tmp_path / "out")]) == 1
    assert "expected a ';'" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is visible")
def test_without_a_gpu_nothing_is_built(nvcc: _Nvcc) -> None:
    providers.begin()
    assert not nvcc.read("calls")
    assert providers.load()["cuda"] == "ImportError: no CUDA GPU is visible"


def test_what_is_begun_yields_to_the_caller(nvcc: _Nvcc, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing beside compilers took many times as long where all wanted the processor alike."""
    own = os.getpriority(os.PRIO_PROCESS, 0)
    monkeypatch.setattr(build, "visible_architectures", lambda: ["90a"])
    providers.begin.cache_clear()
    providers.begin()
    providers.begin.cache_clear()
    monkeypatch.setattr(torch.ops, "load_library", lambda _: None)
    build.load(["90a"])
    assert set(nvcc.read("niceness")) == {str(max(own, 10))}
    assert os.getpriority(os.PRIO_PROCESS, 0) == own


def test_failure_to_begin_is_left_to_who_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> list[str]:
        raise RuntimeError("the driver is too old")

    monkeypatch.setattr(build, "visible_architectures", fail)
    providers.begin.cache_clear()
    providers.begin()
    providers.begin.cache_clear()


@pytest.mark.parametrize(("device", "times"), [("cuda", 1), ("cpu", 0)])
def test_optimising_what_lies_on_a_gpu_begins_it(device: str, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    monkeypatch.setattr(providers, "begin", lambda: begun.append(1))
    module = torch.nn.Module()
    with FakeTensorMode():
        module.weight = torch.nn.Parameter(torch.empty(2, device=device))
    rewriter.optimize(module)
    rewriter.restore(module)
    assert len(begun) == times


def test_refuses_before_the_library_is_asked() -> None:
    x, weight, bias = torch.zeros(2, 8), torch.zeros(4, 8), torch.zeros(4)
    assert linear.takes_act(x, weight, bias, "silu") == "cuBLASLt has no epilogue for silu"
    assert linear.takes_act(x, weight, bias, "gelu_tanh") == "the operands are not all on one CUDA device"
    assert linear.takes_add(x, weight, None, x) == "the operands are not all on one CUDA device"
