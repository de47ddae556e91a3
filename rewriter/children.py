"""Processes that run a module of this package."""

from __future__ import annotations

import os
import pathlib
import sys


def command(module: str, *arguments: str) -> list[str]:
    """The command line that runs the module by this interpreter, with `environment`."""
    # Without -P the working folder would come first, where another `rewriter` may lie, such as a clone's.
    return [sys.executable, "-P", "-m", module, *arguments]


def environment() -> dict[str, str]:
    """This process's, by which the other one finds the same packages, and last what lies in the working folder."""
    places = [*sys.path, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), ""]
    absolute = dict.fromkeys(str(pathlib.Path(place).absolute()) for place in places)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(absolute)}
