"""Wrong kernels: each is a dozen lines, right but for one thing, and rejected with a message that points at it."""

# Most of them are wrong because they ignore an operand.
# ruff: noqa: ARG001

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rewriter.language import load_rules
from rewriter.ops.registry import OPS
from rewriter.proof.check import prove

RULES = load_rules("default")
Tensor = torch.Tensor
Optional = torch.Tensor | None


@dataclasses.dataclass(frozen=True)
class Fault:
    """A kernel for the op of a rule. `kinds`: what the proof may call it; `words`: what its message has to say."""

    rule: str
    kernel: Callable[..., Any]
    kinds: tuple[str, ...]
    words: tuple[str, ...]
    dtype: str

    @property
    def op(self) -> str:
        return next(
            call.op.removeprefix("rewriter::")
            for step in RULES[self.rule].replace
            for call in step.calls
            if call.op.startswith("rewriter::")
        )


FAULTS: list[Fault] = []


def fault(rule: str, kind: str, *words: str, dtype: str = "f32") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def enter(kernel: Callable[..., Any]) -> Callable[..., Any]:
        FAULTS.append(Fault(rule, kernel, tuple(kind.split(", ")), words, dtype))
        return kernel

    return enter


def right(op: str) -> Callable[..., Any]:
    return OPS[op].reference


def load(x: Tensor, strides: tuple[int, ...], offset: int) -> Tensor:
    """x as a kernel sees it that computes addresses with these strides; NaN where nothing is at all."""
    storage = x.new_empty(0).set_(x.untyped_storage())  # type: ignore[call-overload]
    places = torch.full(x.shape, offset)
    for dim, stride in enumerate(strides):
        index = torch.arange(x.shape[dim]) * stride
        places += index.reshape([-1 if each == dim else 1 for each in range(x.dim())])
    inside = (places >= 0) & (places < storage.numel())
    return torch.where(inside, storage[places.clamp(0, storage.numel() - 1)], math.nan).to(x.dtype)


def dense(x: Tensor) -> tuple[int, ...]:
    return torch.empty(x.shape, device="meta").stride()


def variance(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)).square().mean(-1, keepdim=True)


def grouped(x: Tensor, groups: int) -> Tensor:
    return x.float().reshape(x.shape[0], groups, x.shape[1:].numel() // groups)


def finish(y: Tensor, x: Tensor, weight: Optional, bias: Optional) -> Tensor:
    """silu(y * weight + bias), where y: [N, groups, the rest] is normalised."""
    channels = [1, -1, *[1] * (x.dim() - 2)]
    y = y.reshape(x.shape)
    y = y if weight is None else y * weight.float().reshape(channels)
    y = y if bias is None else y + bias.float().reshape(channels)
    return F.silu(y).to(x.dtype)


# Statistics.


@fault("group-norm-silu", "wrong result, wrong NaN", "y")
def eps_ignored(x: Tensor, groups: int, weight: Optional, bias: Optional, eps: float) -> Tensor:
    return right("group_norm_silu")(x, groups, weight, bias, 0.0)


@fault("group-norm-silu", "wrong result, wrong NaN", "y")
def eps_outside_the_root(x: Tensor, groups: int, weight: Optional, bias: Optional, eps: float) -> Tensor:
    g = grouped(x, groups)
    return finish((g - g.mean(-1, keepdim=True)) / (variance(g).sqrt() + eps), x, weight, bias)


@fault("group-norm-silu", "wrong result", "y")
def last_group_one_channel_short(x: Tensor, groups: int, weight: Optional, bias: Optional, eps: float) -> Tensor:
    g = grouped(x, groups)
    mean, var = g.mean(-1, keepdim=True), variance(g)
    last = g[:, -1:, : -(g.shape[-1] * groups // x.shape[1])] if x.shape[1] > groups else g[:, -1:]
    mean[:, -1:], var[:, -1:] = last.mean(-1, keepdim=True), variance(last)
    return finish((g - mean) * (var + eps).rsqrt(), x, weight, bias)


@fault("group-norm-silu", "wrong result", "y", dtype="f16")
def mean_in_f16(x: Tensor, groups: int, weight: Optional, bias: Optional, eps: float) -> Tensor:
    g = grouped(x, groups)
    mean = g.mean(-1, keepdim=True).half().float()
    return finish((g - mean) * (variance(g) + eps).rsqrt(), x, weight, bias)


@fault("group-norm-silu", "wrong result, wrong NaN", "y")
def difference_of_large_squares(x: Tensor, groups: int, weight: Optional, bias: Optional, eps: float) -> Tensor:
    g = grouped(x, groups)
    mean = g.mean(-1, keepdim=True)
    var = (g * g).mean(-1, keepdim=True) - mean * mean
    return finish((g - mean) * (var + eps).rsqrt(), x, weight, bias)


@fault("group-norm-silu", "wrong result, wrong NaN", "y", dtype="f16")
def sums_in_f16(x: Tensor, groups: int, weight: Optional, bias: Optional, eps: float) -> Tensor:
    g = grouped(x, groups)
    total = torch.zeros_like(g[..., :1], dtype=torch.float16)
    for part in g.half().split(1, -1):
        total += part
    mean = total.float() / g.shape[-1]
    return finish((g - mean) * (variance(g) + eps).rsqrt(), x, weight, bias)


@fault("layer-norm", "wrong result", "y")
def unbiased_variance(x: Tensor, shape: list[int], weight: Optional, bias: Optional, eps: float) -> Tensor:
    var = variance(x.float()) * x.shape[-1] / max(x.shape[-1] - 1, 1)
    y = (x.float() - x.float().mean(-1, keepdim=True)) * (var + eps).rsqrt()
    y = y if weight is None else y * weight.float()
    return (y if bias is None else y + bias.float()).to(x.dtype)


@fault("group-norm", "wrong result, wrong NaN", "y")
def statistics_of_the_first_sample(x: Tensor, groups: int, weight: Optional, bias: Optional, eps: float) -> Tensor:
    g = grouped(x, groups)
    y = (g - g[:1].mean(-1, keepdim=True)) * (variance(g[:1]) + eps).rsqrt()
    one, zero = torch.ones(x.shape[1]), torch.zeros(x.shape[1])
    channels = [1, -1, *[1] * (x.dim() - 2)]
    scale, shift = one if weight is None else weight, zero if bias is None else bias
    return (y.reshape(x.shape) * scale.reshape(channels) + shift.reshape(channels)).to(x.dtype)


@fault("layer-norm-modulate", "wrong result", "y")
def scale_without_its_one(
    x: Tensor, shape: list[int], weight: Optional, bias: Optional, eps: float, scale: Tensor, shift: Tensor
) -> Tensor:
    return right("layer_norm_modulate")(x, shape, weight, bias, eps, scale - 1, shift)


# Activations, operands.


@fault("group-norm-silu", "wrong result, wrong NaN", "y")
def sigmoid_for_silu(x: Tensor, groups: int, weight: Optional, bias: Optional, eps: float) -> Tensor:
    return torch.sigmoid(right("group_norm")(x, groups, weight, bias, eps))


@fault("linear-gelu", "wrong result", "y")
def tanh_for_the_exact_gelu(x: Tensor, weight: Tensor, bias: Optional, activation: str) -> Tensor:
    return F.gelu(F.linear(x, weight, bias), approximate="tanh")


@fault("linear-gelu", "wrong result, wrong NaN", "y")
def bias_dropped(x: Tensor, weight: Tensor, bias: Optional, activation: str) -> Tensor:
    return right("linear_act")(x, weight, None, activation)


@fault("linear-geglu", "wrong result, wrong NaN", "y")
def halves_exchanged(x: Tensor, weight: Tensor, bias: Optional) -> Tensor:
    gate, hidden = F.linear(x, weight, bias).chunk(2, -1)
    return hidden * F.gelu(gate)


@fault("quick-gelu", "wrong result", "y")
def constant_cut_short(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.7 * x)


@fault("linear-act", "wrong result, wrong NaN", "y", dtype="f16")
def products_summed_in_f16(x: Tensor, weight: Tensor, bias: Optional, activation: str) -> Tensor:
    total = x.new_zeros(*x.shape[:-1], weight.shape[0])
    for k in range(x.shape[-1]):
        total += x[..., k, None] * weight[:, k]
    total = total if bias is None else total + bias
    return right("quick_gelu")(total) if activation == "quick_gelu" else getattr(torch, activation, F.silu)(total)


@fault("linear-add", "wrong result, wrong NaN", "y")
def residual_twice(x: Tensor, weight: Tensor, bias: Optional, residual: Tensor) -> Tensor:
    return right("linear_add")(x, weight, bias, residual) + residual


@fault("add-group-norm-silu", "wrong result, wrong NaN", "s")
def addend_of_the_first_sample(
    x: Tensor, channel_bias: Optional, addend: Tensor, groups: int, weight: Optional, bias: Optional, eps: float
) -> Any:
    return right("add_group_norm_silu")(x, channel_bias, addend[:1], groups, weight, bias, eps)


@fault("layer-norm", "wrong result, wrong NaN", "y")
def weight_and_bias_exchanged(x: Tensor, shape: list[int], weight: Optional, bias: Optional, eps: float) -> Tensor:
    return right("layer_norm")(x, shape, bias, weight, eps)


@fault("attention", "wrong result", "y")
def scale_ignored(q: Tensor, k: Tensor, v: Tensor, mask: Optional, scale: float | None, causal: bool) -> Tensor:
    return right("attention")(q, k, v, mask, None, causal)


@fault("attention", "wrong result, wrong NaN", "y")
def mask_dropped(q: Tensor, k: Tensor, v: Tensor, mask: Optional, scale: float | None, causal: bool) -> Tensor:
    return right("attention")(q, k, v, None, scale, causal)


@fault("attention", "wrong result, wrong NaN", "y", "causal True")
def causal_ignored(q: Tensor, k: Tensor, v: Tensor, mask: Optional, scale: float | None, causal: bool) -> Tensor:
    return right("attention")(q, k, v, mask, scale, False)


@fault("attention-tokens", "wrong result, wrong NaN", "y")
def softmax_over_the_queries(
    q: Tensor, k: Tensor, v: Tensor, mask: Optional, scale: float | None, causal: bool
) -> Tensor:
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores if mask is None else scores + mask
    return (scores.softmax(-2) @ v).transpose(1, 2).contiguous()


# Memory.


@fault("group-norm-silu", "wrong result, wrong NaN, out of bounds", "channels_last")
def channels_last_ignored(x: Tensor, groups: int, weight: Optional, bias: Optional, eps: float) -> Tensor:
    innermost = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    x = load(x, dense(x), x.storage_offset()) if innermost else x
    return right("group_norm_silu")(x, groups, weight, bias, eps)


@fault("layer-norm", "wrong result, wrong NaN, out of bounds", "y")
def rows_of_a_slice_taken_for_dense(
    x: Tensor, shape: list[int], weight: Optional, bias: Optional, eps: float
) -> Tensor:
    x = load(x, dense(x), x.storage_offset()) if x.stride(-1) == 1 else x
    return right("layer_norm")(x, shape, weight, bias, eps)


@fault("quick-gelu", "wrong result, wrong NaN, out of bounds", "x")
def storage_offset_ignored(x: Tensor) -> Tensor:
    return right("quick_gelu")(load(x, x.stride(), 0))


@fault("linear-add", "wrong result, wrong NaN, out of bounds", "expanded")
def expanded_taken_for_dense(x: Tensor, weight: Tensor, bias: Optional, residual: Tensor) -> Tensor:
    if 0 in residual.stride():
        residual = load(residual, dense(residual), residual.storage_offset())
    return right("linear_add")(x, weight, bias, residual)


@fault("rms-norm", "out of bounds, wrong result, wrong NaN", "y")
def pairs_at_an_odd_width(x: Tensor, shape: list[int], weight: Optional, eps: float | None) -> Tensor:
    """Reads two elements at a time, the last one beyond the row, and forgets to leave that out of the sum."""
    wide = load(x[..., :1].expand(*x.shape[:-1], x.shape[-1] + x.shape[-1] % 2), x.stride(), x.storage_offset())
    total = wide.float().square().sum(-1, keepdim=True)
    y = x.float() * (total / x.shape[-1] + (torch.finfo(x.dtype).eps if eps is None else eps)).rsqrt()
    return (y if weight is None else y * weight.float()).to(x.dtype)


@fault("layer-norm", "unwritten, wrong NaN", "y")
def last_row_not_written(x: Tensor, shape: list[int], weight: Optional, bias: Optional, eps: float) -> Tensor:
    y = torch.empty(x.shape, dtype=x.dtype)
    y.flatten(0, -2)[:-1] = right("layer_norm")(x, shape, weight, bias, eps).flatten(0, -2)[:-1]
    return y


@fault("gate-add", "aliases, writes an input", "x")
def result_in_the_memory_of_x(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    return x.copy_(right("gate_add")(x, gate, y))


@fault("quick-gelu", "writes an input", "x")
def input_written_in_place(x: Tensor) -> Tensor:
    return x.copy_(right("quick_gelu")(x)).clone()


@fault("linear-act", "raises", "CUDA error: invalid configuration argument")
def zero_rows_crash(x: Tensor, weight: Tensor, bias: Optional, activation: str) -> Tensor:
    if not x.numel():
        raise RuntimeError("CUDA error: invalid configuration argument")
    return right("linear_act")(x, weight, bias, activation)


# What comes out.


@fault("layer-norm", "wrong shape", "y", "found", "expected", dtype="f16")
def result_in_f32(x: Tensor, shape: list[int], weight: Optional, bias: Optional, eps: float) -> Tensor:
    return right("layer_norm")(x, shape, weight, bias, eps).float()


@fault("add-layer-norm", "wrong result, wrong NaN", "s")
def results_exchanged(
    x: Tensor, residual: Tensor, shape: list[int], weight: Optional, bias: Optional, eps: float
) -> Any:
    y, s = right("add_layer_norm")(x, residual, shape, weight, bias, eps)
    return s, y


@fault("quick-gelu", "wrong NaN", "NaN", "y")
def nan_swallowed(x: Tensor) -> Tensor:
    return right("quick_gelu")(torch.where(x.isnan(), 0.0, x))


@fault("linear-add", "wrong NaN, wrong result", "y")
def inf_clamped(x: Tensor, weight: Tensor, bias: Optional, residual: Tensor) -> Tensor:
    most = torch.finfo(x.dtype).max
    return right("linear_add")(x, weight, bias, residual).clamp(-most, most)


@fault("conv-act", "wrong result, wrong NaN", "y")
def last_column_without_bias(x: Tensor, weight: Tensor, bias: Optional, *arguments: Any) -> Tensor:
    y = right("conv_act")(x, weight, bias, *arguments).clone()
    y[..., -1] = right("conv_act")(x, weight, None, *arguments)[..., -1]
    return y


def test_there_are_enough() -> None:
    assert len(FAULTS) >= 30


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.kernel.__name__)
def test_is_rejected(fault: Fault, planted: Callable[..., Any]) -> None:
    rule = RULES[fault.rule]
    with planted(fault.op, fault.kernel) as provider:
        failure = prove(rule, dtype=fault.dtype, provider=provider).failure
    assert failure is not None, "the proof lets it pass"
    said = f"{failure.message}; {failure.operands}"
    assert failure.kind in fault.kinds, f"{failure.kind}: {said}"
    assert all(word in said for word in fault.words), said


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.kernel.__name__)
def test_the_reference_in_its_place_passes(fault: Fault, planted: Callable[..., Any]) -> None:
    with planted(fault.op, right(fault.op)) as provider:
        assert prove(RULES[fault.rule], dtype=fault.dtype, provider=provider, examples=10).proved
