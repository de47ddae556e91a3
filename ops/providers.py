"""Loads the packages that add providers to the ops, once, and remembers what is missing and why."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import threading

from rewriter import children
from rewriter.causes import described

# Imported on first need: triton alone takes longer to import than all of `rewriter`. Where nothing is measured the
# earlier package is preferred.
_PACKAGES = {
    "cuda": "rewriter.ops.cuda.bind",
    "triton": "rewriter.ops.triton",
    "sdpa": "rewriter.ops.attention_backends",
    "xformers": "rewriter.ops.attention_xformers",
    "cudnn-frontend": "rewriter.ops.conv_cudnn",
}

_FAILURES = (ImportError, OSError, RuntimeError)


@functools.cache
def begin() -> None:
    """Begins what takes `load` longest beside the caller. To be called once it is known that a GPU will be used."""

    def build_yielding() -> None:
        children.yields()
        # Where there is a reason why not, `load` finds it again and says so.
        with contextlib.suppress(*_FAILURES):
            from rewriter.ops.cuda import build

            build.begin(build.visible_architectures())

    # The thread that builds, and the compilers that it starts, yield as this one does.
    thread = threading.Thread(target=build_yielding)
    thread.start()
    thread.join()


@functools.cache
def load() -> dict[str, str]:
    """Adds every provider whose needs are met. Returns the others' reasons by package, for reports."""
    missing = {}
    for name, package in _PACKAGES.items():
        if importlib.util.find_spec(package) is None:
            continue
        try:
            importlib.import_module(package)
        except _FAILURES as error:
            missing[name] = described(error)
    return missing
