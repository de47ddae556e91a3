"""Convolutions with what follows them: bias, an addition, an activation."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rewriter.ops.activation import activate
from rewriter.ops.registry import define


def conv_act(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    activation: str,
) -> torch.Tensor:
    """activation(convolution(x, weight) + bias).

    x: [N, C, ...] or [C, ...], weight: [K, C / groups, ...] ([C, K / groups, ...] where transposed), bias: [K] or
    None, the integers as in `aten::convolution`, activation: none|relu|sigmoid|tanh|silu. Result: as
    `aten::convolution` gives it. Raises ValueError for an unknown activation.
    """
    result = torch.convolution(
        x, weight, bias, stride, padding, dilation, transposed=transposed, output_padding=output_padding, groups=groups
    )
    return activate(result, activation)


def conv_add(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    addend: torch.Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    activation: str,
) -> torch.Tensor:
    """activation(convolution(x, weight) + bias + addend); operands as in `conv_act`.

    addend: any shape and dtype; the sum broadcasts and promotes as `+` does.
    """
    result = conv_act(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups, "none")
    return activate(result + addend, activation)


def result_shape(
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int] | None = None,
) -> tuple[int, ...]:
    """Of a plain convolution with a number for each direction. dilation: None is 1 in all of them."""
    sides = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation or (1,) * len(stride), strict=True)
    extents = [(extent + 2 * pad - gap * (size - 1) - 1) // step + 1 for extent, size, step, pad, gap in sides]
    return x.shape[0], weight.shape[0], *extents


_ARGUMENTS = (
    "int[] stride, int[] padding, int[] dilation, bool transposed, int[] output_padding, int groups, str activation"
)
define(f"conv_act(Tensor x, Tensor weight, Tensor? bias, {_ARGUMENTS}) -> Tensor", conv_act)
define(f"conv_add(Tensor x, Tensor weight, Tensor? bias, Tensor addend, {_ARGUMENTS}) -> Tensor", conv_add)
