"""Builds the kernels for Hopper with an emulated chip in the place of a real one, for tests where there is no GPU.

What csrc/hopper.h and csrc/wgmma.h say in instructions, the files of the same names in `emulator` carry out on the CPU.
Everything else is the library's own source: kernels, what launches them, descriptors, barriers, plans.
"""

from __future__ import annotations

import ctypes
import hashlib
import pathlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence

import torch

from rewriter.ops.cuda import compiler
from rewriter.ops.cuda.compiler import BuildError

ROOT = pathlib.Path(__file__).parents[2]
EMULATOR = pathlib.Path(__file__).parent / "emulator"
KERNELS = ("attention", "convolution", "gated", "norms", "quantised", "rows")
# What one source launches beside the kernel of its own name.
_MORE = {"convolution": ("quantised_convolution.cu",)}
# As machine.h explains them.
PACES = ("early", "late", "apart", "random")
# One for this process, as long as it lives.
_OBJECTS = tempfile.TemporaryDirectory(prefix="rewriter-emulator-")
_FLAGS = (
    "-std=c++20",
    "-O1",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wno-attributes",
    "-Wno-unknown-pragmas",
    "-D__CUDA_ARCH_FEAT_SM90_ALL",
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
    "-DUSE_CUDA",
)


def headers() -> pathlib.Path | None:
    """The folder of the CUDA toolkit's headers, if there is a toolkit."""
    try:
        beside = compiler.find_nvcc().resolve().parents[1] / "include"
    except BuildError:
        return None
    places = (beside, pathlib.Path("/usr/local/cuda/include"))
    return next((place for place in places if (place / "cuda_fp16.h").exists()), None)


def missing() -> str | None:
    """What this machine lacks to build the emulator; None where it has all."""
    if shutil.which("g++") is None:
        return "there is no g++"
    return None if headers() is not None else "there is no CUDA toolkit"


def build(
    folder: pathlib.Path, name: str, kernels: Sequence[str], changes: Mapping[str, tuple[str, str]]
) -> pathlib.Path:
    """A library of `kernels` whose ops are torch.ops.<name>, for tensors on the CPU.

    changes: by file of csrc, a text that it holds once and what stands there instead.
    """
    sources = folder / name
    shutil.copytree(ROOT / "csrc", sources, ignore=shutil.ignore_patterns("*.so", "*.py", "__pycache__"))
    for path in EMULATOR.iterdir():
        shutil.copy(path, sources)
    for file, (old, new) in changes.items():
        text = (sources / file).read_text()
        assert text.count(old) == 1, f"{file} holds {old!r} {text.count(old)} times"
        (sources / file).write_text(text.replace(old, new))
    for kernel in kernels:
        path = sources / f"{kernel}.cpp"
        text = path.read_text().replace("(rewriter_cuda, CUDA,", f"({name}, CPU,")
        path.write_text(text.replace("(rewriter_cuda,", f"({name},"))
    files = [file for kernel in kernels for file in (f"{kernel}.cu", f"{kernel}.cpp", *_MORE.get(kernel, ()))]
    library = folder / f"{name}.so"
    torch_folder = pathlib.Path(torch.__file__).parent
    includes = ["-isystem", str(torch_folder / "include"), "-isystem", str(headers())]
    objects = [str(_object(sources / file, includes)) for file in (*files, "machine.cpp", "driver.cpp")]
    # Calls of CUDA and torch that the emulator answers must find its own.
    links = ["-Wl,-Bsymbolic", "-Wl,--no-as-needed", "-L", str(torch_folder / "lib"), "-ltorch", "-ltorch_cpu", "-lc10"]
    _run(["g++", "-shared", *objects, "-o", str(library), *links])
    return library


class Chip:
    """An emulated chip: a library that `build` has made."""

    def __init__(self, library: pathlib.Path) -> None:
        torch.ops.load_library(library)
        self._library = ctypes.CDLL(str(library))
        self.ops = getattr(torch.ops, library.stem)

    def set(self, *, seed: int = 0, pace: str = "early", clusters: int = 2) -> None:
        """pace: one of PACES, when copies and products are done. clusters: that run at once."""
        self._library.emulate(seed, PACES.index(pace), clusters)


def _object(source: pathlib.Path, includes: Sequence[str]) -> pathlib.Path:
    """The source compiled, or what was compiled of the same text before: most of a chip is like the one before it."""
    read, digest = [source], hashlib.sha256()
    for path in read:
        digest.update(path.read_bytes())
        included = [source.parent / name for name in re.findall(r'#include "(.*?)"', path.read_text())]
        read += [path for path in included if path.exists() and path not in read]
    target = pathlib.Path(_OBJECTS.name) / f"{digest.hexdigest()}.o"
    if not target.exists():
        _run(["g++", *_FLAGS, *includes, "-x", "c++", "-c", str(source), "-o", str(target)])
    return target


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
