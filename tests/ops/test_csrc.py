from __future__ import annotations

import concurrent.futures
import pathlib
import re
import shutil

import pytest
import torch

from rewriter.ops import providers
from rewriter.ops.cuda import build, compiler, linear
from rewriter.ops.cuda.compiler import BuildError

# Writes a line for each call beside itself; the sources "fail.cu" do not compile.
_FAKE = """#!/bin/sh
folder=$(dirname "$0")
case "$*" in
*--version*) echo "Cuda compilation tools, release $(cat "$folder/release")"; exit 0;;
*-shared*) kind=link;;
*) kind=compile;;
esac
echo $kind >> "$folder/calls"
test -e "$folder/fail" && { echo "linear.cu(7): error: expected a ';'" >&2; exit 2; }
test -e "$folder/slow" && sleep 0.3
while [ "$1" != "-o" ]; do shift; done
echo library > "$2"
"""


class _Nvcc:
    def __init__(self, home: pathlib.Path) -> None:
        self.folder = home / "bin"
        self.folder.mkdir(parents=True)
        self.set("release", "13.0")
        path = self.folder / "nvcc"
        path.write_text(_FAKE)
        path.chmod(0o755)

    def set(self, name: str, text: str = "") -> None:
        (self.folder / name).write_text(text)

    def calls(self, kind: str) -> int:
        path = self.folder / "calls"
        return path.read_text().split().count(kind) if path.exists() else 0


@pytest.fixture
def nvcc(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> _Nvcc:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    monkeypatch.setenv("REWRITER_CACHE", str(tmp_path / "cache"))
    return _Nvcc(tmp_path / "toolkit")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH")
def test_every_source_compiles(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_HOME", raising=False)
    path = build.build(["80", "90a", "100"], tmp_path)
    registered = path.read_bytes()
    assert path.stat().st_size > 50_000
    for source in build.sources():
        for schema in re.findall(r'library\.def\(\s*"(.*?)"', source.read_text()):
            assert schema.encode() in registered


def test_built_once(nvcc: _Nvcc) -> None:
    first = build.library(["90a"])
    assert first.read_text() == "library\n"
    assert build.library(["90a"]) == first
    assert nvcc.calls("compile") == len(build.sources())
    assert nvcc.calls("link") == 1


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


def test_changed_source_builds_anew(
    nvcc: _Nvcc,  # noqa: ARG001
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "csrc"
    shutil.copytree(build.sources_folder(), folder)
    monkeypatch.setattr(build, "sources_folder", lambda: folder)
    first = build.library(["90a"])
    with (folder / "runtime.h").open("a") as file:
        file.write("\n")
    assert build.library(["90a"]) != first


def test_one_of_several_that_need_it_builds(nvcc: _Nvcc) -> None:
    nvcc.set("slow")
    with concurrent.futures.ThreadPoolExecutor(max_workers=4) as pool:
        paths = set(pool.map(lambda _: build.library(["90a"]), range(4)))
    assert len(paths) == 1
    assert nvcc.calls("link") == 1


def test_failure_names_the_error_and_leaves_nothing(nvcc: _Nvcc, tmp_path: pathlib.Path) -> None:
    nvcc.set("fail")
    with pytest.raises(BuildError, match=r"^nvcc ended with status 2: linear\.cu\(7\): error: expected a ';'"):
        build.library(["90a"])
    assert not list((tmp_path / "cache").rglob("*.so"))


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
    assert loaded == ["library\n"]
    assert nvcc.calls("link") == 2


def test_library_built_ahead_of_time_needs_no_compiler(
    nvcc: _Nvcc, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "csrc"
    shutil.copytree(build.sources_folder(), folder)
    monkeypatch.setattr(build, "sources_folder", lambda: folder)
    assert build.main(["--arch", "80", "--arch", "90a"]) == 0
    made = pathlib.Path(capsys.readouterr().out.strip())
    assert made.parent == folder
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
def test_without_a_gpu_nothing_is_built() -> None:
    assert providers.load()["cuda"] == "ImportError: no CUDA GPU is visible"


def test_refuses_before_the_library_is_asked() -> None:
    x, weight, bias = torch.zeros(2, 8), torch.zeros(4, 8), torch.zeros(4)
    assert linear.takes_act(x, weight, bias, "silu") == "cuBLASLt has no epilogue for silu"
    assert linear.takes_act(x, weight, bias, "gelu_tanh") == "the operands are not all on one CUDA device"
    assert linear.takes_add(x, weight, None, x) == "the operands are not all on one CUDA device"
