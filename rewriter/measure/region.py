"""Cuts a region out of a graph, before and after its rewrites, as small graphs that can be timed."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import torch

from rewriter import torch_ir
from rewriter.graph.facts import DTYPES
from rewriter.graph.view import Node, NotConstant, Value

# Rows in eight bits, drawn so that few are beyond what either holds.
_EIGHT_BITS = (torch.float8_e4m3fn, torch.int8)
_SPREAD = 32.0
# What these give lies in the memory of what they are given.
_VIEWS = frozenset(
    f"aten::{name}"
    for name in (
        *("chunk", "expand", "flatten", "narrow", "permute", "reshape", "select", "slice", "split"),
        *("split_with_sizes", "squeeze", "t", "transpose", "unbind", "unflatten", "unsqueeze", "view"),
    )
)
# The strides of values.
Lying: TypeAlias = dict[Value, tuple[int, ...]]
_INTEGER_OPS = {
    "aten::add": lambda a, b: a + b,
    "aten::sub": lambda a, b: a - b,
    "aten::mul": lambda a, b: a * b,
    "aten::floordiv": lambda a, b: a // b,
    "aten::remainder": lambda a, b: a % b,
}


class Unmeasurable(Exception):
    """A region that cannot stand alone; the message says why."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class TensorPlan:
    """A tensor to be drawn when it is needed: most regions are alike, and only one of a kind is timed.

    `weight`: where it stands for a weight, its position among the graph's weights and what is derived from them.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: str
    weight: int | None = None

    def draw(self) -> torch.Tensor:
        """Normal numbers in the recorded memory order; zeros where the dtype holds none.

        Booleans are true: of a mask that hides everything from attention, kernels make different things.
        """
        tensor = torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=self.device)
        generator = torch.Generator(self.device).manual_seed(0)
        if self.dtype in _EIGHT_BITS:
            return tensor.copy_(torch.randn(self.shape, generator=generator, device=self.device).mul_(_SPREAD))
        if not self.dtype.is_floating_point:
            return tensor.fill_(self.dtype == torch.bool)
        if 0 in self.strides:
            return torch.randn(self.shape, generator=generator, device=self.device).to(self.dtype)
        return tensor.normal_(generator=generator)

    def __str__(self) -> str:
        return f"{self.dtype} {self.device} {self.shape} {self.strides}"


@dataclasses.dataclass(slots=True)
class Region:
    """A small graph, and what to call it with: plans of tensors, numbers, and lists of both."""

    graph: torch_ir.Graph
    plans: list[Any]
    text: str

    def call(self, drawn: dict[TensorPlan, torch.Tensor], weights: Sequence[torch.Tensor] = ()) -> Callable[[], Any]:
        """The graph as a function of nothing. `drawn` keeps tensors, so that both sides of a pair get the same.

        `weights` are taken as they are: all that a step multiplies by can be a large part of a GPU's memory.
        """
        function = torch_ir.function_from_graph(self.graph)
        arguments = [_drawn(plan, drawn, weights) for plan in self.plans]
        return lambda: function(*arguments)


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """A region before and after its rewrites. Pairs with one `key` take the same time."""

    before: Region
    after: Region

    @property
    def key(self) -> str:
        return hashlib.sha256(f"{self.before.text}\n=>\n{self.after.text}".encode()).hexdigest()[:24]


def cut(nodes: Iterable[Node], shared: dict[object, Any], weights: int, lying: Lying | None = None) -> Region:
    """The nodes as a graph of their own, with plans for inputs such as the trace recorded.

    `shared` keeps the plans, by the value that they stand for, so that both sides of a pair get the same. `weights`:
    how many the graph has that was rewritten. `lying` keeps how values lie, for other regions of the same graphs.
    Raises Unmeasurable.
    """
    return _Cutter(sorted(nodes, key=lambda node: node.order), shared, weights, {} if lying is None else lying).cut()


class _Cutter:
    def __init__(self, nodes: list[Node], shared: dict[object, Any], weights: int, lying: Lying) -> None:
        self.nodes, self.weights, self.lying = nodes, weights, lying
        self.inside = {id(node) for node in nodes}
        self.shared = shared
        self.graph = torch_ir.empty_graph()
        self.values: dict[int, Any] = {}
        self.plans: list[Any] = []
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
        return Region(self.graph, self.plans, self.text())

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
            plan = self.plan(value)
            self.plans.append(plan)
            self.described.append(_described(plan))
        self.values[id(value)] = result
        return result

    def plan(self, value: Value) -> Any:
        """What the value may hold: computed if it is an integer or a list, a plan if it is a tensor."""
        key = _identity(value)
        if key not in self.shared:
            kind = value.ir.type().kind()
            if kind == "TensorType":
                self.shared[key] = self.tensor(value)
            else:
                self.shared[key] = self.computed(value)
        return self.shared[key]

    def tensor(self, value: Value) -> TensorPlan:
        facts = value.facts
        if facts is None or facts.shape is None or facts.dtype not in DTYPES:
            raise Unmeasurable(f"the shape of {_called(value)} is not known")
        strides = self.strides(value)
        weight = {"weight": value.number, "prepared": self.weights + value.number}.get(value.role)
        return TensorPlan(facts.shape, strides, DTYPES[facts.dtype], facts.device, weight)

    def strides(self, value: Value) -> tuple[int, ...]:
        if value not in self.lying:
            self.lying[value] = self.strides_after(value)
        return self.lying[value]

    def strides_after(self, value: Value) -> tuple[int, ...]:
        """As after the rewrites: parts of merged projections have gaps, of which recorded types know nothing."""
        facts, node = value.facts, value.producer
        assert facts is not None
        assert facts.shape is not None
        if node is not None and node.op in _VIEWS:
            source = node.inputs[0].facts
            if source is not None and source.shape is not None:
                whole = torch.empty_strided(source.shape, self.strides(node.inputs[0]), device="meta")
                try:
                    given = [self.computed(operand) for operand in node.inputs[1:]]
                    made = getattr(torch.ops.aten, node.op.removeprefix("aten::"))(whole, *given)
                    part = made[node.outputs.index(value)] if isinstance(made, list | tuple) else made
                except (Unmeasurable, RuntimeError, IndexError):
                    part = None
                if part is not None and part.shape == facts.shape:
                    return tuple(part.stride())
        return facts.strides if facts.strides is not None else torch.empty(facts.shape, device="meta").stride()

    def computed(self, value: Value) -> Any:
        """The number or list that a node outside the region gives, from the recorded shapes."""
        constant = value.constant
        if not isinstance(constant, NotConstant):
            return list(constant) if isinstance(constant, tuple) else constant
        node = value.producer
        if node is None:
            raise Unmeasurable(f"{_called(value)} is not known")
        if node.op == "aten::size" and len(node.inputs) == 2:
            facts, dim = node.inputs[0].facts, self.computed(node.inputs[1])
            if facts is None or facts.shape is None:
                raise Unmeasurable(f"the shape of {_called(node.inputs[0])} is not known")
            return facts.shape[dim]
        if node.op in _INTEGER_OPS and len(node.inputs) == 2:
            return _INTEGER_OPS[node.op](*(self.computed(item) for item in node.inputs))
        if node.op == "prim::ListConstruct":
            if value.ir.type().getElementType().kind() == "TensorType":
                return [self.plan(item) for item in node.inputs]
            return [self.computed(item) for item in node.inputs]
        raise Unmeasurable(f"{_called(value)} is needed as a number")


def _called(value: Value) -> str:
    """Not by its name: the same cause in many places is one line of a report."""
    return "an input" if value.producer is None else f"a result of {value.producer.op}"


def _identity(value: Value) -> object:
    """The same for one value in both graphs of a pair. Names would not do: copying a graph numbers them anew."""
    node = value.producer
    if node is None:
        return value.role, value.number
    return node.origins, node.rule, node.op, node.outputs.index(value)


def _described(plan: Any) -> str:
    return f"[{', '.join(map(_described, plan))}]" if isinstance(plan, list) else str(plan)


def _drawn(plan: Any, drawn: dict[TensorPlan, torch.Tensor], weights: Sequence[torch.Tensor]) -> Any:
    if isinstance(plan, list):
        return [_drawn(item, drawn, weights) for item in plan]
    if not isinstance(plan, TensorPlan):
        return plan
    if plan.weight is not None and weights:
        return weights[plan.weight]
    if plan not in drawn:
        drawn[plan] = plan.draw()
    return drawn[plan]
