"""Published sizes on a GPU with `--full-size`, else their narrow twins on whatever device there is."""

from __future__ import annotations

import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import pytest
import torch
import transformers
from real_pipelines import Painter, Place, free

from rewriter.measure.recordings import RUNNING, TIMING
from rewriter.runtime import cuda_graphs

# The cheap and the important first.
_ORDER = (
    "test_drawing",
    "test_guard_on_a_device",
    "test_replayed_numbers",
    "test_another_process",
    "test_many_sizes",
    "test_lora_switching",
    "test_offloading",
)
_HERE = pathlib.Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("full-size", "pipelines at full size")
    group.addoption("--full-size", action="store_true", help="the published sizes; needs a CUDA device")
    group.addoption("--full-size-report", metavar="FILE", help="append a line of JSON for each case to this file")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("full_size", default=False):
        if not torch.cuda.is_available():
            raise pytest.UsageError("--full-size needs a CUDA device, and torch finds none here")
        # A network is made ready once and taken from the disk by the cases after it.
        os.environ["REWRITER_GRAPHS"] = "on"
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Lines(config), "full-size-lines")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = [index for index, item in enumerate(items) if item.path.parent == _HERE]
    ordered = sorted((items[index] for index in places), key=lambda item: _ORDER.index(item.path.stem))
    for index, item in zip(places, ordered, strict=True):
        items[index] = item


class _Lines:
    """Writes down what each case has found, when it is over."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._calls: dict[str, pytest.TestReport] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if pathlib.PurePath(report.nodeid.partition("::")[0]).parent.name != _HERE.name:
            return
        if report.when != "teardown":
            if report.when == "call" or not report.passed:
                self._calls[report.nodeid] = report
            return
        call = self._calls.pop(report.nodeid, report)
        found = {"case": report.nodeid.partition("::")[2], "outcome": call.outcome, "seconds": round(call.duration, 2)}
        line = json.dumps({**found, **dict(report.user_properties)})
        path = self._config.getoption("full_size_report", default=None)
        if path:
            with pathlib.Path(path).open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")
        if self._config.getoption("full_size", default=False):
            terminal = self._config.pluginmanager.get_plugin("terminalreporter")
            if terminal is not None:
                terminal.ensure_newline()
                terminal.write_line(line)


@pytest.fixture(scope="session")
def place(request: pytest.FixtureRequest) -> Place:
    return Place(
        full=request.config.getoption("full_size", default=False),
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
    )


@pytest.fixture(autouse=True)
def _quiet_and_without_gradients(place: Place) -> Iterator[None]:
    transformers.logging.set_verbosity_error()
    threads, before = torch.get_num_threads(), diffusers.logging.get_verbosity()
    if not place.full:
        torch.set_num_threads(1)
    diffusers.logging.set_verbosity_error()
    with torch.no_grad():
        yield
    diffusers.logging.set_verbosity(before)
    torch.set_num_threads(threads)


@pytest.fixture
def note(place: Place, record_property: Callable[[str, Any], None]) -> Iterator[Callable[..., None]]:
    """Adds facts to the case's line."""

    def add(**facts: Any) -> None:
        for name, value in facts.items():
            record_property(name, float(f"{value:.4g}") if isinstance(value, float) else value)

    if place.cuda:
        torch.cuda.reset_peak_memory_stats()
    yield add
    if place.cuda:
        add(peak_gib=torch.cuda.max_memory_allocated() / 2**30)


@pytest.fixture
def painter(place: Place) -> Iterator[Callable[..., Painter]]:
    """Builds pipelines whose memory is free again after the test, even where it failed."""
    made: list[Painter] = []

    def build(architecture: str, **changes: Any) -> Painter:
        made.append(Painter(architecture, place, **changes))
        return made[-1]

    yield build
    for each in made:
        each.spend()
    made.clear()
    # The last failure's frames hold tensors.
    for name in ("last_exc", "last_value", "last_traceback"):
        if hasattr(sys, name):
            setattr(sys, name, None)
    if place.cuda:
        TIMING.forget()
        RUNNING.forget()
    free(place)


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Grows by one whenever kernels are recorded to be replayed."""
    made: list[None] = []
    original = cuda_graphs.record_kernels

    def record(function: Any) -> Any:
        made.append(None)
        return original(function)

    monkeypatch.setattr(cuda_graphs, "record_kernels", record)
    return made
