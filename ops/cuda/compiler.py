"""nvcc: where it is, which version, and one library out of the sources in `csrc`."""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence

import torch

from rewriter.errors import RewriterError

# 2.11 is the oldest supported torch; what is built against its stable interface loads under every newer one.
# The level is that of host code, which only launches; code for the device is optimised in full at any.
FLAGS = (
    "-std=c++20",
    "-O1",
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
    "-DUSE_CUDA",
    "-Xcompiler=-fPIC,-fvisibility=hidden",
    "--expt-relaxed-constexpr",
)
_USUAL = pathlib.Path("/usr/local/cuda/bin/nvcc")
_TIMEOUT = 600


class BuildError(RewriterError, RuntimeError):
    """The CUDA sources cannot be built here; the message's first line says why."""


def find_nvcc() -> pathlib.Path:
    """nvcc of $CUDA_HOME or $CUDA_PATH, on the PATH, or in /usr/local/cuda. Raises BuildError where there is none."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    on_path = shutil.which("nvcc")
    places = [*(pathlib.Path(home, "bin", "nvcc") for home in homes), *([pathlib.Path(on_path)] if on_path else [])]
    for place in (*places, _USUAL):
        if os.access(place, os.X_OK):
            return place
    raise BuildError("nvcc was not found in $CUDA_HOME, on the PATH or in /usr/local/cuda: install a CUDA toolkit")


def version(nvcc: pathlib.Path) -> str:
    """The line of `nvcc --version` that names the release. Raises BuildError if nvcc does not run."""
    output = _run([str(nvcc), "--version"])
    return next((line.strip() for line in output.splitlines() if "release" in line), output.strip())


def compile_library(
    nvcc: pathlib.Path, sources: Sequence[pathlib.Path], architectures: Sequence[str], library: pathlib.Path
) -> None:
    """Compiles `sources` for `architectures` such as "90a" into the shared library `library`, a path to be created.

    They are compiled at once, `.cpp` files by the host compiler alone. Raises BuildError with the compiler's words.
    """
    torch_folder = pathlib.Path(torch.__file__).parent
    options = [f"-gencode=arch=compute_{each},code=sm_{each}" for each in architectures]
    # The kernels of a file are optimised at once, too. Not every nvcc has that, and the code is the same without.
    if "--split-compile" in _run([str(nvcc), "--help"]):
        options.append("-split-compile=0")
    with tempfile.TemporaryDirectory(prefix="rewriter-csrc-") as folder:
        objects = [str(pathlib.Path(folder, source.name + ".o")) for source in sources]
        commands = [
            [str(nvcc), *FLAGS, *options, "-isystem", str(torch_folder / "include"), "-c", str(source), "-o", target]
            for source, target in zip(sources, objects, strict=True)
        ]
        with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            list(pool.map(_run, commands))
        # libtorch.so leads to whichever of torch's libraries hold the symbols, with CUDA or without.
        links = ["-Xlinker=--no-as-needed", "-L", str(torch_folder / "lib"), "-ltorch"]
        # No kernel calls code of another file, so that there is nothing to link for the device.
        _run([str(nvcc), "-shared", "-nodlink", *objects, "-o", str(library), *links])


def _run(command: list[str]) -> str:
    name = pathlib.Path(command[0]).name
    try:
        # In a group of its own: Ctrl-C is for the caller, and must not count as a failure of the build.
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT, process_group=0
        )
    except OSError as error:
        raise BuildError(f"{command[0]} does not run: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{name} was stopped after {_TIMEOUT} s: {' '.join(command)}") from error
    if done.returncode:
        words = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        first = next((line for line in words if "error" in line.lower() or "fatal" in line.lower()), "no message")
        reason = f"{name} ended with status {done.returncode}: {first.strip()}"
        raise BuildError("\n".join([reason, *words, f"The command was: {shlex.join(command)}"]))
    return done.stdout
