"""NVIDIA's `cudnn` package as far as convolutions use it, computed by torch in f64 on a CPU."""

from __future__ import annotations

import contextlib
import itertools
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F

Values = dict["Node", torch.Tensor]


class Node:
    """A tensor of a graph; `value` computes it in f64 from those that are given."""

    def __init__(self, value: Callable[[Values], torch.Tensor]) -> None:
        self.value = value
        self.dim: list[int] = []
        self.stride: list[int] = []
        self.result = False

    def set_output(self, output: bool) -> Node:
        self.result = output
        return self

    def set_data_type(self, kind: str) -> Node:
        self.kind = kind
        return self

    def set_dim(self, dim: list[int]) -> Node:
        self.dim = dim
        return self

    def set_stride(self, stride: list[int]) -> Node:
        self.stride = stride
        return self

    def holds(self, tensor: torch.Tensor) -> None:
        """Fails where the tensor is not what the graph was told."""
        assert {"HALF": torch.float16, "BFLOAT16": torch.bfloat16}[self.kind] == tensor.dtype
        sides = zip(self.dim, self.stride, tensor.shape, tensor.stride(), strict=True)
        assert all(dim == size and (size == 1 or step == lies) for dim, step, size, lies in sides)


def pointwise(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Node]:
    return lambda _graph, **given: Node(lambda values: function(given["input"].value(values)))


class Graph:
    """`cudnn.pygraph`. supported: whether there are plans at all; broken: plans that cannot be built."""

    supported = True
    broken: tuple[int, ...] = ()
    made: ClassVar[list[Graph]] = []
    current: ClassVar[list[torch.device]] = []

    def __init__(self, *, handle: Any, io_data_type: str, intermediate_data_type: str, compute_data_type: str) -> None:
        assert intermediate_data_type == compute_data_type == "FLOAT"
        self.handle, self.kind = handle, io_data_type
        self.done: list[Any] = []
        self.made.append(self)

    def tensor(self, *, name: str, dim: list[int], stride: list[int], data_type: str) -> Node:
        assert (name, data_type) in itertools.product(("x", "weight", "bias", "addend"), (self.kind,))
        node = Node(lambda values: values[node].double().reshape(dim))
        return node.set_dim(dim).set_stride(stride).set_data_type(data_type)

    def conv_fprop(self, *, image: Node, weight: Node, padding: Any, stride: Any, dilation: Any) -> Node:
        convolve = F.conv2d if len(stride) == 2 else F.conv3d
        return Node(
            lambda values: convolve(
                image.value(values), weight.value(values), None, tuple(stride), tuple(padding), tuple(dilation)
            )
        )

    def add(self, *, a: Node, b: Node) -> Node:
        return Node(lambda values: a.value(values) + b.value(values))

    relu, sigmoid, tanh, swish = (pointwise(each) for each in (torch.relu, torch.sigmoid, torch.tanh, F.silu))

    def validate(self) -> None:
        self.done.append("validate")

    def build_operation_graph(self) -> None:
        self.done.append("build_operation_graph")

    def create_execution_plans(self, modes: list[str]) -> None:
        self.done.append(modes)

    def check_support(self) -> None:
        if not self.supported:
            raise LookupError("no engine")

    def get_execution_plan_count(self) -> int:
        return 5

    def build_plan_at_index(self, index: int) -> None:
        assert self.current[-1] == self.handle.device
        if index in self.broken:
            raise LookupError("does not compile")
        self.done.append(index)

    def get_workspace_size_plan_at_index(self, index: int) -> int:
        assert index in self.done
        return 40 * index

    def execute_plan_at_index(self, values: Values, workspace: torch.Tensor, index: int, *, handle: Any) -> None:
        assert index in self.done
        assert handle is self.handle
        assert self.current[-1] == handle.device
        assert handle.stream == 7
        assert workspace.numel() == max(40 * index, 1)
        (result,) = (node for node in values if node.result)
        for node, value in values.items():
            # A bias is a vector to torch.
            node.holds(value if value.dim() > 1 else value.view(node.dim))
        found = result.value({node: value for node, value in values.items() if node is not result})
        values[result].copy_(found)


def set_stream(*, handle: Any, stream: int) -> None:
    handle.stream = stream


def installed(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """`cudnn`, on a GPU that is a CPU."""
    module = types.ModuleType("cudnn")
    current: list[torch.device] = []

    @contextlib.contextmanager
    def device(chosen: torch.device) -> Iterator[None]:
        current.append(chosen)
        yield
        current.pop()

    module.__dict__.update(
        __version__="1.32.0",
        backend_version=lambda: 91900,
        data_type=types.SimpleNamespace(HALF="HALF", BFLOAT16="BFLOAT16", FLOAT="FLOAT"),
        heur_mode=types.SimpleNamespace(A="A", B="B"),
        pygraph=type("Graph", (Graph,), {"made": [], "current": current}),
        create_handle=lambda: types.SimpleNamespace(device=current[-1]),
        set_stream=set_stream,
    )
    monkeypatch.setitem(sys.modules, "cudnn", module)
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: types.SimpleNamespace(cuda_stream=7))
    return module
