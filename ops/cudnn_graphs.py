"""A convolution with what follows it as one graph of cuDNN, made and run by NVIDIA's `cudnn` package."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from packaging.version import Version

from rewriter.causes import described

# The first whose calls are those made here.
_OLDEST = "1.32.0"
_NAMES = {torch.float16: "HALF", torch.bfloat16: "BFLOAT16"}
_ACTIVATIONS = {"relu": "relu", "sigmoid": "sigmoid", "tanh": "tanh", "silu": "swish"}
ACTIVATIONS = ("none", *_ACTIVATIONS)


def package() -> Any:
    """Imports `cudnn`. Raises ImportError with the reason where it cannot be used."""
    try:
        cudnn = importlib.import_module("cudnn")
        version = Version(cudnn.__version__)
        if version >= Version(_OLDEST):
            cudnn.backend_version()
    # It looks for libraries, drivers and other packages, each of which fails in its own way.
    except Exception as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == "cudnn"
        raise ImportError("not installed" if absent else f"cudnn does not load: {described(error)}") from error
    if version < Version(_OLDEST):
        raise ImportError(f"cudnn {version}; expected {_OLDEST} or newer")
    return cudnn


def memory_format(shape: Sequence[int]) -> torch.memory_format:
    """With the channels innermost, as all tensors here are."""
    return torch.channels_last if len(shape) == 4 else torch.channels_last_3d


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """activation(convolution(x, weight) + bias + addend) with all channels innermost; which of both are there.

    thread: a handle of cuDNN serves one thread at a time.
    """

    device: torch.device
    thread: int
    dtype: torch.dtype
    x: tuple[int, ...]
    weight: tuple[int, ...]
    result: tuple[int, ...]
    bias: bool
    addend: bool
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    activation: str


class Planned:
    """A problem's graph with `count` plans, best first as cuDNN ranks them, none of which is built yet.

    To be made on the problem's device. Raises RuntimeError where cuDNN has none.
    """

    def __init__(self, cudnn: Any, handle: Any, problem: Problem) -> None:
        self._cudnn, self._handle, self._problem = cudnn, handle, problem
        self._workspaces: dict[int, int] = {}
        self._type = getattr(cudnn.data_type, _NAMES[problem.dtype])
        wide = cudnn.data_type.FLOAT
        with _named("cuDNN has no graph for it"):
            self._graph = cudnn.pygraph(
                handle=handle, io_data_type=self._type, intermediate_data_type=wide, compute_data_type=wide
            )
            self._tensors = self._described()
            self._graph.validate()
            self._graph.build_operation_graph()
            self._graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.B])
            self._graph.check_support()
            self.count = int(self._graph.get_execution_plan_count())

    def run(self, values: dict[str, torch.Tensor], plan: int) -> None:
        """Computes values["y"] from the others on the current stream. Raises RuntimeError where the plan fails."""
        device, failing = self._problem.device, f"cuDNN's plan {plan} fails"
        # A handle works where its device is the current one.
        with torch.cuda.device(device):
            if plan not in self._workspaces:
                with _named(failing):
                    self._graph.build_plan_at_index(plan)
                    self._workspaces[plan] = int(self._graph.get_workspace_size_plan_at_index(plan))
            # Where memory runs out, that is torch's error, not the plan's.
            workspace = torch.empty(max(self._workspaces[plan], 1), dtype=torch.uint8, device=device)
            given = {self._tensors[name]: value for name, value in values.items()}
            with _named(failing):
                self._cudnn.set_stream(handle=self._handle, stream=torch.cuda.current_stream(device).cuda_stream)
                self._graph.execute_plan_at_index(given, workspace, plan, handle=self._handle)

    def _described(self) -> dict[str, Any]:
        graph, problem = self._graph, self._problem
        tensors = {name: self._tensor(name, getattr(problem, name)) for name in ("x", "weight")}
        y = graph.conv_fprop(
            image=tensors["x"],
            weight=tensors["weight"],
            padding=list(problem.padding),
            stride=list(problem.stride),
            dilation=list(problem.dilation),
        )
        if problem.bias:
            tensors["bias"] = self._tensor("bias", (1, problem.weight[0], *(1 for _ in problem.stride)))
            y = graph.add(a=y, b=tensors["bias"])
        if problem.addend:
            tensors["addend"] = self._tensor("addend", problem.result)
            y = graph.add(a=y, b=tensors["addend"])
        if problem.activation != "none":
            y = getattr(graph, _ACTIVATIONS[problem.activation])(input=y)
        y.set_output(True).set_data_type(self._type).set_dim(list(problem.result)).set_stride(_strides(problem.result))
        return {**tensors, "y": y}

    def _tensor(self, name: str, shape: Sequence[int]) -> Any:
        return self._graph.tensor(name=name, dim=list(shape), stride=_strides(shape), data_type=self._type)


@contextlib.contextmanager
def _named(failing: str) -> Iterator[None]:
    """What is raised inside becomes a RuntimeError: the package has errors of its own, and of what it calls."""
    try:
        yield
    except Exception as error:
        raise RuntimeError(f"{failing}: {described(error)}") from error


def _strides(shape: Sequence[int]) -> list[int]:
    """Where an extent is 1, a tensor's own may be any others."""
    return list(torch.empty(shape, device="meta", memory_format=memory_format(shape)).stride())
