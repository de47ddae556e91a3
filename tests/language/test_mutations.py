"""Damaged rule files load or raise RuleError with a position; nothing else escapes, and nothing is executed."""

from __future__ import annotations

import contextlib
import copy
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rewriter.rules
from rewriter.errors import RuleError
from rewriter.language import source
from rewriter.language.document import read_document
from rewriter.language.overlap import check_set
from rewriter.language.rule import RuleSet

FORBIDDEN = ("exec", "os.", "subprocess.", "socket.", "shutil.", "ctypes.", "pty.", "webbrowser.")
BOUNDED = settings(derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))

# What an attacker or a slip of the keyboard puts into a file.
FRAGMENTS = [
    *(
        "",
        " ",
        "\n",
        "\t",
        "  ",
        ":",
        "- ",
        "[",
        "]",
        "{",
        "}",
        "(",
        ")",
        "*",
        "?",
        "&a ",
        "*a",
        "<<: ",
        "!!",
        "|",
        ">",
    ),
    *(
        "'",
        '"',
        "#",
        ",",
        "%",
        "_",
        "\0",
        "\x85",
        "é",
        "\U0001f600",
        "::",
        "=",
        "..",
        "...",
        "-1",
        "1e400",
        "010",
        "no",
    ),
    *(
        "~",
        "None",
        "true",
        "aten::",
        "aten::add",
        "rewriter::",
        "prim::If",
        "prepare",
        "as",
        "where",
        "id: a",
        "0" * 30,
    ),
    "!!python/object/apply:os.system ['exit 1']",
    "!!python/name:os.system",
    "__import__('os').system('exit 1')",
    "().__class__.__base__.__subclasses__()",
    "{{7*7}}",
    "[" * 30,
    "- " * 30,
]
VALUES = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2**70,
    0.5,
    1e300,
    "",
    "x",
    "no",
    "C % 2",
    "1..4",
    "(",
    [],
    ["x"],
    [[1]],
    {},
    {"x": 1},
]

# In C where PyYAML was built with it.
DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

_events: list[str] | None = None
# An audit hook stays for good, so there is one.
_listening: list[bool] = []


def _listen(event: str, _arguments: object) -> None:
    if _events is not None and event.startswith(FORBIDDEN):
        _events.append(event)


@contextlib.contextmanager
def nothing_executed() -> Iterator[None]:
    global _events
    _events = []
    try:
        yield
        assert not _events, f"executed: {_events}"
    finally:
        _events = None


@pytest.fixture
def texts(sample: str) -> list[str]:
    folder = pathlib.Path(rewriter.rules.__path__[0])
    # Once undamaged, so that every import has happened.
    found = [sample, *(path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.yaml")))]
    for text in found:
        check(text)
    if not _listening:
        sys.addaudithook(_listen)
        _listening.append(True)
    return found


def check(text: str) -> None:
    """Loads the text; a RuleError must point into it."""
    error = loading_error(text)
    if error is None:
        return
    assert error.position.file == "f"
    assert 1 <= error.position.line <= text.count("\n") + 2, error
    assert error.position.column >= 1, error
    assert str(error).startswith(f"{error.position}: ")


def loading_error(text: str) -> RuleError | None:
    try:
        check_set(RuleSet.ordered(read_document(source.parse(text, "f"))))
    except RuleError as error:
        return error
    return None


def test_damaged_text(texts: list[str]) -> None:
    @settings(BOUNDED, max_examples=500)
    @given(st.data())
    def run(data: st.DataObject) -> None:
        text = data.draw(st.sampled_from(texts))
        for _ in range(data.draw(st.integers(1, 3))):
            start = data.draw(st.integers(0, len(text)))
            end = min(start + data.draw(st.sampled_from((0, 0, 1, 2, 7, 40))), len(text))
            text = text[:start] + data.draw(st.sampled_from(FRAGMENTS)) + text[end:]
        with nothing_executed():
            check(text)

    run()


def test_damaged_structure(texts: list[str]) -> None:
    documents = [yaml.safe_load(text) for text in texts]

    @settings(BOUNDED, max_examples=400)
    @given(st.data())
    def run(data: st.DataObject) -> None:
        document = copy.deepcopy(data.draw(st.sampled_from(documents)))
        for _ in range(data.draw(st.integers(1, 3))):
            spots = list(places(document))
            container, key = spots[data.draw(st.integers(0, len(spots) - 1))]
            other, other_key = spots[data.draw(st.integers(0, len(spots) - 1))]
            action = data.draw(st.sampled_from(("remove", "replace", "copy", "rename")))
            taken = container.pop(key)
            if action == "replace":
                put(container, key, copy.deepcopy(data.draw(st.sampled_from(VALUES))))
            elif action == "copy" and other_key in (other if isinstance(other, dict) else range(len(other))):
                put(container, key, copy.deepcopy(other[other_key]))
            elif action == "rename":
                put(container, "x" if isinstance(container, dict) else 0, taken)
        with nothing_executed():
            check(yaml.dump(document, Dumper=DUMPER, sort_keys=False, allow_unicode=True))

    run()


def put(container: Any, key: Any, value: Any) -> None:
    if isinstance(container, list):
        container.insert(key, value)
    else:
        container[key] = value


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a tree, as its container and the key in it."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield value, key
        yield from places(child)


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.sampled_from(FRAGMENTS)
)
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)


@settings(BOUNDED, max_examples=150)
@given(TREES, st.sampled_from(["format", "rules", "match", "where", "inputs", "dims", "replace", "require"]))
def test_random_trees(tree: Any, key: str) -> None:
    rule = {"id": "a", "summary": "s", "match": "y = aten::relu(x)", "replace": "y = aten::silu(x)", "inputs": {"x": 1}}
    document: dict[str, Any] = {"format": 1, "pack": "p", "summary": "s", "rules": [rule]}
    (document if key in document else rule)[key] = tree
    check(yaml.safe_dump(document))


@settings(BOUNDED, max_examples=100)
@given(st.binary(max_size=60))
def test_random_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "random.yaml"
    path.write_bytes(data)
    with pytest.raises(RuleError):
        read_document(source.read(path))
