"""YAML and its traps."""

from __future__ import annotations

import pathlib

import pytest

from rewriter.errors import RuleError
from rewriter.language import source


def value(text: str) -> object:
    item = source.parse(f"key: {text}\n", "f")
    assert isinstance(item.value, dict)
    return item.value["key"].value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("1.5e-3", 1.5e-3),
        (".5", 0.5),
        ("-3", -3),
        ("1e-3x", "1e-3x"),
        ("y", "y"),
        ("n", "n"),
        ("True", True),
        ("false", False),
        ("~", None),
        ("null", None),
        ("None", "None"),
        ("'no'", "no"),
        ('"1e-3"', "1e-3"),
        (".inf", float("inf")),
        ("-.inf", float("-inf")),
        ("1..4", "1..4"),
        ("", None),
    ],
)
def test_scalar(text: str, expected: object) -> None:
    found = value(text)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    "text", ["no", "Yes", "on", "OFF", "010", "0x1F", "0b1", "1_000", "12:30", ".nan", "2024-01-01"]
)
def test_trap(text: str) -> None:
    with pytest.raises(RuleError, match=r"^f:1:6: "):
        value(text)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a: 1\nb: &x 1\nc: *x\n", "f:2:4"),
        ("a: &x [*x]\n", "f:1:4"),
        ("a: 1\n<<: {b: 1}\n", "f:2:1"),
        ("a: !!python/object/apply:os.system [exit]\n", "f:1:4"),
        ("!!python/name:os.system a: 1\n", "f:1:1"),
        ("a: !custom b\n", "f:1:4"),
        ("? [a]\n: b\n", "f:1:3"),
        ("a: 1\na: 2\n", "f:2:1"),
        ("a: [1\nb: 2\n", "f:2:2"),
        ("a: 1\n--- \nb: 2\n", "f:2:1"),
        ("\ta: 1\n", "f:1:1"),
        ("a: 1\nb: \x07\n", "f:2:4"),
        ("", "f:1:1"),
        ("# only a comment\n", "f:1:1"),
        (f"a: {'9' * 30}\n", "f:1:4"),
        (f"a: {'9' * 5000}\n", "f:1:4"),
    ],
)
def test_refused(text: str, place: str) -> None:
    with pytest.raises(RuleError) as caught:
        source.parse(text, "f")
    assert str(caught.value.position) == place


@pytest.mark.parametrize("text", ["[" * 200_000, "{a: " * 100_000, "- " * 100_000, "? " * 100_000, "[" * 30 + "]" * 30])
def test_deep_nesting_is_refused_without_going_into_it(text: str) -> None:
    with pytest.raises(RuleError, match="nested too deeply"):
        source.parse(text, "f")


def test_positions_in_block_text() -> None:
    item = source.parse("rule:\n  match: |\n    a = 1\n\n      b = 2\n", "f")
    assert isinstance(item.value, dict)
    match = item.value["rule"].value["match"]  # type: ignore[index,call-overload]
    assert str(match.at(0, 4)) == "f:3:9"
    assert str(match.at(2, 2)) == "f:5:7"


def test_positions_with_an_indentation_indicator() -> None:
    item = source.parse("match: |2\n    a = 1\n  b = 2\n", "f")
    assert isinstance(item.value, dict)
    match = item.value["match"]
    assert match.value == "  a = 1\nb = 2\n"
    assert str(match.at(0, 2)) == "f:2:5"
    assert str(match.at(1, 0)) == "f:3:3"


def test_unreadable(tmp_path: pathlib.Path) -> None:
    with pytest.raises(RuleError, match=r"missing.yaml:1:1: cannot read the rule file: No such file"):
        source.read(tmp_path / "missing.yaml")
    with pytest.raises(RuleError, match="cannot read the rule file"):
        source.read(pathlib.Path("a\0b.yaml"))
    with pytest.raises(RuleError, match="cannot read the rule file"):
        source.read(tmp_path)


def test_not_utf8(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"format: 1\nsummary: caf\xe9\n")
    with pytest.raises(RuleError, match=r"latin.yaml:2:1: not UTF-8 text \(found byte 0xe9\)"):
        source.read(path)


def test_too_large(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_bytes(b"#" * 1_000_001)
    with pytest.raises(RuleError, match="rule file too large"):
        source.read(path)


def test_a_file_without_an_end() -> None:
    with pytest.raises(RuleError, match="rule file too large"):
        source.read(pathlib.Path("/dev/zero"))


def test_two_documents() -> None:
    with pytest.raises(RuleError, match=r"expected a single document in the stream, but found another document"):
        source.parse("format: 1\n---\nformat: 1\n", "f")
