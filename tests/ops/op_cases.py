"""Calls of every op, each with the formula that gives its result."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from op_oracles import (
    ACTIVATIONS,
    add_group_norm,
    attention,
    attention_tokens,
    convolution,
    group_norm,
    layer_norm,
    linear,
    linear_geglu,
    rms_norm,
    rotated,
    silu,
    upsample_conv,
)

Draw = Callable[..., torch.Tensor]


def laid_out(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """The same values in another memory order; the tensor itself where its rank has no such order."""
    if layout == "channels_last" and tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        wide = torch.full((*tensor.shape[:-1], tensor.shape[-1] + 3), float("nan"), dtype=tensor.dtype)
        wide[..., 1:-2] = tensor
        return wide[..., 1:-2]
    if layout == "offset":
        return torch.cat([tensor.new_full((1,), float("nan")), tensor.flatten()])[1:].view(tensor.shape)
    if layout == "expanded" and tensor.shape[0] > 1:
        return tensor[:1].expand(tensor.shape)
    if layout == "permuted" and tensor.dim() > 2:
        return tensor.transpose(1, -1).contiguous().transpose(1, -1)
    return tensor


def drawer(dtype: torch.dtype, layout: str = "contiguous") -> Draw:
    """Draws tensors: draw(*shape) in the layout, draw(*shape, plain=True) as a weight."""
    generator = torch.Generator().manual_seed(7)

    def draw(*shape: int, plain: bool = False) -> torch.Tensor:
        tensor = (torch.randn(shape, generator=generator) + 0.25).to(dtype)
        return tensor if plain else laid_out(tensor, layout)

    return draw


@dataclasses.dataclass(frozen=True)
class Case:
    """One call: `arguments` draws it, `oracle` computes it from the same arguments in float64."""

    op: str
    name: str
    arguments: Callable[[Draw], tuple[Any, ...]]
    oracle: Callable[..., Any]

    def __str__(self) -> str:
        return f"{self.op}-{self.name}"


def norm_cases(op: str, oracle: Callable[..., Any]) -> list[Case]:
    def affine(draw: Draw, c: int) -> tuple[torch.Tensor, torch.Tensor]:
        return draw(c, plain=True), draw(c, plain=True)

    return [
        Case(op, "63", lambda draw: (draw(2, 63, 7, 5), 9, *affine(draw, 63), 1e-5), oracle),
        Case(op, "no-affine", lambda draw: (draw(3, 8, 3, 3), 2, None, None, 1e-6), oracle),
        Case(op, "rank-3", lambda draw: (draw(2, 6, 11), 3, *affine(draw, 6), 1e-5), oracle),
        Case(op, "rank-5", lambda draw: (draw(2, 4, 3, 2, 5), 4, *affine(draw, 4), 1e-5), oracle),
        Case(op, "weight-only", lambda draw: (draw(1, 5, 1, 9), 1, draw(5, plain=True), None, 1e-5), oracle),
    ]


def summed_cases(op: str, oracle: Callable[..., Any]) -> list[Case]:
    def rest(draw: Draw, c: int) -> tuple[Any, ...]:
        return 3, draw(c, plain=True), draw(c, plain=True), 1e-5

    return [
        Case(op, "residual", lambda draw: (draw(2, 9, 5, 7), None, draw(2, 9, 5, 7), *rest(draw, 9)), oracle),
        Case(op, "time", lambda d: (d(2, 9, 5, 7), d(9, plain=True), d(2, 9, 1, 1), *rest(d, 9)), oracle),
        Case(op, "bias", lambda d: (d(2, 9, 5, 7), d(9, plain=True), None, *rest(d, 9)), oracle),
        Case(op, "broadcast", lambda draw: (draw(1, 9, 5, 1), None, draw(2, 9, 5, 7), *rest(draw, 9)), oracle),
    ]


def convolution_cases() -> list[Case]:
    def conv_act(*arguments: Any) -> torch.Tensor:
        return ACTIVATIONS[arguments[-1]](convolution(*arguments[:-1]))

    def conv_add(x, weight, bias, addend, *rest: Any) -> torch.Tensor:
        return ACTIVATIONS[rest[-1]](convolution(x, weight, bias, *rest[:-1]) + addend)

    plain = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    strided = ([2, 1], [0, 1], [1, 2], False, [0, 0], 3)
    transposed = ([2, 2], [1, 1], [1, 1], True, [1, 1], 1)
    cases = [
        Case(
            "conv_act", act, lambda d, act=act: (d(2, 5, 7, 6), d(4, 5, 3, 3), d(4, plain=True), *plain, act), conv_act
        )
        for act in ("none", "relu", "sigmoid", "tanh", "silu")
    ]
    return [
        *cases,
        Case("conv_act", "groups", lambda d: (d(1, 6, 9, 8), d(3, 2, 3, 3), None, *strided, "silu"), conv_act),
        Case("conv_act", "transposed", lambda d: (d(2, 5, 4, 3), d(5, 3, 3, 3), None, *transposed, "relu"), conv_act),
        Case(
            "conv_add", "same", lambda d: (d(2, 5, 7, 6), d(4, 5, 3, 3), None, d(2, 4, 7, 6), *plain, "none"), conv_add
        ),
        Case(
            "conv_add", "row", lambda d: (d(2, 5, 7, 6), d(4, 5, 3, 3), None, d(2, 4, 1, 1), *plain, "silu"), conv_add
        ),
        Case(
            "conv_add", "wider", lambda d: (d(1, 5, 7, 6), d(4, 5, 3, 3), None, d(3, 4, 7, 6), *plain, "tanh"), conv_add
        ),
        Case("upsample_conv", "bias", lambda d: (d(2, 5, 7, 6), d(12, 5, 2, 2), d(3, plain=True)), upsample_conv),
        Case("upsample_conv", "one pixel", lambda d: (d(2, 3, 1, 1), d(8, 3, 2, 2), None), upsample_conv),
    ]


def linear_cases() -> list[Case]:
    def linear_act(x, weight, bias, activation):
        return ACTIVATIONS[activation](linear(x, weight, bias))

    def linear_add(x, weight, bias, residual):
        return linear(x, weight, bias) + residual

    def weights(draw: Draw, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        return draw(n, k, plain=True), draw(n, plain=True)

    def linear_act_cat(left, *rest):
        return torch.cat([left, linear_act(*rest)], -1)

    cases = [
        Case("linear_act", act, lambda d, act=act: (d(2, 5, 33), *weights(d, 17, 33), act), linear_act)
        for act in ACTIVATIONS
    ]
    return [
        *cases,
        Case("linear_act", "rank-1", lambda d: (d(9), d(4, 9, plain=True), None, "gelu"), linear_act),
        Case("linear_add", "same", lambda d: (d(2, 5, 33), *weights(d, 17, 33), d(2, 5, 17)), linear_add),
        Case("linear_add", "row", lambda d: (d(2, 5, 33), d(17, 33), None, d(1, 17)), linear_add),
        *(
            Case(
                "linear_act_cat",
                act,
                lambda d, act=act: (d(2, 5, 9), d(2, 5, 33), *weights(d, 17, 33), act),
                linear_act_cat,
            )
            for act in ("gelu_tanh", "quick_gelu", "none", "silu")
        ),
        Case("linear_geglu", "bias", lambda d: (d(2, 5, 33), *weights(d, 34, 33)), linear_geglu),
        Case("linear_geglu", "plain", lambda d: (d(3, 8), d(2, 8), None), linear_geglu),
    ]


def token_cases() -> list[Case]:
    def modulate(x, shape, weight, bias, eps, scale, shift):
        return layer_norm(x, shape, weight, bias, eps) * (1 + scale) + shift

    def add_layer_norm(x, residual, *rest):
        return layer_norm(x + residual, *rest), x + residual

    def gated_modulate(x, gate, y, *rest):
        return modulate(x + gate * y, *rest), x + gate * y

    def blended(x, y, weight):
        return weight * x + (1 - weight) * y

    def affine(draw: Draw, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
        return draw(*shape, plain=True), draw(*shape, plain=True)

    row = lambda d: (d(2, 1, 63), d(2, 1, 63))  # noqa: E731
    return [
        Case("layer_norm", "63", lambda d: (d(2, 5, 63), [63], *affine(d, 63), 1e-5), layer_norm),
        Case("layer_norm", "two-dims", lambda d: (d(2, 3, 5, 7), [5, 7], *affine(d, 5, 7), 1e-5), layer_norm),
        Case("layer_norm", "no-affine", lambda d: (d(4, 9), [9], None, None, 1e-6), layer_norm),
        Case("add_layer_norm", "63", lambda d: (d(2, 5, 63), d(2, 5, 63), [63], *affine(d, 63), 1e-5), add_layer_norm),
        Case("add_layer_norm", "row", lambda d: (d(1, 5, 9), d(2, 1, 9), [9], None, None, 1e-5), add_layer_norm),
        Case("layer_norm_modulate", "63", lambda d: (d(2, 5, 63), [63], None, None, 1e-6, *row(d)), modulate),
        Case("layer_norm_modulate", "affine", lambda d: (d(2, 5, 63), [63], *affine(d, 63), 1e-6, *row(d)), modulate),
        Case("rms_norm", "63", lambda d: (d(2, 5, 63), [63], d(63, plain=True), 1e-5), rms_norm),
        Case("rms_norm", "plain", lambda d: (d(2, 3, 5, 7), [5, 7], None, 1e-6), rms_norm),
        Case("gate_add", "row", lambda d: (d(2, 5, 9), d(2, 1, 9), d(2, 5, 9)), lambda x, gate, y: x + gate * y),
        Case("gate_add", "wider", lambda d: (d(9), d(2, 1, 9), d(1, 5, 1)), lambda x, gate, y: x + gate * y),
        Case(
            "gate_add_layer_norm_modulate",
            "63",
            lambda d: (d(2, 5, 63), d(2, 1, 63), d(2, 5, 63), [63], None, None, 1e-6, *row(d)),
            gated_modulate,
        ),
        Case(
            "gate_add_layer_norm_modulate",
            "affine",
            lambda d: (d(1, 5, 63), d(1, 1, 63), d(1, 5, 63), [63], *affine(d, 63), 1e-6, d(1, 1, 63), d(1, 1, 63)),
            gated_modulate,
        ),
        Case("blend", "frames", lambda d: (d(6, 5, 9), d(6, 5, 9), d(6, 1, 1)), blended),
        Case("blend", "rank-5", lambda d: (d(2, 4, 3, 5, 7), d(2, 4, 3, 5, 7), d(2, 1, 3, 1, 1)), blended),
        Case(
            "blend_reshaped",
            "frames",
            lambda d: (d(6, 5, 9), d(2, 5, 3, 9).transpose(1, 2), [6, 5, 9], d(6, 1, 1)),
            lambda x, y, size, weight: blended(x, y.reshape(size), weight),
        ),
        Case("quick_gelu", "63", lambda d: (d(2, 5, 63),), ACTIVATIONS["quick_gelu"]),
        Case("only_row", "63", lambda d: (d(3, 1, 7, 9),), lambda x: x.reshape(3, 1, 63)),
        Case("token_cat", "63", lambda d: (d(2, 5, 3, 7), d(2, 4, 3, 7)), lambda *parts: torch.hstack(parts)),
        Case("add_row", "63", lambda d: (d(2, 5, 63), d(2, 1, 63)), lambda x, row: x + row.expand(2, 5, 63)),
    ]


def rotary_cases() -> list[Case]:
    def joint(x, weight, eps, y, y_weight, y_eps, cos, sin):
        return rotated(torch.cat([rms_norm(x, [8], weight, eps), rms_norm(y, [8], y_weight, y_eps)], 1), cos, sin)

    def tables(draw: Draw, s: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
        return draw(1, s, 1, d, plain=True).float(), draw(1, s, 1, d, plain=True).float()

    def norm(draw: Draw, d: int, eps: float) -> tuple[torch.Tensor, float]:
        return draw(d, plain=True), eps

    return [
        Case("rope", "heads", lambda d: (d(2, 5, 3, 18), *tables(d, 5, 18)), rotated),
        Case("rope", "one-pair", lambda d: (d(1, 7, 1, 2), *tables(d, 7, 2)), rotated),
        Case(
            "rms_norm_rope",
            "heads",
            lambda d: (d(2, 5, 3, 18), *norm(d, 18, 1e-6), *tables(d, 5, 18)),
            lambda x, weight, eps, *t: rotated(rms_norm(x, [18], weight, eps), *t),
        ),
        Case(
            "rms_norm_rope",
            "no-weight",
            lambda d: (d(1, 3, 5, 8), None, 1e-5, *tables(d, 3, 8)),
            lambda x, weight, eps, *t: rotated(rms_norm(x, [8], weight, eps), *t),
        ),
        Case(
            "rms_norm_rope_joint",
            "two",
            lambda d: (d(2, 3, 5, 8), *norm(d, 8, 1e-5), d(2, 4, 5, 8), *norm(d, 8, 1e-6), *tables(d, 7, 8)),
            joint,
        ),
    ]


def attention_cases() -> list[Case]:
    hides = (torch.arange(13) < 11)[None]
    return [
        Case(
            "attention",
            "cross",
            lambda d: (d(2, 3, 7, 40), d(2, 3, 13, 40), d(2, 3, 13, 40), None, None, False),
            attention,
        ),
        Case(
            "attention", "causal", lambda d: (d(2, 3, 9, 8), d(2, 3, 9, 8), d(2, 3, 9, 8), None, 0.3, True), attention
        ),
        Case(
            "attention",
            "hide",
            lambda d: (d(1, 2, 7, 8), d(1, 2, 13, 8), d(1, 2, 13, 8), hides, None, False),
            attention,
        ),
        Case(
            "attention",
            "mask",
            lambda d: (d(2, 3, 7, 8), d(2, 3, 5, 8), d(2, 3, 5, 8), d(2, 1, 7, 5), 0.2, False),
            attention,
        ),
        Case("attention", "rank-3", lambda d: (d(6, 7, 16), d(6, 5, 16), d(6, 5, 16), None, 0.25, False), attention),
        Case(
            "attention_tokens",
            "cross",
            lambda d: (d(2, 7, 3, 40), d(2, 13, 3, 40), d(2, 13, 3, 40), None, None, False),
            attention_tokens,
        ),
        Case(
            "attention_tokens",
            "causal",
            lambda d: (d(2, 9, 3, 8), d(2, 9, 3, 8), d(2, 9, 3, 8), None, 0.3, True),
            attention_tokens,
        ),
    ]


CASES = [
    *norm_cases("group_norm", group_norm),
    *norm_cases("group_norm_silu", lambda *a: silu(group_norm(*a))),
    *summed_cases("add_group_norm", add_group_norm),
    *summed_cases("add_group_norm_silu", lambda *a: (silu(add_group_norm(*a)[0]), add_group_norm(*a)[1])),
    *summed_cases("sum_group_norm_silu", lambda *a: silu(add_group_norm(*a)[0])),
    *convolution_cases(),
    *linear_cases(),
    *token_cases(),
    *rotary_cases(),
    *attention_cases(),
]
