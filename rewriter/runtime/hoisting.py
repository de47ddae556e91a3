"""Splits a graph into what stays the same from one denoising step to the next, and what does not.

The text's keys and values, pooled embeddings, the embedded control image: a graph that is given the same tensors for
these at every step computes them at every step. The prologue computes them once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from rewriter import torch_ir

# Results of these are views or numbers and cost nothing: by themselves no reason to split.
_FREE = frozenset(
    {
        "aten::Int",
        "aten::ScalarImplicit",
        "aten::chunk",
        "aten::detach",
        "aten::dim",
        "aten::expand",
        "aten::expand_as",
        "aten::numel",
        "aten::permute",
        "aten::reshape",
        "aten::select",
        "aten::size",
        "aten::slice",
        "aten::split",
        "aten::split_with_sizes",
        "aten::squeeze",
        "aten::t",
        "aten::transpose",
        "aten::unbind",
        "aten::unsqueeze",
        "aten::view",
    }
)
# What these give is known with the extents, for which alone a recording holds.
_EXTENTS = frozenset({"aten::dim", "aten::numel", "aten::size"})
# Make Python numbers of tensors.
_READS = frozenset(
    {"aten::Bool", "aten::Float", "aten::FloatImplicit", "aten::Int", "aten::IntImplicit", "aten::ScalarImplicit"}
)
_RANDOM = ("rand", "dropout", "bernoulli", "multinomial", "normal")


@dataclasses.dataclass(frozen=True, slots=True)
class Split:
    """Two graphs that together are one.

    prologue: inputs `prologue_inputs` (positions among the whole graph's), outputs are the kept values.
    body: inputs `body_inputs`, then the kept values; outputs as the whole graph's.
    """

    prologue: torch_ir.Graph
    prologue_inputs: tuple[int, ...]
    body: torch_ir.Graph
    body_inputs: tuple[int, ...]
    kept: int


def is_random(graph: torch_ir.Graph) -> bool:
    """Whether the graph draws random numbers, which a replay would have to draw anew in eager's order."""
    return any(any(word in node.kind() for word in _RANDOM) for node in graph.nodes())


def read_by_host(graph: torch_ir.Graph) -> frozenset[int]:
    """The positions of the inputs from whose elements the graph makes Python numbers, such as extents of a result."""
    positions = {value.unique(): index for index, value in enumerate(graph.inputs())}
    nodes = [node for kind in _READS for node in graph.findAllNodes(kind)]
    pending = [value for node in nodes for value in node.inputs()]
    found: set[int] = set()
    visited: set[int] = set()
    while pending:
        value = pending.pop()
        if value.unique() in visited:
            continue
        visited.add(value.unique())
        if value.unique() in positions:
            found.add(positions[value.unique()])
        elif value.node().kind() not in _EXTENTS:
            pending.extend(value.node().inputs())
    return frozenset(found)


def split(graph: torch_ir.Graph, invariant: Collection[int]) -> Split | None:
    """Splits `graph` where inputs at the positions `invariant` stay the same; None where that saves nothing.

    Weights count as invariant when their positions are among them. Extents stay the same in any case: of an input that
    does not, the prologue reads no more than these. A graph with blocks or writes is not split.
    """
    nodes = list(graph.nodes())
    if any(next(iter(node.blocks()), None) is not None or node.kind().endswith("_") for node in nodes):
        return None
    steady = {value.unique() for index, value in enumerate(graph.inputs()) if index in invariant}
    costly: set[int] = set()
    for node in nodes:
        kind = node.kind()
        inputs = [value.unique() for value in node.inputs()]
        if kind in _EXTENTS:
            steady.update(value.unique() for value in node.outputs())
            continue
        if any(word in kind for word in _RANDOM) or not all(value in steady for value in inputs):
            continue
        outputs = [value.unique() for value in node.outputs()]
        steady.update(outputs)
        if (kind not in _FREE and not kind.startswith("prim::")) or any(value in costly for value in inputs):
            costly.update(outputs)
    kept = _frontier(graph, steady, costly)
    if not kept:
        return None
    prologue, body = graph.copy(), graph.copy()
    order = {value.unique(): index for index, value in enumerate(_values(graph))}
    positions = [order[unique] for unique in kept]
    first = _values(prologue)
    for index in reversed(range(len(list(prologue.outputs())))):
        prologue.eraseOutput(index)
    for position in positions:
        prologue.registerOutput(first[position])
    second = _values(body)
    for position in positions:
        value = second[position]
        added = body.addInput()
        added.setType(value.type())
        value.replaceAllUsesWith(added)
    torch_ir.clean(prologue)
    torch_ir.clean(body)
    count = len(list(graph.inputs()))
    return Split(
        prologue=prologue,
        prologue_inputs=tuple(torch_ir.drop_unused(prologue, 0)),
        body=body,
        body_inputs=tuple(index for index in torch_ir.drop_unused(body, 0) if index < count),
        kept=len(kept),
    )


def _frontier(graph: torch_ir.Graph, steady: set[int], costly: set[int]) -> list[int]:
    """The steady tensors worth keeping that a changing node reads or the graph returns, in the graph's order."""
    found: dict[int, None] = {}
    readers = [node for node in graph.nodes() if not all(value.unique() in steady for value in node.outputs())]
    for node in (*readers, graph.return_node()):
        for value in node.inputs():
            if value.unique() in costly and value.type().kind() == "TensorType":
                found[value.unique()] = None
    return list(found)


def _values(graph: torch_ir.Graph) -> list[torch_ir.IRValue]:
    """All values of a graph in an order that a copy shares."""
    return [*graph.inputs(), *(value for node in graph.nodes() for value in node.outputs())]
