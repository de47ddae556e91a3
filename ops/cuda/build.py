"""The library of CUDA kernels: built once and kept in the cache folder, or built ahead of time into a wheel.

`python -m rewriter.ops.cuda.build --arch 80 --arch 90a --arch 100` builds ahead of time, where no GPU is needed.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import fcntl
import hashlib
import importlib.resources
import logging
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence

import torch

from rewriter.measure.cache import cache_folder
from rewriter.ops.cuda import compiler
from rewriter.ops.cuda.compiler import BuildError

_log = logging.getLogger("rewriter")

# Tensor cores with asynchronous copies; older cards are served by torch's own kernels.
_OLDEST = (8, 0)

# What `begin` has begun, by process too: a fork copies this, and not the thread that builds.
_begun: dict[tuple[int, tuple[str, ...]], concurrent.futures.Future[pathlib.Path]] = {}


def sources_folder() -> pathlib.Path:
    """The folder of the `.cpp`, `.cu` and `.h` files."""
    return pathlib.Path(str(importlib.resources.files("rewriter.csrc")))


def sources() -> list[pathlib.Path]:
    """What is compiled: kernels in `.cu` files, and what launches them and reads torch's headers in `.cpp` files."""
    return sorted(path for path in sources_folder().iterdir() if path.suffix in (".cpp", ".cu"))


def visible_architectures() -> list[str]:
    """nvcc's names of the visible GPUs' architectures. Raises ImportError where no GPU can run the kernels."""
    if not torch.cuda.is_available():
        raise ImportError("no CUDA GPU is visible")
    capabilities = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    if min(capabilities) < _OLDEST:
        raise ImportError(f"a GPU of compute capability {min(capabilities)} is visible; expected 8.0 or newer")
    # Hopper's own instructions exist only in code for exactly this chip.
    return sorted(f"{major}{minor}{'a' if (major, minor) == (9, 0) else ''}" for major, minor in capabilities)


def begin(architectures: Sequence[str]) -> None:
    """Has `library` run beside the caller; `load` waits for it and raises what it has raised.

    A process that ends before waits for it, too: neither compilers nor half a library are left behind.
    """
    key = os.getpid(), tuple(architectures)
    if key not in _begun:
        pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="rewriter-build")
        _begun[key] = pool.submit(library, architectures)
        pool.shutdown(wait=False)


def load(architectures: Sequence[str]) -> None:
    """Loads the library for all of `architectures`; one in the cache that does not load is built again.

    Raises BuildError where it cannot be had, OSError where it cannot be loaded.
    """
    begun = _begun.pop((os.getpid(), tuple(architectures)), None)
    path = library(architectures) if begun is None else begun.result()
    try:
        torch.ops.load_library(path)
    except OSError:
        if path.parent != _kept():
            raise
        path.unlink(missing_ok=True)
        torch.ops.load_library(library(architectures))


def library(architectures: Sequence[str]) -> pathlib.Path:
    """The library for all of `architectures`: built ahead of time, in the cache, or built now and kept there.

    Several processes that need it at once wait for the first. Raises BuildError where it cannot be had.
    """
    ready = _ahead_of_time(architectures)
    if ready is not None:
        return ready
    nvcc = compiler.find_nvcc()
    version = compiler.version(nvcc)
    path = _kept() / f"rewriter-{_key(architectures, version)}.so"
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                if not path.exists():
                    _build(nvcc, version, architectures, path)
            finally:
                # To close it is not enough: a process that was forked meanwhile has it open, too.
                fcntl.flock(lock, fcntl.LOCK_UN)
    except OSError as error:
        raise BuildError(f"the library cannot be kept in {path.parent}: {error}; set REWRITER_CACHE") from error
    return path


def build(architectures: Sequence[str], folder: pathlib.Path) -> pathlib.Path:
    """Builds one library for all of `architectures`, named for them and the sources, in `folder`. Raises BuildError."""
    nvcc = compiler.find_nvcc()
    path = folder / f"rewriter-{_source_hash()}.{'.'.join(architectures)}.so"
    folder.mkdir(parents=True, exist_ok=True)
    _build(nvcc, compiler.version(nvcc), architectures, path)
    return path


def _kept() -> pathlib.Path:
    return cache_folder() / "csrc"


def _ahead_of_time(architectures: Sequence[str]) -> pathlib.Path | None:
    prefix = f"rewriter-{_source_hash()}."
    for path in sorted(sources_folder().glob(f"{prefix}*.so")):
        if set(architectures) <= set(path.stem.removeprefix(prefix).split(".")):
            return path
    return None


def _build(nvcc: pathlib.Path, version: str, architectures: Sequence[str], path: pathlib.Path) -> None:
    targets = ", ".join(f"sm_{each}" for each in architectures)
    # A warning, because a first call that takes long without a word looks like a hang.
    _log.warning("building the CUDA kernels for %s with %s, once", targets, version)
    start = time.perf_counter()
    handle, name = tempfile.mkstemp(suffix=".so", dir=path.parent)
    os.close(handle)
    unfinished = pathlib.Path(name)
    try:
        compiler.compile_library(nvcc, sources(), architectures, unfinished)
        # Made for this user alone, as every temporary file; a cache or a wheel may be shared.
        unfinished.chmod(0o755)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    _log.info("built %s in %.0f s", path, time.perf_counter() - start)


def _source_hash() -> str:
    digest = hashlib.sha256(" ".join(compiler.FLAGS).encode())
    for path in sorted(sources_folder().iterdir()):
        if path.suffix in (".cpp", ".cu", ".h"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _key(architectures: Sequence[str], version: str) -> str:
    parts = (_source_hash(), torch.__version__, version, *architectures)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rewriter.ops.cuda.build", description="Compile csrc with nvcc.")
    parser.add_argument("--arch", action="append", required=True, help="90a for an H100; may be given several times")
    parser.add_argument("--out", type=pathlib.Path, help="folder for the library (default: beside the sources)")
    options = parser.parse_args(arguments)
    try:
        path = build(options.arch, options.out or sources_folder())
    except (BuildError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
