"""The one place that touches private torch symbols: the tracer, TorchScript graphs, passes, schemas, the executor.

Every private symbol is looked up when this module is imported, so a torch that lacks one fails at once with a
message that names it, and not in the middle of an optimisation.
"""

from __future__ import annotations

import contextlib
import operator
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.jit import _trace as trace_internals
from torch.nn.modules import module as module_internals

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
    "_create_graph_by_tracing",
    "_functorch.peek_interpreter_stack",
    "_get_graph_executor_optimize",
    "_get_tracing_state",
    "_get_value_trace",
    "_set_graph_executor_optimize",
    "_storage_Use_Count",
    "_jit_get_all_schemas",
    "_jit_get_schemas_for_operator",
    "_jit_pass_constant_propagation",
    "_jit_pass_cse",
    "_jit_pass_dce",
    "_jit_pass_lint",
    "_jit_pass_lower_all_tuples",
    "_jit_pass_remove_mutation",
    "_len_torch_dispatch_stack",
    "_len_torch_function_stack",
)
_PRIVATE_ELSEWHERE = (
    (torch.jit, "is_tracing"),
    (trace_internals, "_trace_module_map"),
    (module_internals, "_has_any_global_hook"),
)


def _probe() -> dict[str, Any]:
    found: dict[str, Any] = {}
    missing: list[str] = []
    for name in _PRIVATE:
        try:
            found[name] = operator.attrgetter(name)(torch._C)
        except AttributeError:
            missing.append(f"torch._C.{name}")
    missing += [f"{owner.__name__}.{name}" for owner, name in _PRIVATE_ELSEWHERE if not hasattr(owner, name)]
    if missing:
        raise UnsupportedTorch(
            f"torch {torch.__version__} lacks what rewriter needs to record and read graphs: {', '.join(missing)}. "
            "Supported: torch 2.11 to 2.14."
        )
    return found


_C = _probe()

# What is active around a call: each gives a number or an object that is false where there is nothing.
function_modes: Callable[[], int] = _C["_len_torch_function_stack"]
dispatch_modes: Callable[[], int] = _C["_len_torch_dispatch_stack"]
innermost_transform: Callable[[], Any] = _C["_functorch.peek_interpreter_stack"]
is_tracing: Callable[[], bool] = operator.attrgetter("is_tracing")(torch.jit)
has_global_hook: Callable[[], bool] = module_internals._has_any_global_hook
# The value of the graph under construction that a traced tensor stands for.
traced_value: Callable[[torch.Tensor], IRValue] = _C["_get_value_trace"]


def sharers(tensor: torch.Tensor) -> int:
    """How many tensors lie in the memory of `tensor`, itself included; foreign owners of the memory count too."""
    storage = tensor.untyped_storage()
    # One is the storage object itself.
    return int(_C["_storage_Use_Count"](storage._cdata)) - 1


# The tracer finds the names of modules in a global.
_TRACING = threading.Lock()


def record(
    function: Callable[..., tuple[torch.Tensor, ...]],
    example: Sequence[torch.Tensor],
    module: torch.nn.Module,
    weights: Sequence[torch.Tensor],
) -> Graph:
    """The graph of `function(*example)`, with one further input for each of `weights`, which `function` reads itself.

    Nodes carry the path of the submodule of `module` that made them as their scope. Raises what `function` raises.
    Not `torch.jit.trace`: it builds a TorchScript class for every submodule, which takes longer than the trace and is
    never freed (12 MiB for each trace of a small UNet).
    """
    names = {child: f"__module.{path}" if path else "__module" for path, child in module.named_modules()}

    def call(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return function(*inputs[: len(example)])

    with _TRACING, torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = trace_internals._trace_module_map
        trace_internals._trace_module_map = names
        try:
            graph, _ = _C["_create_graph_by_tracing"](call, (*example, *weights), lambda _: "", False, False)
        finally:
            trace_internals._trace_module_map = before
    return graph


def drop_unused(graph: Graph, first: int) -> list[int]:
    """Removes the inputs from position `first` on that nothing reads; returns which of them stay, from 0 on."""
    used = [bool(value.uses()) for value in list(graph.inputs())[first:]]
    for index in reversed(range(len(used))):
        if not used[index]:
            graph.eraseInput(first + index)
    return [index for index, is_used in enumerate(used) if is_used]


def trace(module: torch.nn.Module, example: Sequence[torch.Tensor]) -> tuple[Graph, list[torch.Tensor]]:
    """The graph of `module(*example)` as a pure function of (inputs, weights), and the weights that it reads.

    These are the module's own parameters and buffers, in the order of the graph's inputs after the example's.
    """
    weights = [*module.parameters(), *module.buffers()]

    def call(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        result = module(*inputs)
        return (result,) if isinstance(result, torch.Tensor) else tuple(result)

    graph = record(call, example, module, weights)
    return graph, [weights[index] for index in drop_unused(graph, len(example))]


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


def insert_after(graph: Graph, anchor: IRNode, op: str, inputs: Sequence[IRValue | int]) -> None:
    """Puts a node without results right after `anchor`. `inputs`: values, and numbers as constants."""
    values = [insert_constant(graph, each) if isinstance(each, int) else each for each in inputs]
    graph.create(op, values, 0).insertAfter(anchor)


def insert_constant(graph: Graph, value: object) -> IRValue:
    """A constant at the start of the graph, where every node can read it."""
    with graph.insert_point_guard(next(iter(graph.nodes()), graph.return_node())):
        return graph.insertConstant(value)


def insert_constants(graph: Graph, values: Sequence[object], types: Sequence[Any]) -> list[IRValue]:
    """Constants at the start of the graph, in this order, and of these types."""
    with graph.insert_point_guard(next(iter(graph.nodes()), graph.return_node())):
        made = [
            _insert_empty_list(graph, kind) if isinstance(value, list) and not value else graph.insertConstant(value)
            for value, kind in zip(values, types, strict=True)
        ]
    for value, kind in zip(made, types, strict=True):
        value.setType(kind)
    return made


def _insert_empty_list(graph: Graph, kind: Any) -> IRValue:
    """An empty list of Python does not say of what it is one, so a graph makes the constant."""
    donor = empty_graph()
    node = donor.insertNode(donor.create("prim::ListConstruct", [], 1))
    node.output().setType(kind)
    donor.registerOutput(node.output())
    _C["_jit_pass_constant_propagation"](donor)
    (constant,) = donor.nodes()
    return graph.insertNode(graph.createClone(constant, lambda value: value)).output()


def promoting(number: float | bool) -> torch.Tensor:
    """A 0-dim tensor that takes part in the promotion of dtypes as the Python number does."""

    def call(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (x * number,)

    graph = _trace(call, torch.zeros(1))
    (node,) = [node for node in graph.findAllNodes("prim::Constant") if node.kindOf("value") == "t"]
    return node.t("value")  # type: ignore[no-any-return]


def set_scopes(nodes: Sequence[IRNode], scopes: Sequence[str]) -> None:
    """Gives each node the scope beside it. Only a trace makes scopes, so one is made, of as many ops."""
    distinct = list(dict.fromkeys(scopes))

    def call(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        state = _C["_get_tracing_state"]()
        for scope in distinct:
            state.push_scope(scope)
            x = x.neg()
            state.pop_scope()
        return (x,)

    graph = _trace(call, torch.zeros(1))
    donors = dict(zip(distinct, graph.findAllNodes("aten::neg"), strict=True))
    for node, scope in zip(nodes, scopes, strict=True):
        node.copyMetadata(donors[scope])


def _trace(call: Callable[..., tuple[torch.Tensor, ...]], example: torch.Tensor) -> Graph:
    with _TRACING, torch.inference_mode(False), torch.no_grad():
        graph, _ = _C["_create_graph_by_tracing"](call, (example,), lambda _: "", False, False)
    return graph


def lint(graph: Graph) -> None:
    """Checks the graph's invariants. Raises RuntimeError where one does not hold."""
    _C["_jit_pass_lint"](graph)


def int_type() -> Any:
    return _C["IntType"].get()


def tensor_type(shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype, device: torch.device) -> Any:
    """The type of a tensor of which all is known."""
    stand_in = torch.empty_strided(tuple(shape), tuple(strides), dtype=dtype, device="meta")
    return _C["TensorType"].create_from_tensor(stand_in).with_device(device)


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
