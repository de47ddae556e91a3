"""A light mirror of a TorchScript graph: what matching and rewriting need, in plain Python objects.

Asking torch's own nodes costs microseconds per question, so the graph is walked once and kept in step with every
rewrite. A list that is unpacked at once counts as the several results of the op that makes it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from rewriter import torch_ir
from rewriter.graph.facts import DTYPES, TensorFacts, facts_of_type
from rewriter.language.syntax import Constant

# Ops of the IR itself that have no blocks, so that looking for some can be left out.
_LEAF_PRIMS = frozenset(
    ("prim::Constant", "prim::ListConstruct", "prim::ListUnpack", "prim::NumToTensor", "prim::TupleConstruct")
)

# Ops that look at a tensor or at a part of it, and change nothing.
LOOKING = frozenset(
    {
        "aten::chunk",
        "aten::select",
        "aten::size",
        "aten::slice",
        "aten::split_with_sizes",
        "aten::unbind",
        "aten::unsqueeze",
        "prim::ListConstruct",
    }
)


class NotConstant:
    """The type of NOT_CONSTANT, which stands for a value that is not known before the graph runs."""


NOT_CONSTANT = NotConstant()


class Value:
    """One value. `role`: "input", "weight", "prepared" or "node". `number`: position among inputs or weights."""

    __slots__ = ("_constant", "_facts", "_infer", "_kind", "ir", "known_facts", "number", "producer", "role", "uses")

    def __init__(self, ir: torch_ir.IRValue, producer: Node | None, role: str = "node", number: int = -1) -> None:
        self.ir = ir
        self.producer = producer
        self.role = role
        self.number = number
        # An ordered set: constants have thousands of uses, and each rewrite takes some away.
        self.uses: dict[tuple[Node, int], None] = {}
        self._constant: tuple[Constant | NotConstant] | None = None
        self._facts: TensorFacts | None = None
        self.known_facts = False
        self._infer: Callable[[], TensorFacts | None] | None = None
        self._kind: str | None = None

    @property
    def kind(self) -> str:
        """Torch's name of the value's type, such as `TensorType` or `IntType`."""
        if self._kind is None:
            self._kind = str(self.ir.type().kind())
        return self._kind

    @kind.setter
    def kind(self, kind: str) -> None:
        self._kind = kind

    @property
    def facts(self) -> TensorFacts | None:
        """What the trace recorded or `infer` finds, or None."""
        if not self.known_facts:
            self._facts = self._infer() if self._infer is not None else facts_of_type(self.ir.type())
            self.known_facts = True
        return self._facts

    @facts.setter
    def facts(self, facts: TensorFacts | None) -> None:
        self._facts, self.known_facts = facts, True

    def infer(self, facts: Callable[[], TensorFacts | None]) -> None:
        """Sets where the facts come from, should somebody ask."""
        self._infer = facts

    def outlive_graph(self) -> None:
        """Keeps what facts come from: those of a value that took this one's place may be asked for when the graph has
        lost it."""
        if not self.known_facts and self._infer is None:
            self._infer = functools.partial(facts_of_type, self.ir.type())

    @property
    def constant(self) -> Constant | NotConstant:
        """A number, flag, text, None or a list of these; a tensor of one number counts as the number."""
        producer = self.producer
        if producer is None or producer.op != "prim::Constant":
            return NOT_CONSTANT
        if self._constant is None:
            self._constant = (_plain(self.ir.toIValue()),)
        return self._constant[0]

    @property
    def is_weight(self) -> bool:
        return self.role in ("weight", "prepared")

    @property
    def name(self) -> str:
        return f"%{self.ir.debugName()}"


class Node:
    """One op. It owns the places `(order - gap, order]` in the graph, so that new nodes fit in between."""

    __slots__ = ("alive", "gap", "inputs", "ir", "op", "order", "origins", "outputs", "rule", "unpacked")

    def __init__(
        self, ir: torch_ir.IRNode, op: str, inputs: list[Value], order: float, origins: frozenset[int]
    ) -> None:
        self.ir = ir
        self.op = op
        self.inputs = inputs
        self.outputs: list[Value] = []
        self.order = order
        self.gap = 1.0
        self.alive = True
        self.unpacked = False
        self.origins = origins
        self.rule: str | None = None

    @property
    def scope(self) -> str:
        """The path of the module that made the node."""
        return str(self.ir.scopeName()).rsplit("/", 1)[-1].removeprefix("__module.")

    def all_ir(self) -> list[torch_ir.IRNode]:
        """The node and, if it has one, the `prim::ListUnpack` behind it."""
        return [self.ir, self.outputs[0].ir.node()] if self.unpacked else [self.ir]

    def __repr__(self) -> str:
        results = ", ".join(value.name for value in self.outputs)
        return f"{results} = {self.op}({', '.join(value.name for value in self.inputs)})"


def link(node: Node) -> None:
    """Enters the node among the uses of its operands. Constants keep none: everyone reads them, nobody asks."""
    for slot, value in enumerate(node.inputs):
        if value.producer is None or value.producer.op != "prim::Constant":
            value.uses[node, slot] = None


def unlink(node: Node) -> None:
    """Takes the node out of the uses of its operands."""
    for slot, value in enumerate(node.inputs):
        value.uses.pop((node, slot), None)


def destroy(nodes: list[Node]) -> None:
    """Takes nodes that none but themselves read out of the graph."""
    everything = [ir for node in nodes for ir in node.all_ir()]
    for ir in everything:
        ir.removeAllInputs()
    for ir in everything:
        ir.destroy()


def _plain(value: Any) -> Constant | NotConstant:
    if isinstance(value, torch.Tensor):
        return _plain(value.item()) if value.dim() == 0 and not value.is_meta else NOT_CONSTANT
    if isinstance(value, list | tuple):
        items = tuple(_plain(item) for item in value)
        known = tuple(item for item in items if not isinstance(item, NotConstant))
        return known if len(known) == len(items) else NOT_CONSTANT
    if value is None or isinstance(value, int | float | bool | str):
        return value
    return str(value) if isinstance(value, torch.device) else NOT_CONSTANT


class View:
    """The mirror of one graph, whose last `weights` inputs are weights."""

    def __init__(self, graph: torch_ir.Graph, weights: int) -> None:
        self.graph = graph
        self.inputs: list[Value] = []
        self.weights: list[Value] = []
        self.nodes: list[Node] = []
        self.by_op: dict[str, list[Node]] = {}
        values: dict[int, Value] = {}
        ir_inputs = list(graph.inputs())
        first_weight = len(ir_inputs) - weights
        for index, ir in enumerate(ir_inputs):
            is_weight = index >= first_weight
            value = Value(ir, None, "weight" if is_weight else "input", index - first_weight if is_weight else index)
            values[ir.unique()] = value
            (self.weights if is_weight else self.inputs).append(value)
        for order, ir in enumerate(list(graph.nodes())):
            self._add(ir, order, values)
        result = Node(graph.return_node(), "prim::Return", [], float("inf"), frozenset())
        result.inputs = [values[ir.unique()] for ir in graph.outputs()]
        link(result)

    def _add(self, ir: torch_ir.IRNode, order: int, values: dict[int, Value]) -> None:
        op = ir.kind()
        inputs = [values[ir.inputsAt(index).unique()] for index in range(ir.inputsSize())]
        if op == "prim::ListUnpack":
            source = inputs[0].producer
            if source is not None and _is_fresh_list(source) and len(inputs[0].ir.uses()) == 1:
                # Both count as one node, so nothing may stand between them.
                if self.nodes[-1] is not source:
                    ir.moveAfter(source.ir)
                source.unpacked = True
                source.outputs = [self._value(out, source, values) for out in ir.outputs()]
                return
        node = Node(ir, op, inputs, float(order), frozenset((order,)))
        if op.startswith("prim::") and op not in _LEAF_PRIMS:
            node.inputs = inputs + [values[unique] for unique in _captured(ir) if unique in values]
        if ir.outputsSize() == 1:
            node.outputs = [self._value(ir.output(), node, values)]
        else:
            node.outputs = [self._value(out, node, values) for out in ir.outputs()]
        link(node)
        self.nodes.append(node)
        self.by_op.setdefault(op, []).append(node)

    @staticmethod
    def _value(ir: torch_ir.IRValue, producer: Node, values: dict[int, Value]) -> Value:
        value = values[ir.unique()] = Value(ir, producer)
        return value

    def alive(self) -> Iterator[Node]:
        return (node for node in self.nodes if node.alive)

    def sweep(self) -> None:
        """Takes replaced nodes out of the graph. Until then one may read a value that is made after it."""
        replaced = [node for node in self.nodes if not node.alive]
        for node in replaced:
            for value in node.outputs:
                value.outlive_graph()
        destroy(replaced)
        self.nodes = list(self.alive())
        self.by_op = {}

    def record_facts(self) -> None:
        """Writes what is known of new values into their types, for whoever reads the graph next."""
        devices: dict[str, torch.device] = {}
        for each in (*self.inputs, *self.weights):
            if each.kind == "TensorType" and (device := each.ir.type().device()) is not None:
                devices.setdefault(device.type, device)
        for node in self.nodes:
            for value in node.outputs if node.rule is not None else ():
                # A type that says a dtype says all that was known before.
                if value.kind != "TensorType" or value.ir.type().scalarType() is not None:
                    continue
                facts = value.facts
                if facts is None or facts.shape is None or facts.strides is None or facts.dtype not in DTYPES:
                    continue
                device = devices.get(facts.device, torch.device(facts.device))
                value.ir.setType(torch_ir.tensor_type(facts.shape, facts.strides, DTYPES[facts.dtype], device))


def _is_fresh_list(node: Node) -> bool:
    """Whether the node makes a list of new values and nothing else."""
    return len(node.outputs) == 1 and node.op not in ("prim::ListConstruct", "prim::Constant")


def _captured(node: torch_ir.IRNode) -> list[int]:
    """The values that a node's blocks read, wherever they are defined."""
    found: list[int] = []
    for block in node.blocks():
        for inner in block.nodes():
            found += [value.unique() for value in inner.inputs()]
            found += _captured(inner)
        found += [value.unique() for value in block.outputs()]
    return found
