"""Reads typed fields out of a YAML tree, with errors that say where, what was found and what was expected."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn, TypeVar

from rewriter.errors import Position, RuleError
from rewriter.language.expressions import Expression, ExpressionError, parse_expression
from rewriter.language.names import listing, nearest
from rewriter.language.source import Item
from rewriter.language.syntax import Constant

T = TypeVar("T")


class Reader:
    """Reads the items of one rule (or of the file's head, where `rule` is None)."""

    def __init__(self, rule: str | None = None) -> None:
        self.rule = rule

    def fail(self, problem: str, position: Position, **details: str | None) -> NoReturn:
        raise RuleError(problem, position=position, rule=self.rule, **details) from None

    def mapping(self, item: Item, what: str) -> dict[str, Item]:
        if not isinstance(item.value, dict):
            self.fail(f"{what} must be a mapping", item.position, found=item.kind)
        return item.value

    def fields(self, item: Item, what: str, *, known: Iterable[str], required: Iterable[str] = ()) -> dict[str, Item]:
        """A mapping with fixed keys."""
        fields = self.mapping(item, what)
        known = tuple(known)
        for key in fields:
            if key not in known:
                self.fail(
                    f"unknown key in {what}",
                    item.keys[key],
                    found=key,
                    expected=f"one of {listing(known)}",
                    suggestion=nearest(key, known),
                )
        missing = [key for key in required if key not in fields]
        if missing:
            self.fail(f"{what} lacks {', '.join(missing)}", item.position, found=listing(fields) or "no keys")
        return fields

    def items(self, item: Item, what: str) -> list[Item]:
        if not isinstance(item.value, list):
            self.fail(f"{what} must be a list", item.position, found=item.kind)
        return item.value

    def one_or_more(self, item: Item, read: Callable[[Item, str], T], what: str) -> tuple[T, ...]:
        """A single value or a list of them."""
        if isinstance(item.value, list):
            if not item.value:
                self.fail(f"{what} is empty", item.position, expected="at least one value")
            return tuple(read(child, what) for child in item.value)
        return (read(item, what),)

    def text(self, item: Item, what: str) -> str:
        if not isinstance(item.value, str):
            self.fail(f"{what} must be text", item.position, found=item.kind)
        if not item.value.strip():
            self.fail(f"{what} is empty", item.position, expected="some text")
        return item.value

    def integer(self, item: Item, what: str) -> int:
        if not isinstance(item.value, int) or isinstance(item.value, bool):
            self.fail(f"{what} must be an integer", item.position, found=item.kind)
        return item.value

    def number(self, item: Item, what: str) -> float:
        if not isinstance(item.value, int | float) or isinstance(item.value, bool):
            self.fail(f"{what} must be a number", item.position, found=item.kind)
        return item.value

    def flag(self, item: Item, what: str) -> bool:
        if not isinstance(item.value, bool):
            self.fail(f"{what} must be true or false", item.position, found=item.kind)
        return item.value

    def choice(self, valid: Iterable[str]) -> Callable[[Item, str], str]:
        valid = tuple(valid)

        def read(item: Item, what: str) -> str:
            if not isinstance(item.value, str) or item.value not in valid:
                found = item.value if isinstance(item.value, str) else item.kind
                self.fail(
                    f"unknown {what}",
                    item.position,
                    found=found,
                    expected=f"one of {listing(valid)}",
                    suggestion=nearest(found, valid),
                )
            return item.value

        return read

    def expression(self, item: Item, what: str) -> Expression:
        if isinstance(item.value, bool) or not isinstance(item.value, int | str):
            self.fail(
                f"{what} must be an integer expression", item.position, found=item.kind, expected="such as C // 2"
            )
        return self.parsed(item, what, item.value)

    def parsed(self, item: Item, what: str, text: int | str) -> Expression:
        try:
            return parse_expression(text)
        except ExpressionError as error:
            self.fail(f"{what}: {error}", item.at(0, error.column), found=str(text)[:60])

    def constant(self, item: Item, what: str) -> Constant:
        value = item.value
        if isinstance(value, dict):
            self.fail(f"{what} must be a constant", item.position, found="a mapping")
        if isinstance(value, list):
            return tuple(self.constant(child, what) for child in value)
        return None if value == "None" else value

    def name_in(self, item: Item, what: str, valid: Mapping[str, Any] | Iterable[str]) -> str:
        return self.choice(valid)(item, what)
