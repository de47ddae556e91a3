"""Timings and choices kept on disk, per machine and versions, so that each is measured once."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import pathlib
import platform

import torch

from rewriter.measure.disk import NOTHING_KEPT, keep, tell
from rewriter.measure.timing import Timing
from rewriter.ops.dispatch import Choice

_FORMAT = 2
_log = logging.getLogger("rewriter")


def cache_folder() -> pathlib.Path:
    """`$REWRITER_CACHE`, or `rewriter` in the user's cache folder."""
    explicit = os.environ.get("REWRITER_CACHE")
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return pathlib.Path(explicit).expanduser() if explicit else pathlib.Path(caches).expanduser() / "rewriter"
    except RuntimeError:
        # A user without a home, as in some containers: nothing is found there and nothing kept, which `keep` says.
        return pathlib.Path(os.devnull) / "rewriter"


def machine(device: str) -> dict[str, str]:
    """What timings depend on besides the region itself."""
    found = {"torch": torch.__version__, "device": device}
    if device == "cuda":
        found |= {
            "gpu": torch.cuda.get_device_name(),
            "cuda": str(torch.version.cuda),
            "cudnn": str(torch.backends.cudnn.version()),
            "driver": _driver(),
            "cudnn-frontend": _frontend(),
        }
    else:
        found |= {"cpu": _cpu_name(), "threads": str(torch.get_num_threads()), "system": platform.system()}
    return found


@functools.cache
def _frontend() -> str:
    """The version of NVIDIA's package, whose plans go by numbers; nothing where it is missing."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version("nvidia-cudnn-frontend")
    return ""


@functools.cache
def _driver() -> str:
    """What the NVIDIA driver says of itself; nothing where it is out of sight."""
    with contextlib.suppress(OSError):
        return pathlib.Path("/proc/driver/nvidia/version").read_text().partition("\n")[0].strip()
    return ""


@functools.cache
def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


class TimingCache:
    """The timings of one machine. A file that cannot be read, is corrupt or foreign counts as empty."""

    def __init__(self, device: str) -> None:
        self.machine = machine(device)
        digest = hashlib.sha256(json.dumps(self.machine, sort_keys=True).encode()).hexdigest()[:16]
        self.path = cache_folder() / "timings" / f"{device}-{digest}.json"
        self.timings: dict[str, Timing] = {}
        self.choices: dict[str, Choice] = {}
        self._load()
        self.changed = False

    def _load(self) -> None:
        try:
            data = json.loads(self.path.read_text())
            if data["format"] != _FORMAT or data["machine"] != self.machine:
                return
            found = {str(key): Timing(float(before), float(after)) for key, (before, after) in data["timings"].items()}
            choices = {str(key): Choice(str(name), dict(config)) for key, (name, config) in data["choices"].items()}
        except NOTHING_KEPT:
            return
        except OSError as error:
            tell(f"the timings {self.path} cannot be read and are made anew", error)
            return
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            _log.warning("timing cache %s is not usable and will be rebuilt: %s", self.path, error)
            return
        self.timings = {key: timing for key, timing in found.items() if timing.before > 0 and timing.after > 0}
        self.choices = choices

    def choice(self, key: str) -> Choice | None:
        """The provider that was the fastest for a call."""
        return self.choices.get(key)

    def put_choice(self, key: str, choice: Choice) -> None:
        self.choices[key] = choice
        self.changed = True

    def get(self, key: str) -> Timing | None:
        return self.timings.get(key)

    def put(self, key: str, timing: Timing) -> None:
        self.timings[key] = timing
        self.changed = True

    def save(self) -> None:
        """Writes the file as a whole or not at all; a read-only or full disk only costs the next run its time."""
        if not self.changed:
            return
        data = {
            "format": _FORMAT,
            "machine": self.machine,
            "timings": {key: [round(t.before, 3), round(t.after, 3)] for key, t in sorted(self.timings.items())},
            "choices": {key: [c.provider, dict(c.config)] for key, c in sorted(self.choices.items())},
        }
        keep(self.path, json.dumps(data))
        self.changed = False
