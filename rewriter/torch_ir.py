"""The one place that touches private torch symbols: TorchScript graphs, passes, schemas and the executor.

Every private symbol is looked up when this module is imported, so a torch that lacks one fails at once with a
message that names it, and not in the middle of an optimisation.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from rewriter.errors import UnsupportedTorch

# The graph, node, value and schema classes have no public home and no type stubs.
Graph = Any
IRNode = Any
IRValue = Any
Schema = Any
AliasDb = Any

_PRIVATE = (
    "Graph",
    "IntType",
    "ListType",
    "TensorType",
    "parse_ir",
    "_create_function_from_graph",
    "_get_graph_executor_optimize",
    "_set_graph_executor_optimize",
    "_jit_get_all_schemas",
    "_jit_get_schemas_for_operator",
    "_jit_pass_constant_propagation",
    "_jit_pass_cse",
    "_jit_pass_dce",
    "_jit_pass_inline",
    "_jit_pass_lint",
    "_jit_pass_lower_all_tuples",
    "_jit_pass_lower_graph",
    "_jit_pass_remove_mutation",
)


def _probe() -> dict[str, Any]:
    missing = [name for name in _PRIVATE if not hasattr(torch._C, name)]
    if missing:
        raise UnsupportedTorch(
            f"torch {torch.__version__} lacks what rewriter needs to read TorchScript graphs: torch._C.{', torch._C.'.join(missing)}. "
            "Supported: torch 2.11 to 2.14."
        )
    return {name: getattr(torch._C, name) for name in _PRIVATE}


_C = _probe()


def trace(function: torch.nn.Module, example: Sequence[torch.Tensor]) -> tuple[Graph, list[torch.Tensor]]:
    """Records `function(*example)` and lowers it to a pure graph of (inputs, weights).

    Returns the graph and the weights it reads: the module's own parameter and buffer objects, in the order of the
    graph inputs that follow the example's. Raises what `torch.jit.trace` raises.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        # check_trace would run the result and cache an execution plan that later rewrites never reach.
        traced = torch.jit.trace(function, tuple(example), check_trace=False, strict=False)
    graph = traced.graph.copy()
    _C["_jit_pass_inline"](graph)
    lowered, weights = _C["_jit_pass_lower_graph"](graph, traced._c)
    return lowered, list(weights)


def simplify(graph: Graph) -> None:
    """Makes `graph` functional and small, in place: no tuples inside, no removable mutation, no duplicate or dead node.

    Never uses the recorded shapes, so the result holds for other extents too.
    """
    _C["_jit_pass_lower_all_tuples"](graph)
    _C["_jit_pass_remove_mutation"](graph)
    _C["_jit_pass_constant_propagation"](graph)
    _C["_jit_pass_cse"](graph)
    _C["_jit_pass_dce"](graph)
    _C["_jit_pass_lint"](graph)


def clean(graph: Graph) -> None:
    """Removes duplicate and dead nodes and checks the graph's invariants, in place."""
    _C["_jit_pass_cse"](graph)
    _C["_jit_pass_dce"](graph)
    _C["_jit_pass_lint"](graph)


def empty_graph() -> Graph:
    return _C["Graph"]()


def parse_graph(text: str) -> Graph:
    """Reads TorchScript IR as printed by a graph. Raises RuntimeError where it is malformed."""
    return _C["parse_ir"](text)


def insert_before(graph: Graph, anchor: IRNode, op: str, inputs: Sequence[IRValue], outputs: int = 1) -> IRNode:
    """Creates a node and puts it right before `anchor`."""
    node = graph.create(op, list(inputs), outputs)
    node.insertBefore(anchor)
    return node


def insert_constant(graph: Graph, value: object) -> IRValue:
    """A constant at the start of the graph, where every node can read it."""
    with graph.insert_point_guard(next(iter(graph.nodes()), graph.return_node())):
        return graph.insertConstant(value)


def int_type() -> Any:
    return _C["IntType"].get()


def tensor_list_type() -> Any:
    return _C["ListType"](_C["TensorType"].get())


def int_list_type() -> Any:
    return _C["ListType"](_C["IntType"].get())


def function_from_graph(graph: Graph, name: str = "forward") -> Callable[..., Any]:
    """A callable that runs a copy of `graph`; several outputs come as a tuple. Call it inside `plain_executor()`."""
    own = graph.copy()
    if sum(1 for _ in own.outputs()) != 1:
        own.makeMultiOutputIntoTuple()
    return _C["_create_function_from_graph"](name, own)  # type: ignore[no-any-return]


@contextlib.contextmanager
def plain_executor() -> Iterator[None]:
    """Runs graph functions node by node, for this thread and this block only.

    The default executor profiles the first calls and specialises again on every new shape.
    """
    before = _C["_get_graph_executor_optimize"]()
    _C["_set_graph_executor_optimize"](False)
    try:
        yield
    finally:
        _C["_set_graph_executor_optimize"](before)


def schemas_of(op: str) -> list[Schema]:
    """All registered schemas of an op such as `aten::add`, the overloads in registration order; empty if unknown."""
    return list(_C["_jit_get_schemas_for_operator"](op))


def known_ops() -> list[str]:
    """The names of all registered ops, for suggestions in error messages."""
    return sorted({schema.name for schema in _C["_jit_get_all_schemas"]()})
