"""Fits a statement's operands to the registered schemas of its op."""

from __future__ import annotations

import functools
from typing import Any

from rewriter import torch_ir
from rewriter.language.kinds import Kind, accepts, typed
from rewriter.language.names import nearest
from rewriter.language.rule import Call
from rewriter.language.syntax import Argument, Constant, Literal, Operand, Place, Sequence, Statement

# Ops of the IR itself, which have no schema.
_LIST_OPS = frozenset(("prim::ListConstruct", "prim::ListUnpack"))


# Ops whose result can be an operand itself, or a view of one, although their schemas do not say so.
UNDECLARED_ALIASES = frozenset(
    (
        *("aten::dropout", "aten::alpha_dropout", "aten::feature_dropout", "aten::feature_alpha_dropout"),
        *("aten::atleast_1d", "aten::atleast_2d", "aten::atleast_3d", "aten::type_as", "aten::einsum"),
        *("aten::broadcast_tensors", "aten::meshgrid"),
    )
)


class ResolveError(ValueError):
    """A statement that fits no registered schema."""

    def __init__(
        self,
        problem: str,
        place: Place,
        *,
        found: str | None = None,
        expected: str | None = None,
        suggestion: str | None = None,
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.place = place
        self.found = found
        self.expected = expected
        self.suggestion = suggestion


def resolve(statement: Statement, *, overloads: bool = False) -> tuple[Call, ...]:
    """Every (op, operands in schema order) that the statement can stand for. Raises ResolveError.

    `overloads`: keep those apart that differ in nothing but the operands' types.
    """
    return tuple(call for op in statement.ops for call in _calls(op, statement, overloads))


def _calls(op: str, statement: Statement, overloads: bool) -> list[Call]:
    if op in _LIST_OPS:
        raise ResolveError("write lists in brackets and unpack them with several targets", statement.place, found=op)
    signatures = _signatures(op)
    if not signatures:
        raise ResolveError("unknown op", statement.place, found=op, suggestion=_nearest_op(op))
    calls: list[Call] = []
    problems: list[ResolveError] = []
    for signature in signatures:
        try:
            call = signature.call(op, statement)
        except ResolveError as error:
            problems.append(error)
            continue
        if overloads or all((call.operands, call.unpacks) != (other.operands, other.unpacks) for other in calls):
            calls.append(call)
    if not calls:
        raise max(problems, key=lambda error: (error.place.line, error.place.column))
    return calls


def _nearest_op(op: str) -> str | None:
    return nearest(op, torch_ir.known_ops())


@functools.lru_cache(maxsize=512)
def _signatures(op: str) -> tuple[_Signature, ...]:
    schemas = [schema for schema in torch_ir.schemas_of(op) if not any(a.is_out for a in schema.arguments)]
    return tuple(_Signature(schema) for schema in schemas)


class _Signature:
    """One overload, read once: schema objects are slow to ask."""

    def __init__(self, schema: Any) -> None:
        self.text = str(schema)
        self.names = [argument.name for argument in schema.arguments]
        self.types = tuple(Kind.of(argument.type) for argument in schema.arguments)
        self.positional = sum(not argument.kwarg_only for argument in schema.arguments)
        self.written = tuple(index for index, argument in enumerate(schema.arguments) if argument.is_write)
        self.defaults: list[Literal | None] = [
            Literal(_constant(argument.default_value)) if argument.has_default_value() else None
            for argument in schema.arguments
        ]
        self.returns = tuple(Kind.of(result.type) for result in schema.returns)
        shared = tuple(index for index, argument in enumerate(schema.arguments) if argument.alias_info is not None)
        self.aliases = shared if any(result.alias_info is not None for result in schema.returns) else ()
        if schema.name in UNDECLARED_ALIASES:
            self.aliases = tuple(range(len(schema.arguments)))

    def call(self, op: str, statement: Statement) -> Call:
        return Call(
            op=op,
            operands=self.fit(statement.arguments, statement.place),
            names=tuple(self.names),
            unpacks=self.unpacks(statement),
            types=self.types,
            returns=self.returns,
            positional=self.positional,
            written=self.written,
            aliases=self.aliases,
        )

    def fit(self, arguments: tuple[Argument, ...], place: Place) -> tuple[Operand, ...]:
        operands: list[Operand | None] = [None] * len(self.names)
        for index, argument in enumerate(arguments):
            slot = index
            if argument.keyword is not None:
                if argument.keyword not in self.names:
                    raise ResolveError(
                        "unknown argument",
                        argument.place,
                        found=argument.keyword,
                        expected=self.text,
                        suggestion=nearest(argument.keyword, self.names),
                    )
                slot = self.names.index(argument.keyword)
            if slot >= len(operands):
                raise ResolveError(
                    "too many operands",
                    argument.place,
                    found=f"{len(arguments)} operands",
                    expected=f"at most {len(self.names)}, as in {self.text}",
                )
            if operands[slot] is not None:
                raise ResolveError("operand given twice", argument.place, found=self.names[slot])
            if not accepts(self.types[slot], argument.operand):
                raise ResolveError(
                    "operand of the wrong type",
                    argument.place,
                    found=f"{_text(argument.operand)} for {self.names[slot]}",
                    expected=f"{self.types[slot].text}, as in {self.text}",
                )
            operands[slot] = typed(self.types[slot], argument.operand)
        for slot, operand in enumerate(operands):
            if operand is None:
                operands[slot] = self.defaults[slot]
                if self.defaults[slot] is None:
                    raise ResolveError(
                        "missing operand",
                        place,
                        found=f"{len(arguments)} operands",
                        expected=f"{self.names[slot]}, as in {self.text}",
                    )
        return tuple(operand for operand in operands if operand is not None)

    def unpacks(self, statement: Statement) -> bool:
        """Whether the targets are the elements of a returned list. Raises ResolveError if they fit neither way."""
        targets = statement.targets
        listed = [kind.name for kind in self.returns] == ["ListType"]
        several = len(targets) > 1 or statement.starred
        # A starred statement that returns one tensor stands for several such nodes.
        if listed and several:
            return True
        if len(targets) != len(self.returns):
            raise ResolveError(
                "wrong number of results",
                targets[-1].place,
                found=f"{len(targets)} names",
                expected=f"{len(self.returns)}, as in {self.text}",
            )
        return False


def _constant(value: Any) -> Constant:
    if isinstance(value, list | tuple):
        return tuple(_constant(item) for item in value)
    return value if isinstance(value, int | float | bool | str) or value is None else str(value)


def _text(operand: Operand) -> str:
    if isinstance(operand, Literal):
        return repr(list(operand.value)) if isinstance(operand.value, tuple) else repr(operand.value)
    return "a list" if isinstance(operand, Sequence) else "an expression"
