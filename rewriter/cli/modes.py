"""The ways of running one network that `rewriter bench` compares."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch

Call = Callable[[], Any]
Prepare = Callable[[], Call]


def twin(module: torch.nn.Module) -> torch.nn.Module:
    """A second module of the same parts and weights, so that optimising one leaves the other as it is."""
    second = copy.copy(module)
    for name, value in list(vars(second).items()):
        if type(value) in (dict, OrderedDict):  # a configuration of a class of its own stays as it is
            vars(second)[name] = value.copy()
    return second


def eager(module: torch.nn.Module, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Prepare:
    """Plain PyTorch."""

    def prepare() -> Call:
        function = getattr(module, method) if method != "forward" else module
        return _without_gradients(lambda: function(*args, **kwargs))

    return prepare


def compiled(module: torch.nn.Module, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Prepare:
    """`torch.compile`, on CUDA with CUDA graphs."""

    def prepare() -> Call:
        second = twin(module)
        on_cuda = any(parameter.is_cuda for parameter in second.parameters())
        mode = "reduce-overhead" if on_cuda else "default"
        function: Callable[..., Any] = torch.compile(getattr(second, method), dynamic=False, mode=mode)

        def step() -> Any:
            torch.compiler.cudagraph_mark_step_begin()
            return function(*args, **kwargs)

        call = _without_gradients(step)
        # The first calls compile and record; only later ones replay.
        call()
        call()
        return call

    return prepare


def graphed(module: torch.nn.Module, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Prepare:
    """Eager's kernels in one CUDA graph. Each call copies the inputs in, as a real one would have to."""

    def prepare() -> Call:
        function = getattr(module, method)
        given = _tensors((args, kwargs))
        held: dict[int, torch.Tensor] = {id(tensor): tensor.clone() for tensor in given}
        static_args, static_kwargs = _replace((args, dict(kwargs)), held)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(stream):
            for _ in range(3):
                function(*static_args, **static_kwargs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph):
            output = function(*static_args, **static_kwargs)

        def replay() -> Any:
            for tensor in given:
                held[id(tensor)].copy_(tensor)
            graph.replay()
            return output

        return replay

    return prepare


def rewritten(
    module: torch.nn.Module, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, rules: Any
) -> tuple[torch.nn.Module, Prepare]:
    """What `rewriter.optimize` makes of it, with the module that has the report."""
    second = twin(module)

    def prepare() -> Call:
        from rewriter import optimize

        optimize(second, rules=rules)
        return eager(second, method, args, kwargs)()

    return second, prepare


def relative_error(output: Any, reference: Any) -> float:
    """The L2 norm of the difference of two results, relative to the reference; infinite if there is a NaN."""
    pairs = list(zip(_tensors(output), _tensors(reference), strict=True))
    square = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
    scale = sum(float(b.double().square().sum()) for _, b in pairs)
    error = (square / scale) ** 0.5 if scale else square**0.5
    return error if error == error else float("inf")


def detached(output: Any) -> Any:
    """A copy of a result whose tensors no later call overwrites."""
    return _replace(output, {id(tensor): tensor.clone() for tensor in _tensors(output)})


def _without_gradients(call: Call) -> Call:
    def run() -> Any:
        with torch.no_grad():
            return call()

    return run


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


def _replace(value: Any, replacements: Mapping[int, torch.Tensor]) -> Any:
    """A structure of plain containers with some tensors exchanged."""
    if isinstance(value, torch.Tensor):
        return replacements.get(id(value), value)
    if isinstance(value, Mapping):
        return {key: _replace(item, replacements) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_replace(item, replacements) for item in value)
    if isinstance(value, list):
        return [_replace(item, replacements) for item in value]
    return value
