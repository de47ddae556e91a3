"""A graph as plain data and back: IR text for the nodes, numbers and texts for the constants.

IR text alone would not do: torch prints tensors as `<Tensor>` and reads no scopes. So constants become inputs of the
text, and their values stand beside it.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from rewriter import torch_ir
from rewriter.causes import cause_of
from rewriter.graph.facts import DTYPES

# A graph in these terms: JSON can hold it.
GraphData = dict[str, Any]

_SCOPE = re.compile(r", scope: [^\n]*$", re.MULTILINE)
_NUMBERED = re.compile(r"%(\d+)\b")
_SCALARS = {"bool": bool, "int": int, "str": str}
# Of what an empty list may be one: it is read back by its type in the text alone.
_LISTED = frozenset({"BoolType", "FloatType", "IntType"})
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Tables of angles and positions take some kilobytes; more than this is no longer a part of the code.
_LARGEST_CONSTANT = 1 << 20


class NotText(Exception):
    """A graph that cannot be written down; the message says what of it."""


def to_data(graph: torch_ir.Graph) -> GraphData:
    """The graph as data, equal for equal graphs whatever their values are numbered. `graph` stays as it is.

    Raises NotText where what `from_data` reads would not be the same graph.
    """
    try:
        data = _written(graph)
        again = _written(from_data(data))
    except RuntimeError as error:
        raise NotText(f"torch cannot write it down: {error}") from error
    if again != data:
        raise NotText("torch reads another graph than it writes")
    return data


def from_data(data: Mapping[str, Any]) -> torch_ir.Graph:
    """The graph that `to_data` has written. Raises NotText for data that it has not."""
    try:
        graph = torch_ir.parse_graph(data["text"])
        inputs = list(graph.inputs())
        nodes = [node for node in graph.nodes() if node.kind() != "prim::Constant"]
        first = len(inputs) - len(data["constants"])
        values = [_decoded(item) for item in data["constants"]]
        constants = torch_ir.insert_constants(graph, values, [value.type() for value in inputs[first:]])
        for value, constant in zip(inputs[first:], constants, strict=True):
            value.replaceAllUsesWith(constant)
        for index in reversed(range(first, len(inputs))):
            graph.eraseInput(index)
        everything = [*(constant.node() for constant in constants), *nodes]
        torch_ir.set_scopes(everything, [data["scopes"][index] for index in data["scope"]])
        torch_ir.lint(graph)
    except NotText:
        raise
    except (RuntimeError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise NotText(f"no graph can be read: {cause_of(error)}") from error
    return graph


def _written(graph: torch_ir.Graph) -> GraphData:
    own = graph.copy()
    constants: list[Any] = []
    # The path of the module that made each node, constants first.
    scopes: dict[str, int] = {}
    scope: list[int] = []
    size = 0
    for node in list(_all_constants(own)):
        value = node.output()
        found, bytes_ = _encoded(node)
        size += bytes_
        if size > _LARGEST_CONSTANT:
            raise NotText("its constants are too large")
        constants.append(found)
        scope.append(scopes.setdefault(_module_of(node), len(scopes)))
        placeholder = own.addInput()
        placeholder.setType(value.type())
        value.replaceAllUsesWith(placeholder)
        node.destroy()
    scope += [scopes.setdefault(_module_of(node), len(scopes)) for node in own.nodes()]
    # Without constants there are no texts in which a scope could seem to stand.
    text = _SCOPE.sub("", own.str(False))
    numbers: dict[str, str] = {}
    text = _NUMBERED.sub(lambda found: numbers.setdefault(found[1], f"%{len(numbers)}"), text)
    return {"text": text, "constants": constants, "scopes": list(scopes), "scope": scope}


def _module_of(node: torch_ir.IRNode) -> str:
    return str(node.scopeName()).rsplit("/", 1)[-1]


def _all_constants(block: Any) -> Iterator[torch_ir.IRNode]:
    for node in block.nodes():
        if node.kind() == "prim::Constant":
            yield node
        for inner in node.blocks():
            yield from _all_constants(inner)


def _encoded(node: torch_ir.IRNode) -> tuple[list[Any], int]:
    """A constant as [kind, ...], and how many bytes of tensors are in it."""
    if node.hasAttribute("value") and node.kindOf("value") == "t":
        # Asked for by the attribute: as a value, a tensor that promotes like a Python number comes as that number.
        return _encoded_tensor(node.t("value"), node.output().toIValue())
    value = node.output().toIValue()
    if isinstance(value, list) and not value and node.output().type().getElementType().kind() not in _LISTED:
        raise NotText(f"a constant is an empty {node.output().type()}")
    return _encoded_value(value), 0


def _encoded_value(value: Any) -> list[Any]:
    kind = type(value)
    if value is None:
        return ["none"]
    if kind.__name__ in _SCALARS and kind in (bool, int, str):
        return [kind.__name__, value]
    if kind is float:
        return ["float", value.hex()]
    if kind is torch.device:
        return ["device", str(value)]
    if kind is list and len({type(item) for item in value}) <= 1:
        return ["list", [_encoded_value(item) for item in value]]
    raise NotText(f"a constant is a {kind.__name__}")


def _encoded_tensor(tensor: torch.Tensor, value: Any) -> tuple[list[Any], int]:
    if not isinstance(value, torch.Tensor):
        if type(value) not in (bool, int, float) or tensor.device.type != "cpu":
            raise NotText(f"a constant promotes like a {type(value).__name__}")
        return ["promotes", _encoded_value(value)], 0
    if tensor.dtype not in _NAMES or tensor.layout is not torch.strided or tensor.requires_grad:
        raise NotText(f"a constant is a tensor of {tensor.dtype}")
    dense = tensor.detach().cpu().contiguous()
    data = dense.reshape(-1).view(torch.uint8).numpy().tobytes()
    if dense.numel() and tuple(torch.empty_like(tensor).stride()) != tensor.stride():
        raise NotText("a constant is a tensor that is not dense")
    described = [_NAMES[tensor.dtype], list(tensor.shape), list(tensor.stride()), str(tensor.device)]
    return ["tensor", *described, base64.b64encode(data).decode()], len(data)


def _decoded(item: Any) -> Any:
    kind, *rest = item
    if kind == "none":
        return None
    if kind in _SCALARS:
        return _SCALARS[kind](rest[0])
    if kind == "float":
        return float.fromhex(rest[0])
    if kind == "device":
        return torch.device(rest[0])
    if kind == "list":
        return [_decoded(each) for each in rest[0]]
    if kind == "promotes":
        return torch_ir.promoting(_decoded(rest[0]))
    if kind != "tensor":
        raise NotText(f"a constant of kind {kind!r}")
    name, shape, strides, device, data = rest
    dense = torch.frombuffer(bytearray(base64.b64decode(data)), dtype=torch.uint8) if data else torch.empty(0)
    result = torch.empty_strided(shape, strides, dtype=DTYPES[name], device=device)
    return result.copy_(dense.view(DTYPES[name]).reshape(shape)) if data else result
