"""Processes that run a module of this package."""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys

# As `nice` counts. Beside eight busy processes two cores trace a network in 27 s, in 4 s where these yield so much, in
# 14 s where they yield half as much. With more, they would get nothing beside processes of others.
_YIELDING = 10


def command(module: str, *arguments: str) -> list[str]:
    """The command line that runs the module by this interpreter, with `environment`."""
    # Without -P the working folder would come first, where another `rewriter` may lie, such as a clone's.
    return [sys.executable, "-P", "-m", module, *arguments]


def yields(process: int = 0) -> None:
    """Has a process, by its number, run where nothing else wants the processor; 0 is the calling thread, with all that
    it starts from then on. What compiles beside a caller must not hold it up."""
    # Elsewhere threads have no priority of their own, and the caller would yield too.
    if sys.platform == "linux":
        # Not one that has ended, or that yields more already.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, process, _YIELDING)


def environment() -> dict[str, str]:
    """This process's, by which the other one finds the same packages, and last what lies in the working folder."""
    places = [*sys.path, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), ""]
    absolute = dict.fromkeys(str(pathlib.Path(place).absolute()) for place in places)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(absolute)}
