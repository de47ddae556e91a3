"""Reads pattern, replacement and preparation texts: TorchScript IR without its noise.

    n = aten::group_norm(x, groups, weight?, bias?, eps, cudnn)
    y = aten::{gelu, silu}(n) as act

`%` signs, types and trailing comments are skipped, `prim::Constant`, `prim::ListConstruct` and `prim::ListUnpack` lines
are folded into what they define, so lines printed by a graph can be pasted.
"""

from __future__ import annotations

import dataclasses
import re

from rewriter.language.expressions import ExpressionError, parse_expression
from rewriter.language.syntax import (
    Argument,
    Computed,
    Constant,
    Literal,
    Operand,
    Place,
    Sequence,
    Skip,
    Statement,
    Target,
    Var,
)
from rewriter.language.tokens import PatternError, Token, tokenize

_WORDS: dict[str, Constant] = {"True": True, "true": True, "False": False, "false": False, "None": None}
_MAX_LENGTH = 20_000
_MAX_DEPTH = 16


def parse_statements(text: str, *, expressions: bool = False) -> tuple[Statement, ...]:
    """The statements of a text, in order. `expressions`: operands may be `(C // 2)`. Raises PatternError."""
    if len(text) > _MAX_LENGTH:
        raise PatternError("text too long", Place(), expected=f"at most {_MAX_LENGTH} characters")
    return _Parser(text, expressions).statements()


class _Parser:
    def __init__(self, text: str, expressions: bool) -> None:
        self.text = text
        self.expressions = expressions
        self.tokens = tokenize(text)
        self.index = 0
        # Names that stand for a constant or a list, from pasted prim:: lines.
        self.folded: dict[str, Operand] = {}
        # The first word of each pasted type: a printed graph has 1 for True.
        self.types: dict[str, str] = {}
        self.parsed: list[Statement] = []

    @property
    def token(self) -> Token:
        return self.tokens[self.index]

    def at(self, text: str) -> bool:
        return self.token.text == text and self.token.kind != "string"

    def advance(self) -> Token:
        token = self.token
        self.index += self.index + 1 < len(self.tokens)
        return token

    def accept(self, text: str) -> bool:
        if self.at(text) and self.token.kind == "mark":
            self.advance()
            return True
        return False

    def expect(self, text: str) -> Token:
        if not self.at(text):
            self.fail(f"expected {text!r}")
        return self.advance()

    def fail(self, problem: str, expected: str | None = None) -> None:
        token = self.token
        found = "the end of the line" if token.kind == "newline" else repr(token.text)
        raise PatternError(problem, token.place, expected=expected, found=found)

    def statements(self) -> tuple[Statement, ...]:
        while True:
            while self.token.kind == "newline":
                if self.index == len(self.tokens) - 1:
                    return tuple(self.parsed)
                self.advance()
            self.statement()

    def statement(self) -> None:
        place = self.token.place
        targets = [self.target()]
        while self.accept(","):
            targets.append(self.target())
        self.expect("=")
        ops: tuple[str, ...] = ()
        choice = None
        if self.token.kind == "op":
            ops = self.ops()
            if ops == ("prim::Constant",):
                self.fold(targets, Literal(self.pasted_constant(self.types.get(targets[0].name, ""))))
                return
            arguments = self.arguments()
            if self.token.kind == "name" and self.at("as"):
                self.advance()
                choice = self.name("a name for the op that matched")
        elif self.token.kind == "name" and self.tokens[self.index + 1].text == "(":
            ops = (f"prepare::{self.advance().text}",)
            arguments = self.arguments()
        else:
            arguments = (Argument(self.operand(0), None, self.token.place),)
        self.line_end()
        if ops == ("prim::ListConstruct",):
            self.fold(targets, Sequence(tuple(argument.operand for argument in arguments)))
        elif ops == ("prim::ListUnpack",) and self.unpack(targets, arguments):
            return
        else:
            self.parsed.append(Statement(tuple(targets), ops, arguments, choice, place))

    def line_end(self) -> None:
        if self.at(",") and self.tokens[self.index + 1].text == "scope":
            while self.token.kind != "newline":
                self.advance()
        if self.token.kind != "newline":
            self.fail("more text than a statement has", expected="the end of the line")

    def name(self, expected: str) -> str:
        if self.token.kind != "name":
            self.fail("a name is missing", expected=expected)
        return self.advance().text.lstrip("%")

    def target(self) -> Target:
        place = self.token.place
        if self.token.text == "_" or self.token.text in _WORDS:
            self.fail("a result needs a name of its own", expected="a name")
        name = self.name("the name of a result")
        starred = self.accept("*")
        if self.accept(":"):
            self.types[name] = self.token.text
            self.skip_type()
        return Target(name, starred, place)

    def skip_type(self) -> None:
        if self.at("="):
            self.fail("a type is missing", expected="a type, or no colon")
        depth = 0
        while self.token.kind != "newline" and not (depth == 0 and (self.at("=") or self.at(","))):
            depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(self.token.text, 0)
            self.advance()

    def ops(self) -> tuple[str, ...]:
        token = self.advance()
        if not token.text.endswith("::"):
            return (token.text,)
        self.expect("{")
        names = [self.name("an op name")]
        while self.accept(","):
            names.append(self.name("an op name"))
        self.expect("}")
        return tuple(token.text + name for name in names)

    def arguments(self) -> tuple[Argument, ...]:
        self.expect("(")
        found: list[Argument] = []
        while not self.at(")"):
            place = self.token.place
            keyword = None
            if self.token.kind == "name" and self.tokens[self.index + 1].text == "=":
                keyword = self.advance().text
                self.advance()
            elif found and found[-1].keyword:
                self.fail("a positional operand after a named one", expected="name=operand")
            found.append(Argument(self.operand(0), keyword, place))
            if not self.accept(","):
                break
        self.expect(")")
        return tuple(found)

    def operand(self, depth: int) -> Operand:
        token = self.token
        if depth > _MAX_DEPTH:
            self.fail("nested too deeply")
        if token.kind == "number":
            return Literal(self.number(self.advance()))
        if token.kind == "string":
            return Literal(self.advance().text[1:-1])
        if self.accept("["):
            return self.sequence(depth)
        if self.at("(") and self.expressions:
            return self.computed()
        if token.kind != "name":
            self.fail("an operand is missing", expected="a name, a number, a text, True, False, None or a list")
        self.advance()
        if token.text == "_":
            return Skip()
        if token.text in _WORDS:
            return Literal(_WORDS[token.text])
        name = token.text.lstrip("%")
        if name in self.folded:
            return self.folded[name]
        optional = self.accept("?")
        return Var(name, optional, self.accept("*"))

    def sequence(self, depth: int) -> Operand:
        items: list[Operand] = []
        while not self.at("]"):
            items.append(self.operand(depth + 1))
            if not self.accept(","):
                break
        self.expect("]")
        if all(isinstance(item, Literal) for item in items):
            return Literal(tuple(item.value for item in items if isinstance(item, Literal)))
        return Sequence(tuple(items))

    def computed(self) -> Computed:
        opening = self.expect("(")
        depth = 1
        while depth:
            if self.token.kind == "newline":
                self.fail("expected ')'")
            depth += {"(": 1, ")": -1}.get(self.token.text, 0)
            closing = self.advance()
        text = self.text[opening.start + 1 : closing.start].replace("\n", " ")
        try:
            return Computed(parse_expression(text))
        except ExpressionError as error:
            place = Place(opening.place.line, opening.place.column + 1 + error.column)
            raise PatternError(str(error), place, found=text) from None

    def number(self, token: Token) -> int | float:
        if re.fullmatch(r"-?\d+", token.text):
            if len(token.text) > 20:
                raise PatternError("number out of range", token.place, expected="a 64-bit integer")
            return int(token.text)
        return float(token.text)

    def pasted_constant(self, kind: str) -> Constant:
        """The rest of `prim::Constant[value=1]()`, for a value of this type."""
        value: Constant = None
        if self.accept("["):
            self.name("value")
            self.expect("=")
            if self.accept("{"):
                value = self.number(self.advance()) if self.token.kind == "number" else None
                self.expect("}")
            else:
                operand = self.operand(0)
                if not isinstance(operand, Literal):
                    self.fail("a constant without a value that can be written down")
                else:
                    value = operand.value
            self.expect("]")
        self.expect("(")
        self.expect(")")
        self.line_end()
        return bool(value) if kind == "bool" else value

    def fold(self, targets: list[Target], operand: Operand) -> None:
        if len(targets) != 1:
            raise PatternError("this line has one result", targets[1].place)
        self.folded[targets[0].name] = operand

    def unpack(self, targets: list[Target], arguments: tuple[Argument, ...]) -> bool:
        """Gives the elements' names to the statement that makes the list."""
        source = arguments[0].operand if len(arguments) == 1 else None
        for index, statement in enumerate(self.parsed):
            if isinstance(source, Var) and [target.name for target in statement.targets] == [source.name]:
                self.parsed[index] = dataclasses.replace(statement, targets=tuple(targets))
                return True
        return False
