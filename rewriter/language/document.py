"""The structure of a rule file: which keys there are and what kind of value each takes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from rewriter.errors import Position
from rewriter.language import conditions as kinds
from rewriter.language.conditions import Comparison, Condition, DimRange, Input, ScalarInput, Shape, TensorInput
from rewriter.language.expressions import Expression
from rewriter.language.lint import check_rule
from rewriter.language.patterns import parse_statements
from rewriter.language.reading import Reader
from rewriter.language.rule import Rule, Step
from rewriter.language.schemas import ResolveError, resolve
from rewriter.language.source import Item
from rewriter.language.syntax import Place, Statement
from rewriter.language.tokens import PatternError

FORMAT = 1
_ID = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", re.ASCII)
_RANGE = re.compile(r"(\d{1,9})\.\.(\d{1,9})", re.ASCII)
_FILE_KEYS = ("format", "pack", "summary", "rules")
_REQUIRED = ("id", "summary", "match", "replace", "inputs")
_RULE_KEYS = (
    *_REQUIRED,
    *(
        "doc",
        "phase",
        "benefit",
        "where",
        "require",
        "gpu",
        "device",
        "ignore",
        "rechecked",
        "may_escape",
        "prepare",
        "dims",
        "tolerance",
        "loses",
        "saves",
    ),
)
_CONDITION_KEYS = (
    *("dtype", "rank", "shape", "value", "min", "max", "const", "weight", "format", "device", "count", "uses"),
    *("dtype_equals", "present"),
)
_INPUT_KEYS = ("shape", "dtype", "layouts", "optional", "values", "count")


def read_document(root: Item) -> tuple[Rule, ...]:
    """The rules of a file, checked one by one. Raises RuleError."""
    reader = Reader()
    head = reader.fields(root, "the rule file", known=_FILE_KEYS, required=_FILE_KEYS)
    version = reader.integer(head["format"], "format")
    if version != FORMAT:
        reader.fail("unknown format", head["format"].position, found=str(version), expected=str(FORMAT))
    pack = _identifier(reader, head["pack"], "pack")
    reader.text(head["summary"], "summary")
    items = reader.items(head["rules"], "rules")
    if not items:
        reader.fail("no rules", head["rules"].position, expected="at least one rule")
    rules: dict[str, Rule] = {}
    for item in items:
        rule = RuleReader(item, pack).read()
        if rule.id in rules:
            reader.fail(
                "two rules with one id",
                rule.position,
                found=f"{rule.id}, first at line {rules[rule.id].position.line}",
                expected="an id of its own for each rule",
            )
        rules[rule.id] = rule
    return tuple(rules.values())


def _identifier(reader: Reader, item: Item, what: str) -> str:
    text = reader.text(item, what)
    if not _ID.fullmatch(text):
        reader.fail(f"{what} must be kebab-case", item.position, found=text[:60], expected="such as group-norm-silu")
    return text


class RuleReader(Reader):
    """Reads one rule."""

    def __init__(self, item: Item, pack: str) -> None:
        super().__init__()
        self.item = item
        self.pack = pack
        self.found = self.fields(item, "a rule", known=_RULE_KEYS)
        if "id" in self.found:
            self.rule = _identifier(self, self.found["id"], "id")
        self.fields(item, "a rule", known=_RULE_KEYS, required=_REQUIRED)

    def read(self) -> Rule:
        found = self.found
        where = {name: self.condition(item) for name, item in self.section("where").items()}
        gpu = self.fields(found["gpu"], "gpu", known=("sm",), required=("sm",)) if "gpu" in found else {}
        rule = Rule(
            id=str(self.rule),
            pack=self.pack,
            summary=self.text(found["summary"], "summary"),
            doc=self.text(found["doc"], "doc") if "doc" in found else "",
            phase=self.choice(kinds.PHASES)(found["phase"], "phase") if "phase" in found else "fuse",
            benefit=self.integer(found["benefit"], "benefit") if "benefit" in found else 1,
            match=tuple(self.step(s, "match") for s in self.statements("match")),
            replace=tuple(self.step(s, "replace") for s in self.statements("replace")),
            prepare=self.statements("prepare") if "prepare" in found else (),
            where=where,
            require=self.expressions("require"),
            sm=self.comparison(gpu["sm"], "gpu.sm") if gpu else None,
            devices=self.one_or_more(found["device"], self.choice(kinds.DEVICES), "device")
            if "device" in found
            else (),
            ignore={name: self.reason("ignore", name, item) for name, item in self.section("ignore").items()},
            rechecked={name: self.reason("rechecked", name, item) for name, item in self.section("rechecked").items()},
            may_escape=self.one_or_more(found["may_escape"], self.text, "may_escape") if "may_escape" in found else (),
            inputs={name: self.input(name, item) for name, item in self.section("inputs").items()},
            dims={name: self.dim(name, item) for name, item in self.section("dims").items()},
            tolerance=self.positive(found["tolerance"], "tolerance") if "tolerance" in found else 2.0,
            loses={name: self.choice(kinds.LOSSES)(item, "loses") for name, item in self.section("loses").items()},
            saves=self.choice(kinds.SAVINGS)(found["saves"], "saves") if "saves" in found else "time",
            position=found["id"].position,
            match_text=str(found["match"].value),
            replace_text=str(found["replace"].value),
            prepare_text=str(found["prepare"].value) if "prepare" in found else "",
            digest=hashlib.sha256(_plain(self.item).encode()).hexdigest()[:16],
        )
        check_rule(rule, self)
        return rule

    def section(self, key: str) -> Mapping[str, Item]:
        return self.mapping(self.found[key], key) if key in self.found else {}

    def place(self, key: str, place: Place) -> Position:
        """Where a character of the rule's `match`, `replace` or `prepare` text stands in the file."""
        return self.found[key].at(place.line, place.column)

    def key_place(self, section: str, name: str) -> Position:
        return self.found[section].keys.get(name, self.found[section].position)

    def statements(self, key: str) -> tuple[Statement, ...]:
        text = self.text(self.found[key], key)
        try:
            parsed = parse_statements(text, expressions=key != "match")
        except PatternError as error:
            self.fail(f"{key}: {error}", self.place(key, error.place), found=error.found, expected=error.expected)
        if not parsed:
            self.fail(f"{key} has no statement", self.found[key].position, expected="result = aten::op(operand, ...)")
        return parsed

    def step(self, statement: Statement, key: str) -> Step:
        for op in statement.ops:
            if op.startswith("prepare::"):
                self.fail(
                    f"{key}: an op needs its namespace",
                    self.place(key, statement.place),
                    found=op.removeprefix("prepare::"),
                    expected=f"such as aten::{op.removeprefix('prepare::')}",
                )
        try:
            return Step(statement, resolve(statement, overloads=key == "replace"))
        except ResolveError as error:
            self.fail(
                f"{key}: {error}",
                self.place(key, error.place),
                found=error.found,
                expected=error.expected,
                suggestion=error.suggestion,
            )

    def expressions(self, key: str) -> tuple[Expression, ...]:
        if key not in self.found:
            return ()
        return tuple(self.expression(item, key) for item in self.items(self.found[key], key))

    def comparison(self, item: Item, what: str) -> Comparison:
        comparison = Comparison.parse(item.value)
        if comparison is None:
            self.fail(f"{what} must be a bound", item.position, found=str(item.value)[:60], expected='such as ">=2"')
        return comparison

    def positive(self, item: Item, what: str) -> float:
        value = self.number(item, what)
        if not 0 < value < 1e6:
            self.fail(f"{what} out of range", item.position, found=str(value), expected="a positive number")
        return float(value)

    def condition(self, item: Item) -> Condition:
        fields = self.fields(item, "a condition", known=_CONDITION_KEYS)
        readers: dict[str, Any] = {
            "dtype": lambda i: self.one_or_more(i, self.choice(kinds.DTYPES), "dtype"),
            "rank": lambda i: self.one_or_more(i, self.rank, "rank"),
            "shape": self.shape,
            "value": lambda i: self.one_or_more(i, self.constant, "value"),
            "min": lambda i: self.number(i, "min"),
            "max": lambda i: self.number(i, "max"),
            "const": lambda i: self.flag(i, "const"),
            "weight": lambda i: self.flag(i, "weight"),
            "format": lambda i: self.choice(kinds.FORMATS)(i, "format"),
            "device": lambda i: self.one_or_more(i, self.choice(kinds.DEVICES), "device"),
            "count": lambda i: self.comparison(i, "count"),
            "uses": lambda i: self.comparison(i, "uses"),
            "dtype_equals": lambda i: self.text(i, "dtype_equals"),
            "present": lambda i: self.flag(i, "present"),
        }
        names = {"value": "values", "min": "minimum", "max": "maximum"}
        return Condition(**{names.get(key, key): readers[key](value) for key, value in fields.items()})

    def reason(self, section: str, name: str, item: Item) -> str:
        if item.value is None:
            self.fail(
                f"{section} needs a reason for each name",
                self.key_place(section, name),
                found=f"{name} without one",
                expected="name: reason, the reason in quotes if it holds a comma",
            )
        return self.text(item, f"{section}.{name}")

    def rank(self, item: Item, what: str) -> int:
        value = self.integer(item, what)
        if not 0 <= value <= 8:
            self.fail("rank out of range", item.position, found=str(value), expected="0 to 8")
        return value

    def shape(self, item: Item) -> Shape:
        extents: list[Expression] = []
        ellipsis = None
        for child in self.items(item, "shape"):
            if child.value == "...":
                if ellipsis is not None:
                    self.fail("shape has two '...'", child.position, expected="at most one")
                ellipsis = len(extents)
            else:
                extents.append(self.expression(child, "shape"))
        return Shape(tuple(extents), ellipsis)

    def input(self, name: str, item: Item) -> Input:
        if not isinstance(item.value, dict):
            return ScalarInput(self.choices(item, f"inputs.{name}"))
        fields = self.fields(item, f"inputs.{name}", known=_INPUT_KEYS, required=("shape",))
        count = self.dim(name, fields["count"]) if "count" in fields else None
        return TensorInput(
            shape=tuple(self.expression(child, "shape") for child in self.items(fields["shape"], "shape")),
            dtype=self.one_or_more(fields["dtype"], self.choice(kinds.DTYPES), "dtype") if "dtype" in fields else (),
            layouts=self.one_or_more(fields["layouts"], self.choice(kinds.LAYOUTS), "layout")
            if "layouts" in fields
            else (),
            optional=self.flag(fields["optional"], "optional") if "optional" in fields else False,
            values=self.one_or_more(fields["values"], self.choice(kinds.VALUE_CLASSES), "value class")
            if "values" in fields
            else (),
            count=(count.low, count.high) if count else None,
        )

    def choices(self, item: Item, what: str) -> tuple[Any, ...]:
        """The values of a scalar: a list of choices, an expression over dims, or one constant."""
        if isinstance(item.value, list):
            if not item.value:
                self.fail(f"{what} is empty", item.position, expected="at least one choice")
            return tuple(self.choice_of(child, what) for child in item.value)
        if isinstance(item.value, str) and item.value != "None":
            return (self.expression(item, what),)
        return (self.constant(item, what),)

    def choice_of(self, item: Item, what: str) -> Any:
        """A constant; inside a list, text is an expression over dims (`[[C]]`: the list that holds C)."""
        if not isinstance(item.value, list):
            return self.constant(item, what)
        return tuple(
            self.expression(child, what) if isinstance(child.value, str) else self.constant(child, what)
            for child in item.value
        )

    def dim(self, name: str, item: Item) -> DimRange:
        if isinstance(item.value, str):
            match = _RANGE.fullmatch(item.value)
            if match and int(match[1]) <= int(match[2]):
                return DimRange(low=int(match[1]), high=int(match[2]))
        elif isinstance(item.value, list) or (isinstance(item.value, int) and not isinstance(item.value, bool)):
            choices = self.one_or_more(item, self.integer, name)
            if all(0 <= choice < 10**9 for choice in choices):
                return DimRange(choices=choices, low=min(choices), high=max(choices))
        found = item.value if isinstance(item.value, str) else item.kind
        return self.fail(
            f"not a range for {name}", item.position, found=found[:60], expected="such as 1..40 or [1, 2, 32]"
        )


def _plain(item: Item) -> str:
    """A text of the values alone, for hashing."""
    if isinstance(item.value, dict):
        return "{" + ",".join(f"{key}:{_plain(value)}" for key, value in item.value.items()) + "}"
    if isinstance(item.value, list):
        return "[" + ",".join(_plain(value) for value in item.value) + "]"
    return repr(item.value)
