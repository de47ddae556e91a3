"""Cuts a region out of a graph, before and after its rewrites, as small graphs that can be timed."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from typing import Any

import torch

from rewriter import torch_ir
from rewriter.graph.facts import TensorFacts
from rewriter.graph.view import Node, NotConstant, Value

_DTYPES = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
    "i32": torch.int32,
    "bool": torch.bool,
    "u8": torch.uint8,
}
_INTEGER_OPS = {
    "aten::add": lambda a, b: a + b,
    "aten::sub": lambda a, b: a - b,
    "aten::mul": lambda a, b: a * b,
    "aten::floordiv": lambda a, b: a // b,
    "aten::remainder": lambda a, b: a % b,
}


class Unmeasurable(Exception):
    """A region that cannot stand alone; the message says why."""


@dataclasses.dataclass(slots=True)
class Region:
    """A small graph and the arguments to call it with."""

    graph: torch_ir.Graph
    arguments: list[Any]
    text: str

    def function(self) -> Any:
        return torch_ir.function_from_graph(self.graph)


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """A region before and after its rewrites. Pairs with one `key` take the same time."""

    before: Region
    after: Region

    @property
    def key(self) -> str:
        return hashlib.sha256(f"{self.before.text}\n=>\n{self.after.text}".encode()).hexdigest()[:24]


def cut(nodes: Iterable[Node], generator: torch.Generator, shared: dict[object, Any]) -> Region:
    """The nodes as a graph of their own, with random inputs as the trace recorded them.

    `shared` keeps the inputs, by the value that they stand for, so that both sides of a pair get the same.
    Raises Unmeasurable.
    """
    return _Cutter(sorted(nodes, key=lambda node: node.order), generator, shared).cut()


class _Cutter:
    def __init__(self, nodes: list[Node], generator: torch.Generator, shared: dict[object, Any]) -> None:
        self.nodes = nodes
        self.inside = {id(node) for node in nodes}
        self.generator = generator
        self.shared = shared
        self.graph = torch_ir.empty_graph()
        self.values: dict[int, Any] = {}
        self.arguments: list[Any] = []
        self.described: list[str] = []

    def cut(self) -> Region:
        outputs: list[Any] = []
        for node in self.nodes:
            inputs = [self.operand(value) for value in node.inputs]
            ir = self.graph.create(node.op, inputs, 1 if node.unpacked else len(node.outputs))
            self.graph.appendNode(ir)
            results = list(ir.outputs())
            if node.unpacked:
                ir.output().setType(torch_ir.tensor_list_type())
                ir = self.graph.create("prim::ListUnpack", [ir.output()], len(node.outputs))
                self.graph.appendNode(ir)
                results = list(ir.outputs())
            for value, result in zip(node.outputs, results, strict=True):
                result.setType(value.ir.type())
                self.values[id(value)] = result
                if any(id(user) not in self.inside for user, _ in value.uses):
                    outputs.append(result)
        for result in outputs:
            self.graph.registerOutput(result)
        return Region(self.graph, self.arguments, self.text())

    def text(self) -> str:
        lines = [f"{node.kind()} {[v.unique() for v in node.inputs()]}" for node in self.graph.nodes()]
        constants = [repr(node.output().toIValue()) for node in self.graph.nodes() if node.kind() == "prim::Constant"]
        return "\n".join((*self.described, *lines, *constants))

    def operand(self, value: Value) -> Any:
        if id(value) in self.values:
            return self.values[id(value)]
        constant = value.constant
        if not isinstance(constant, NotConstant):
            result = torch_ir.insert_constant(self.graph, list(constant) if isinstance(constant, tuple) else constant)
        else:
            result = self.graph.addInput()
            result.setType(value.ir.type())
            argument = self.argument(value)
            self.arguments.append(argument)
            self.described.append(_described(argument))
        self.values[id(value)] = result
        return result

    def argument(self, value: Value) -> Any:
        """What the value may hold: computed if it is an integer or a list, random if it is a tensor."""
        key = _identity(value)
        if key not in self.shared:
            kind = value.ir.type().kind()
            if kind == "TensorType":
                self.shared[key] = self.tensor(value.facts, value.name)
            else:
                self.shared[key] = self.computed(value)
        return self.shared[key]

    def tensor(self, facts: TensorFacts | None, name: str) -> torch.Tensor:
        if facts is None or facts.shape is None or facts.dtype not in _DTYPES:
            raise Unmeasurable(f"the shape of {name} is not known")
        dtype = _DTYPES[facts.dtype]
        strides = facts.strides if facts.strides is not None else torch.empty(facts.shape, device="meta").stride()
        tensor = torch.empty_strided(facts.shape, strides, dtype=dtype, device=facts.device)
        if dtype.is_floating_point:
            noise = torch.randn(tensor.shape, generator=self.generator, dtype=torch.float32)
            return tensor.copy_(noise) if 0 not in strides else noise.to(facts.device, dtype)
        return torch.zeros_like(tensor)

    def computed(self, value: Value) -> Any:
        """The number or list that a node outside the region gives, from the recorded shapes."""
        constant = value.constant
        if not isinstance(constant, NotConstant):
            return list(constant) if isinstance(constant, tuple) else constant
        node = value.producer
        if node is None:
            raise Unmeasurable(f"{value.name} is not known")
        if node.op == "aten::size" and len(node.inputs) == 2:
            facts, dim = node.inputs[0].facts, self.computed(node.inputs[1])
            if facts is None or facts.shape is None:
                raise Unmeasurable(f"the shape of {node.inputs[0].name} is not known")
            return facts.shape[dim]
        if node.op in _INTEGER_OPS and len(node.inputs) == 2:
            return _INTEGER_OPS[node.op](*(self.computed(item) for item in node.inputs))
        if node.op == "prim::ListConstruct":
            if value.ir.type().getElementType().kind() == "TensorType":
                return [self.argument(item) for item in node.inputs]
            return [self.computed(item) for item in node.inputs]
        raise Unmeasurable(f"{value.name} comes from {node.op}")


def _identity(value: Value) -> object:
    """The same for one value in both graphs of a pair. Names would not do: copying a graph numbers them anew."""
    node = value.producer
    if node is None:
        return value.role, value.number
    return node.origins, node.rule, node.op, node.outputs.index(value)


def _described(argument: Any) -> str:
    if isinstance(argument, torch.Tensor):
        return f"{argument.dtype} {argument.device.type} {tuple(argument.shape)} {argument.stride()}"
    if isinstance(argument, list):
        return f"[{', '.join(map(_described, argument))}]"
    return repr(argument)
