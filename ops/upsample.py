"""A convolution of a picture twice as high and wide, computed from the small one."""

from __future__ import annotations

import torch

from rewriter.ops.registry import define


def upsample_conv(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """convolution(upsampled(x), filters) + bias, for filters of 3x3 pixels and a padding of 1.

    Upsampled by two to the nearest, a filter's three pixels in a row are two pixels of x: four ninths of the products
    remain. x: [N, C, H, W], weight: [4 M, C, 2, 2], what `prepare::upsampled` makes of the filters [M, C, 3, 3]: M for
    even rows and even columns of the result, then for odd columns, then both for odd rows. bias: [M] or None. Result:
    [N, M, 2 H, 2 W], as a convolution of x is laid out.
    """
    repeated = None if bias is None else bias.repeat(4)
    # Of each place between pixels, edges included: the odd ones are those one further.
    found = torch.convolution(
        x, weight, repeated, [1, 1], [1, 1], [1, 1], transposed=False, output_padding=[0, 0], groups=1
    )
    height, width = x.shape[2:]
    images, filters = found.shape[0], found.shape[1] // 4
    memory = torch.channels_last if channels_innermost(found) else torch.contiguous_format
    result = torch.empty((images, filters, 2 * height, 2 * width), dtype=x.dtype, device=x.device, memory_format=memory)
    for phase, part in enumerate(found.split(filters, 1)):
        down, right = divmod(phase, 2)
        result[:, :, down::2, right::2] = part[:, :, down : down + height, right : right + width]
    return result


def channels_innermost(tensor: torch.Tensor) -> bool:
    """Whether the tensor is dense with its channels innermost, by its strides where an extent of 1 leaves a choice."""
    step = 1
    for dim in (1, *range(tensor.dim() - 1, 1, -1), 0):
        if tensor.shape[dim] != 1 and tensor.stride(dim) != step:
            return False
        step *= tensor.shape[dim]
    return True


define("upsample_conv(Tensor x, Tensor weight, Tensor? bias) -> Tensor", upsample_conv)
