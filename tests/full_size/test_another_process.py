"""A second process takes what the first has made from the disk, and draws the same."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import another_process
import pytest
import torch
from real_pipelines import FLOORS, Place

from rewriter.capture.compare import relative_error

pytestmark = pytest.mark.filterwarnings("default")


def run(place: Place, folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    folder.mkdir()
    finished = subprocess.run(
        [sys.executable, another_process.__file__, str(folder), *(["--full-size"] if place.full else [])],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    return json.loads((folder / "facts.json").read_text()), torch.load(folder / "drawn.pt", weights_only=True)


def test_a_second_process_is_ready_sooner_and_draws_the_same(
    place: Place, note: Callable[..., None], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REWRITER_GRAPHS", "on")
    if not place.full:
        monkeypatch.setenv("REWRITER_CACHE", str(tmp_path / "cache"))
    (first, drawn), (again, redrawn) = (run(place, tmp_path / str(number)) for number in (1, 2))
    apart = max(relative_error(redrawn[what], drawn[what]) for what in drawn)
    note(
        error=apart,
        same_bits=all(torch.equal(redrawn[what], drawn[what]) for what in drawn),
        first_process={name: first[name] for name in ("ready_s", "picture_s", "phases")},
        **{name: again[name] for name in ("ready_s", "picture_s", "eager_s", "phases")},
    )
    assert set(again["status"].values()) == {"optimised"}
    assert not any("made anew" in message for message in again["messages"])
    for name, phases in again["phases"].items():
        assert not {"trace", "measure", "rewrite"} & phases.keys(), (name, phases)
    # The choices are the same; the order in which the blocks of a kernel add up need not be.
    assert apart <= 4 * FLOORS[place.dtype("sd15")]
