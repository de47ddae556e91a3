"""Kept graphs that are damaged or wrong are made anew, and the folder that keeps them stays small and whole."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from second_starts import NOTHING, example, gate, spared, start

from rewriter.measure import disk
from rewriter.measure.cache import cache_folder
from rewriter.runtime import shelf

pytestmark = pytest.mark.usefixtures("folder")


class Scalars(torch.nn.Module):
    """Its graph holds an empty list of integers: the extents of a scalar."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x.new_ones(())


def test_a_graph_with_an_empty_list_is_kept(work: dict[str, int]) -> None:
    start(Scalars(), example())
    assert spared(work)["traces"] == 1
    start(Scalars(), example())
    assert spared(work) == NOTHING


def damaged(path: Path, damage: Callable[[bytes], bytes]) -> None:
    path.write_bytes(damage(path.read_bytes()))


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda _: b"", id="empty"),
        pytest.param(lambda data: data[: len(data) // 2], id="truncated"),
        pytest.param(lambda data: data.replace(b"aten::silu", b"aten::relu").replace(b"silu", b"relu"), id="altered"),
        pytest.param(lambda _: b"[]", id="list"),
        pytest.param(lambda data: b"\xff\x00" + data, id="binary"),
        pytest.param(lambda data: data.replace(b'"format": 1', b'"format": 99'), id="format"),
        pytest.param(lambda data: data.replace(b'"versions"', b'"fashions"'), id="foreign"),
        pytest.param(lambda _: b"[" * 100_000, id="nested"),
    ],
)
def test_a_damaged_file_is_made_anew(work: dict[str, int], folder: Path, damage: Callable[[bytes], bytes]) -> None:
    start(gate(), example())
    files = sorted(folder.iterdir())
    assert [path.name.partition("-")[0] for path in files] == ["rules", "trace"]
    for path in files:
        damaged(path, damage)
    spared(work)
    start(gate(), example())
    assert spared(work) == {"traces": 1, "rewrites": 1, "timings": 0}
    start(gate(), example())
    assert spared(work) == NOTHING


@pytest.mark.parametrize("kind", ["trace", "rules"])
@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(lambda text: text.replace("softmax", "log_softmax"), id="another result"),
        pytest.param(lambda text: text.replace("aten::", "aten::no_such_"), id="unknown ops"),
        pytest.param(lambda text: text.replace("return", "reply"), id="not IR"),
    ],
)
def test_a_kept_graph_that_is_wrong_is_made_anew(
    work: dict[str, int], folder: Path, kind: str, edit: Callable[[str], str]
) -> None:
    """As it would be if a trace depended on something that its key does not say."""
    start(gate(), example())
    (path,) = folder.glob(f"{kind}-*")
    data = json.loads(path.read_text())
    data["content"]["graph"]["text"] = edit(data["content"]["graph"]["text"])
    data["checksum"] = shelf.checksum(data["content"])
    path.write_text(json.dumps(data))
    spared(work)
    found = start(gate(), example())
    assert spared(work)["traces"] == 1
    assert any("was made anew" in message for message in found.messages)
    start(gate(), example())
    assert spared(work) == NOTHING


def test_without_verification_no_trace_is_taken(work: dict[str, int]) -> None:
    start(gate(), example())
    spared(work)
    start(gate(), example(), verify=False)
    assert spared(work)["traces"] == 1


def test_nothing_unverified_is_kept(folder: Path) -> None:
    start(gate(), example(), verify=False)
    assert not folder.exists()


def test_it_can_be_switched_off(work: dict[str, int], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWRITER_GRAPHS", "off")
    for _ in range(2):
        start(gate(), example())
        assert spared(work)["traces"] == 1
    assert not folder.exists()


def test_a_folder_that_cannot_be_written_costs_only_time(work: dict[str, int], folder: Path) -> None:
    folder.write_text("a file where the folder should be")
    for _ in range(2):
        assert start(gate(), example()).status == "optimised"
        assert spared(work)["traces"] == 1


def test_the_folder_stays_small(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(4):
        shelf.put("trace", {"index": index}, "x" * 1000)
        os.utime(folder / sorted(folder.iterdir(), key=os.path.getmtime)[-1].name, (index, index))
    assert shelf.get("trace", {"index": 0}) is not None
    abandoned = folder / "left.part"
    abandoned.write_text("")
    os.utime(abandoned, (0, 0))
    monkeypatch.setattr(shelf, "_MOST_BYTES", 3500)
    shelf.put("trace", {"index": 4}, "x" * 1000)
    assert [shelf.get("trace", {"index": index}) is not None for index in range(5)] == [True, False, False, True, True]
    assert not abandoned.exists()


def test_writers_at_the_same_time_leave_whole_files() -> None:
    contents = ["a" * 50_000, "b" * 90_000]
    found: list[Any] = []

    def write(content: str) -> None:
        for _ in range(40):
            shelf.put("trace", {}, content)
            found.append(shelf.get("trace", {}))

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80
    assert all(content in contents for content in found)


def test_a_full_disk_is_named_once_and_not_filled_further(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def half(path: Path, text: str, **_: Any) -> None:
        path.write_bytes(text[: len(text) // 2].encode())
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    monkeypatch.setattr(disk, "_told", set())
    for index in range(3):
        shelf.put("trace", {"index": index}, "content")
    assert list(folder.iterdir()) == []
    (message,) = caplog.messages
    assert message.startswith(str(folder))
    assert "No space left on device; set REWRITER_CACHE" in message


def test_where_things_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    found = {}
    for given in ("", "~/mine", "/mine"):
        monkeypatch.setenv("REWRITER_CACHE", given)
        found[given] = str(cache_folder())
    assert found == {"": "/home/someone/.cache/rewriter", "~/mine": "/home/someone/mine", "/mine": "/mine"}


def test_a_user_without_a_home_keeps_nothing(
    work: dict[str, int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "REWRITER_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("REWRITER_GRAPHS", "on")
    monkeypatch.setattr("os.getuid", lambda: 2**31 - 5)
    monkeypatch.setattr(disk, "_told", set())
    assert start(gate(), example()).status == "optimised"
    assert spared(work)["traces"] == 1
    assert len(caplog.messages) == 1
    assert "set REWRITER_CACHE" in caplog.messages[0]
