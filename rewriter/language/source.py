"""YAML text to a tree of values that know where they stand in the file.

YAML 1.1 has traps that turn a typo into a silently different rule: `no` is a boolean, `1e-3` a string, `010` the
number eight, a repeated key overwrites. Here each is refused or converted on purpose. Anchors, aliases, merge keys and
tags are no part of the format, so nothing can be executed and nothing can blow up.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
from typing import Any

import yaml

from rewriter.errors import Position, RuleError

Scalar = str | int | float | bool | None

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"
# What plain text may be taken for; merge keys (<<) and tags of any other kind are not.
_KEY_TAGS = frozenset(_TAG + name for name in ("str", "bool", "int", "float", "null", "timestamp", "value"))
_EXPONENT_ONLY = re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+")
_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_YAML_1_1_BOOLEANS = frozenset(("yes", "no", "on", "off", "y", "n"))
_MAX_DEPTH = 24
# Each level of nesting on one line takes one of these. The C library composes level by level on the stack, and far more
# than this many would overflow it.
_NESTING = "[{-?"
_HARMLESS = 2000
_MAX_BYTES = 1_000_000


@dataclasses.dataclass(slots=True, eq=False)
class Item:
    """A YAML value with its place. `value` is a scalar, a list of items, or a dict of items."""

    value: Scalar | list[Item] | dict[str, Item]
    position: Position
    keys: dict[str, Position] = dataclasses.field(default_factory=dict)
    # For scalars: where the first character of each of their lines stands.
    lines: tuple[Position, ...] = ()

    def at(self, line: int, column: int) -> Position:
        """The place of a character of a text value; `line` and `column` count from 0."""
        if not self.lines:
            return self.position
        start = self.lines[min(line, len(self.lines) - 1)]
        return dataclasses.replace(start, column=start.column + column)

    @property
    def kind(self) -> str:
        return kind_of(self.value)


def kind_of(value: object) -> str:
    """What a value is called in messages to rule authors."""
    names: dict[type, str] = {str: "text", bool: "a boolean", int: "an integer", float: "a number"}
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    return names.get(type(value), type(value).__name__)


def read(path: pathlib.Path) -> Item:
    """The tree of a rule file. Raises RuleError if it cannot be read or is not plain YAML."""
    start = Position(file=str(path), line=1, column=1)
    try:
        # A device such as /dev/zero has no end.
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise RuleError(
            f"cannot read the rule file: {reason}", position=start, expected="a readable YAML file"
        ) from None
    if len(data) > _MAX_BYTES:
        raise RuleError("rule file too large", position=start, expected="at most 1 MB")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RuleError(
            "not UTF-8 text",
            position=Position(file=str(path), line=line, column=1),
            found=f"byte {data[error.start]:#x}",
        ) from None
    return parse(text, str(path))


def parse(text: str, file: str) -> Item:
    """The tree of a rule file's text. Raises RuleError."""
    start = Position(file=file, line=1, column=1)
    try:
        if sum(map(text.count, _NESTING)) > _HARMLESS:
            _check_depth(text, file)
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
        finally:
            loader.dispose()
    except RuleError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        position = Position(file=file, line=mark.line + 1, column=mark.column + 1) if mark else start
        # Later releases of PyYAML have a limit of their own, which comes first where they look ahead.
        if "nesting depth" in (error.problem or ""):
            raise _too_deep(position) from None
        # "expected a single document in the stream", "but found another document": halves of one sentence.
        halves = [error.context, error.problem] if (error.problem or "").startswith("but ") else [error.problem]
        problem = ", ".join(filter(None, halves)) or error.context
        raise RuleError(f"not valid YAML: {problem}", position=position) from None
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        position = Position(file=file, line=before.count("\n") + 1, column=len(before) - before.rfind("\n"))
        raise RuleError(f"not valid YAML: {error.reason}", position=position) from None
    except (RecursionError, ValueError) as error:
        raise RuleError(f"not valid YAML: {type(error).__name__}", position=start) from None
    if root is None:
        raise RuleError("empty rule file", position=start, expected="format, pack, summary and rules")
    return _Tree(file, text.split("\n")).convert(root, 0)


def _check_depth(text: str, file: str) -> None:
    """Raises RuleError for nesting that is too deep, without ever going into it."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        mark = event.start_mark
        if depth > _MAX_DEPTH and mark is not None:
            raise _too_deep(Position(file=file, line=mark.line + 1, column=mark.column + 1))


def _too_deep(position: Position) -> RuleError:
    return RuleError("nested too deeply", position=position, expected=f"at most {_MAX_DEPTH} levels")


class _Tree:
    def __init__(self, file: str, source: list[str]) -> None:
        self.file = file
        self.source = source
        self.seen: set[int] = set()

    def position(self, mark: Any) -> Position:
        return Position(file=self.file, line=mark.line + 1, column=mark.column + 1)

    def convert(self, node: Any, depth: int) -> Item:
        position = self.position(node.start_mark)
        if depth > _MAX_DEPTH:
            raise _too_deep(position)
        if id(node) in self.seen:
            raise RuleError(
                "aliases (*name) are not part of the rule format", position=position, expected="the value itself"
            )
        self.seen.add(id(node))
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self.mapping(node, position, depth)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return Item([self.convert(child, depth + 1) for child in node.value], position)
        if isinstance(node, yaml.ScalarNode):
            return Item(self.scalar(node, position), position, lines=self.line_starts(node, position))
        raise RuleError(
            "tags are not part of the rule format", position=position, found=node.tag, expected="a plain value"
        )

    def mapping(self, node: Any, position: Position, depth: int) -> Item:
        values: dict[str, Item] = {}
        keys: dict[str, Position] = {}
        for key_node, value_node in node.value:
            where = self.position(key_node.start_mark)
            # `y` and `n` are booleans in YAML 1.1 and everyday operand names here, so keys are always text.
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag not in _KEY_TAGS:
                raise RuleError("a key must be plain text", position=where, expected="a name")
            key = key_node.value
            if key in values:
                raise RuleError(
                    f"the key {key!r} appears twice", position=where, found=f"first at line {keys[key].line}"
                )
            keys[key] = where
            values[key] = self.convert(value_node, depth + 1)
        return Item(values, position, keys=keys)

    def scalar(self, node: Any, position: Position) -> Scalar:
        text: str = node.value
        plain = not node.style
        if not plain or node.tag == _TAG + "str":
            if node.tag not in (_TAG + "str", "!"):
                raise RuleError("tags are not part of the rule format", position=position, found=node.tag)
            if plain and _EXPONENT_ONLY.fullmatch(text):
                return self.number(float, text, position)
            if plain and text.lower() in _YAML_1_1_BOOLEANS and len(text) > 1:
                raise RuleError(
                    "ambiguous word", position=position, found=text, expected="true, false or a quoted text"
                )
            return text
        if node.tag == _TAG + "null":
            return None
        if node.tag == _TAG + "bool":
            if text.lower() in ("true", "false"):
                return text.lower() == "true"
            if len(text) == 1:
                return text
            raise RuleError("ambiguous boolean", position=position, found=text, expected="true or false")
        if node.tag == _TAG + "int":
            if not _DECIMAL.fullmatch(text):
                raise RuleError("ambiguous number", position=position, found=text[:40], expected="a decimal integer")
            return self.number(int, text, position)
        if node.tag == _TAG + "float":
            return self.number(float, text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan"), position)
        raise RuleError("a value of a kind that rules do not have", position=position, found=f"{text!r} ({node.tag})")

    @staticmethod
    def number(kind: type[int] | type[float], text: str, position: Position) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            raise RuleError("not a number", position=position, found=text[:40]) from None
        if isinstance(value, float) and math.isnan(value):
            raise RuleError("NaN equals nothing, itself included", position=position, expected="a number")
        if isinstance(value, int) and abs(value) > 2**63:
            raise RuleError("number out of range", position=position, expected="a 64-bit integer")
        return value

    def line_starts(self, node: Any, position: Position) -> tuple[Position, ...]:
        if node.style not in ("|", ">"):
            return (position,) if not node.style else (dataclasses.replace(position, column=position.column + 1),)
        first = node.start_mark.line + 1
        lines = self.source[first : node.end_mark.line + 1]
        # An indentation indicator (`|2`) leaves some of the spaces to the text.
        filled = next((line for line in lines if line.strip()), "")
        kept = next((line for line in node.value.split("\n") if line.strip()), "")
        indent = max(_spaces(filled) - _spaces(kept), 0)
        starts = [Position(file=self.file, line=first + offset + 1, column=indent + 1) for offset in range(len(lines))]
        return tuple(starts) or (position,)


def _spaces(line: str) -> int:
    return len(line) - len(line.lstrip(" "))
