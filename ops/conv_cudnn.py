"""Convolutions with bias, addition and activation, each as one graph of cuDNN.

Importing this module adds the provider "cudnn" where a CUDA GPU is visible. It raises ImportError, with the reason,
where NVIDIA's `cudnn` package is absent, too old or does not load.
"""

from __future__ import annotations

import atexit
import functools
import threading
from collections.abc import Sequence
from typing import Any

import torch

from rewriter.ops.conv import result_shape
from rewriter.ops.cudnn_graphs import ACTIVATIONS, Planned, Problem, memory_format, package
from rewriter.ops.precision import NARROW
from rewriter.ops.registry import Config, provide
from rewriter.ops.upsample import channels_innermost

Optional = torch.Tensor | None

# Plans worth timing: cuDNN's own ranking has been off by several times.
_PLANS = 3
# Graphs that are kept. A CUDA graph holds what it has recorded of one that is not kept any more.
_KEPT = 512
# Bytes. Where a graph is not told otherwise, each operand starts at a multiple of them.
_ALIGNED = 16


class Convolutions:
    """The provider. cudnn: NVIDIA's package. `geometry` is what both ops take after their tensors."""

    def __init__(self, cudnn: Any) -> None:
        self._cudnn = cudnn
        self._handle = functools.cache(self._new_handle)
        self._planned = functools.lru_cache(_KEPT)(self._new_plans)
        self._counted = functools.lru_cache(_KEPT)(self._count)

    def conv_act(
        self, x: torch.Tensor, weight: torch.Tensor, bias: Optional, *geometry: Any, plan: int = 0
    ) -> torch.Tensor:
        """activation(convolution(x, weight) + bias), operands as in the reference; sums in f32, rounded once."""
        return self._computed({"x": x, "weight": weight, "bias": bias}, geometry, plan)

    def conv_add(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: Optional,
        addend: torch.Tensor,
        *geometry: Any,
        plan: int = 0,
    ) -> torch.Tensor:
        """activation(convolution(x, weight) + bias + addend), rounded once."""
        return self._computed({"x": x, "weight": weight, "bias": bias, "addend": addend}, geometry, plan)

    def supports_act(self, *call: Any) -> str | None:
        """Why a call of `conv_act` is not for cuDNN, or None."""
        return takes_act(*call) or _without_plans(self.act_configs(*call))

    def supports_add(self, *call: Any) -> str | None:
        """The same of `conv_add`."""
        return takes_add(*call) or _without_plans(self.add_configs(*call))

    def act_configs(self, x: torch.Tensor, weight: torch.Tensor, bias: Optional, *geometry: Any) -> Sequence[Config]:
        """The first of cuDNN's plans for a call of `conv_act`, none where it has none."""
        return self._plans({"x": x, "weight": weight, "bias": bias}, geometry)

    def add_configs(
        self, x: torch.Tensor, weight: torch.Tensor, bias: Optional, addend: torch.Tensor, *geometry: Any
    ) -> Sequence[Config]:
        """The same of `conv_add`."""
        return self._plans({"x": x, "weight": weight, "bias": bias, "addend": addend}, geometry)

    def forget(self) -> None:
        """Lets go of all graphs."""
        self._planned.cache_clear()
        self._counted.cache_clear()
        self._handle.cache_clear()

    def _plans(self, operands: dict[str, Optional], geometry: Sequence[Any]) -> Sequence[Config]:
        return [{"plan": plan} for plan in range(self._counted(_problem(operands, geometry)))]

    def _count(self, problem: Problem) -> int:
        try:
            return min(self._planned(problem).count, _PLANS)
        except RuntimeError:
            return 0

    def _computed(self, operands: dict[str, Optional], geometry: Sequence[Any], plan: int) -> torch.Tensor:
        values = {name: value for name, value in operands.items() if value is not None}
        problem = _problem(operands, geometry)
        memory = memory_format(problem.result)
        y = torch.empty(problem.result, dtype=problem.dtype, device=problem.device, memory_format=memory)
        self._planned(problem).run({**values, "y": y}, plan)
        return y

    def _new_plans(self, problem: Problem) -> Planned:
        with torch.cuda.device(problem.device):
            return Planned(self._cudnn, self._handle(problem.device, problem.thread), problem)

    def _new_handle(self, _device: torch.device, _thread: int) -> Any:
        """Of the current device."""
        return self._cudnn.create_handle()


def takes_act(x: torch.Tensor, weight: torch.Tensor, bias: Optional, *geometry: Any) -> str | None:
    """Why cuDNN need not be asked for plans of a call of `conv_act`, or None."""
    stride, padding, dilation, transposed, _, groups, activation = geometry
    present = [each for each in (x, weight, bias) if each is not None]
    if not all(each.is_cuda and each.device == x.device for each in present):
        return "the operands are not all on one CUDA device"
    if x.dtype not in NARROW or any(each.dtype != x.dtype for each in present):
        return "other than one dtype of f16 and bf16"
    if x.dim() not in (4, 5) or weight.dim() != x.dim() or transposed or groups != 1 or x.shape[1] != weight.shape[1]:
        return "only plain convolutions of pictures and films"
    if any(len(each) != x.dim() - 2 for each in (stride, padding, dilation)):
        return "a number for all directions"
    if activation not in ACTIVATIONS:
        return f"no epilogue for {activation}"
    if not (channels_innermost(x) and channels_innermost(weight)):
        return "the channels are not innermost"
    if bias is not None and (bias.shape != weight.shape[:1] or bias.stride(0) != 1):
        return "the bias is not a dense vector"
    if not all(_aligned(each) for each in present):
        return "operands that do not start at a multiple of 16 bytes"
    if min(result_shape(x, weight, *geometry[:3])) <= 0 or not x.numel() or not weight.numel():
        return "an empty result"
    return None


def takes_add(
    x: torch.Tensor, weight: torch.Tensor, bias: Optional, addend: torch.Tensor, *geometry: Any
) -> str | None:
    """The same of `conv_add`."""
    reason = takes_act(x, weight, bias, *geometry)
    if reason is not None:
        return reason
    if (
        addend.dtype != x.dtype
        or addend.device != x.device
        or tuple(addend.shape) != result_shape(x, weight, *geometry[:3])
    ):
        return "the addend broadcasts or promotes"
    if not _aligned(addend):
        return "the addend does not start at a multiple of 16 bytes"
    return None if channels_innermost(addend) else "the addend's channels are not innermost"


def enter(convolutions: Convolutions) -> None:
    """Adds the provider to both ops."""
    # torch holds the ops until the interpreter has ended, and the package prints which of its graphs are still there.
    atexit.register(convolutions.forget)
    act, add = convolutions.conv_act, convolutions.conv_add
    provide("conv_act", "cudnn", act, convolutions.supports_act, convolutions.act_configs, measured=True)
    provide("conv_add", "cudnn", add, convolutions.supports_add, convolutions.add_configs, measured=True)


def _without_plans(configs: Sequence[Config]) -> str | None:
    return None if configs else "cuDNN has no plan for it"


def _aligned(tensor: torch.Tensor) -> bool:
    return tensor.data_ptr() % _ALIGNED == 0


def _problem(operands: dict[str, Optional], geometry: Sequence[Any]) -> Problem:
    x, weight = operands["x"], operands["weight"]
    assert x is not None
    assert weight is not None
    return Problem(
        device=x.device,
        thread=threading.get_ident(),
        dtype=x.dtype,
        x=tuple(x.shape),
        weight=tuple(weight.shape),
        result=result_shape(x, weight, *geometry[:3]),
        bias=operands["bias"] is not None,
        addend=operands.get("addend") is not None,
        stride=tuple(geometry[0]),
        padding=tuple(geometry[1]),
        dilation=tuple(geometry[2]),
        activation=geometry[-1],
    )


if torch.cuda.is_available():
    enter(Convolutions(package()))
