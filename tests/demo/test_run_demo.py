"""A demo writes its files and tells the truth about what it measured."""

from __future__ import annotations

import html.parser
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rewriter.demo import DemoResult, comparison, run_demo
from rewriter.demo.page import render
from rewriter.demo.result import Component, Matches, Timing
from rewriter.errors import UnknownTarget

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "_TIMING_SECONDS", 0.5)
        patch.setattr(comparison, "_MOST_ROUNDS", 3)
        yield


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    return run_demo("digits", out=tmp_path_factory.mktemp("demo") / "new" / "folder", steps=3, seed=7)


def test_the_files_are_there(digits: DemoResult) -> None:
    names = ["eager.png", "optimised.png", "difference.png", "report.html"]
    assert [path.name for path in digits.files.values()] == names
    sizes = set()
    for name in ("eager", "optimised", "difference"):
        with Image.open(digits.files[name]) as picture:
            picture.verify()
            sizes.add(picture.size)
    assert len(sizes) == 1


def test_the_result_is_complete(digits: DemoResult) -> None:
    assert digits.target == "digits"
    assert (digits.steps, digits.pictures, digits.seed) == (3, 30, 7)
    assert digits.interleaved
    assert digits.relative_difference < 1e-4
    assert digits.max_difference < 1e-3
    assert digits.speedup > 0
    assert [component.name for component in digits.components] == ["unet"]
    assert digits.components[0].status == "optimised", digits.components[0].reason
    assert digits.matches["group-norm-centred-silu"].matched > 0
    assert all(0 <= count.kept <= count.matched for count in digits.matches.values())
    assert digits.fallbacks == ()


def test_the_result_prints_and_serialises(digits: DemoResult) -> None:
    data = json.loads(json.dumps(digits.to_dict()))
    assert data["eager"]["step_ms"] == digits.eager.step_ms
    assert data["files"]["report"].endswith("report.html")
    text = str(digits)
    assert "ms per step" in text
    assert "group-norm-centred-silu" in text
    assert str(digits.files["eager"]) in text


def test_the_page_needs_nothing_from_outside(digits: DemoResult) -> None:
    class Links(html.parser.HTMLParser):
        found: list[str]

        def __init__(self) -> None:
            super().__init__()
            self.found = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag not in ("link", "script", "iframe")
            self.found += [value or "" for name, value in attrs if name in ("src", "href")]

    links = Links()
    links.feed(digits.files["report"].read_text(encoding="utf-8"))
    assert len(links.found) == 3
    assert all(link.startswith("data:image/png;base64,") for link in links.found)


@pytest.mark.parametrize(("model", "rounds"), [("svd-xt-tiny", 2), ("digits", 1)])
def test_a_large_model_is_timed_one_way_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, rounds: int
) -> None:
    monkeypatch.setattr(comparison, "_TWIN_BYTES", 0)
    monkeypatch.setattr(comparison, "_rounds", lambda _: rounds)
    result = run_demo(model, out=tmp_path, steps=1)
    assert not result.interleaved
    assert result.rounds == rounds
    assert result.relative_difference < 1e-4
    if model == "svd-xt-tiny":
        assert result.pictures == 3
        with Image.open(result.files["eager"]) as sheet:
            assert sheet.width > 2.5 * sheet.height


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps: found 0, expected at least 1"),
        ({"model": "digit"}, UnknownTarget, "Did you mean digits?"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run_demo(**{"out": tmp_path / "out", **arguments})
    assert not (tmp_path / "out").exists()


def test_an_out_that_is_a_file_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file, expected a folder"):
        run_demo(out=tmp_path / "out")


def test_the_page_escapes_names_and_shows_reasons(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "eager.png")
    timing = Timing(step_ms=2.0, step_ms_lowest=1.0, step_ms_highest=3.0, call_seconds=0.5)
    result = DemoResult(
        target="<b>me</b>",
        device="CPU",
        dtype="float32",
        seed=0,
        steps=4,
        rounds=3,
        interleaved=False,
        pictures=1,
        eager=timing,
        optimised=timing,
        speedup=1.0,
        first_call_seconds=1.0,
        max_difference=0.0,
        relative_difference=0.0,
        matches={"a<b": Matches(matched=2, kept=1)},
        components=(Component(name="unet", status="eager", reason="x & y", error=None),),
        files={"eager": tmp_path / "eager.png"},
        versions={"torch": "2"},
    )
    page = render(result, {"eager": "Eager"})
    assert "<b>me</b>" not in page
    assert "a&lt;b" in page
    assert "x &amp; y" in page
    assert "as fast as eager" in page
    assert [component.name for component in result.fallbacks] == ["unet"]
