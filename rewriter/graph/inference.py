"""Facts about values that the trace never saw, found by running ops and recipes on tensors without data."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch

from rewriter.causes import cause_of
from rewriter.graph import prepare
from rewriter.graph.facts import DTYPES, TensorFacts
from rewriter.graph.prepare import Prepared
from rewriter.graph.view import NotConstant, Value
from rewriter.language.rule import Call
from rewriter.ops.precision import channels_innermost, laid_out_like


class Impossible(Exception):
    """A replacement that cannot be built for a match; the message is the reason for a refusal."""


class Inference:
    """Remembers what it found: the blocks of a model repeat the same few cases."""

    def __init__(self) -> None:
        self.known: dict[Hashable, list[TensorFacts | None]] = {}
        # What torch said about calls that it does not take.
        self.refused: dict[Hashable, str] = {}

    def result(self, call: Call, inputs: list[Value], index: int) -> TensorFacts | None:
        """Facts about one result of an op, None if they cannot be found out."""
        found = self.known[self.run(call, inputs)]
        return found[index] if index < len(found) else None

    def check(self, call: Call, inputs: list[Value]) -> None:
        """Raises Impossible if one of torch's own ops does not take operands of these shapes and dtypes."""
        key = self.run(call, inputs)
        if key in self.refused:
            raise Impossible(f"{call.op}: {self.refused[key]}")

    def run(self, call: Call, inputs: list[Value]) -> Hashable:
        """Where the results of a call stand in `known`."""
        key = (call.op, call.names, *map(_described, inputs))
        if key not in self.known:
            try:
                self.known[key] = _run(call, inputs)
            except RuntimeError as error:
                self.known[key] = []
                # NotImplementedError: torch cannot tell without data.
                if call.op.startswith("aten::") and not isinstance(error, NotImplementedError):
                    self.refused[key] = cause_of(error)
        return key

    def prepared(self, recipe: Prepared, sources: list[Value]) -> TensorFacts:
        """Facts about a prepared weight. Raises Impossible if the recipe does not fit its sources."""
        key = (recipe.function, recipe.options, *map(_described, sources))
        if key not in self.known:
            self.known[key] = [_prepare(recipe, sources)]
        facts = self.known[key][0]
        assert facts is not None
        return facts


def _described(value: Value) -> Hashable:
    constant = value.constant
    if not isinstance(constant, NotConstant):
        return (type(constant), repr(constant))
    producer = value.producer
    if producer is not None and producer.op == "prim::ListConstruct":
        return tuple(_described(item) for item in producer.inputs)
    return value.facts or value.kind


def _stand_in(value: Value) -> Any:
    """A tensor without data, or the constant itself. Raises Impossible where too little is known."""
    constant = value.constant
    if not isinstance(constant, NotConstant):
        return list(constant) if isinstance(constant, tuple) else constant
    producer = value.producer
    if producer is not None and producer.op == "prim::ListConstruct":
        return [_stand_in(item) for item in producer.inputs]
    facts = value.facts
    if facts is None or facts.shape is None or facts.dtype not in DTYPES:
        raise Impossible(f"nothing is known about {value.name}")
    if facts.strides is None:
        return torch.empty(facts.shape, dtype=DTYPES[facts.dtype], device="meta")
    # In its own memory order, which is that of most results.
    return torch.empty_strided(facts.shape, facts.strides, dtype=DTYPES[facts.dtype], device="meta")


def _facts_of(tensor: torch.Tensor, device: str) -> TensorFacts | None:
    names = [name for name, dtype in DTYPES.items() if dtype == tensor.dtype]
    return TensorFacts(names[0], tensor.dim(), device, tuple(tensor.shape), tuple(tensor.stride())) if names else None


def _device(values: list[Value]) -> str:
    """That of the first tensor, or of the first in a list of them."""
    for value in values:
        producer = value.producer
        items = producer.inputs if producer is not None and producer.op == "prim::ListConstruct" else [value]
        for item in items:
            if item.facts is not None:
                return item.facts.device
    return "cpu"


def _run(call: Call, inputs: list[Value]) -> list[TensorFacts | None]:
    """Raises RuntimeError as the op does."""
    namespace, name = call.op.split("::")
    try:
        operands = [_stand_in(item) for item in inputs]
        named = dict(zip(call.names[call.positional :], operands[call.positional :], strict=True))
        result = getattr(getattr(torch.ops, namespace), name)(*operands[: call.positional], **named)
    except RuntimeError:
        raise
    except Exception:
        # The op may be the user's own, and facts are a help, not a duty: without them conditions refuse.
        return []
    device = _device(inputs)
    results = result if isinstance(result, list | tuple) else [result]
    if call.op == "aten::convolution" and result.dim() > 3:
        results = [_convolved(result, *operands[:2])]
    return [_facts_of(item, device) if isinstance(item, torch.Tensor) else None for item in results]


def _convolved(result: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The result as torch's kernels lay it out, those for tensors without data excepted: as either operand lies."""
    return laid_out_like(result, x if channels_innermost(x) else weight)


def _prepare(recipe: Prepared, sources: list[Value]) -> TensorFacts:
    try:
        result = prepare.PREPARE[recipe.function](*map(_stand_in, sources), **dict(recipe.options))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise Impossible(f"{recipe.function}: {cause_of(error)}") from None
    facts = _facts_of(result, _device(sources))
    if facts is None:
        raise Impossible(f"{recipe.function} gives {result.dtype}")
    return facts
