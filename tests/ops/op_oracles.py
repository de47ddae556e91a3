"""What the ops compute, out of elementary operations: for operands in float64."""

import torch


def normalised(x: torch.Tensor, dims: list[int], eps: float) -> torch.Tensor:
    return (x - x.mean(dims, keepdim=True)) / (x.var(dims, correction=0, keepdim=True) + eps).sqrt()


def channels(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return weight.view(-1, *[1] * (x.dim() - 2))


def group_norm(x, groups, weight, bias, eps):
    grouped = x.reshape(x.shape[0], groups, -1)
    y = normalised(grouped, [2], eps).reshape(x.shape)
    y = y if weight is None else y * channels(weight, x)
    return y if bias is None else y + channels(bias, x)


def add_group_norm(x, channel_bias, addend, *rest):
    total = x if channel_bias is None else x + channels(channel_bias, x)
    total = total if addend is None else total + addend
    return group_norm(total, *rest), total


def layer_norm(x, shape, weight, bias, eps):
    y = normalised(x, list(range(-len(shape), 0)), eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def rms_norm(x, shape, weight, eps):
    y = x / ((x * x).mean(list(range(-len(shape), 0)), keepdim=True) + eps).sqrt()
    return y if weight is None else y * weight


def silu(x):
    return x / (1 + (-x).exp())


def gelu(x):
    return x * (1 + torch.erf(x / 2**0.5)) / 2


ACTIVATIONS = {
    "none": lambda x: x,
    "relu": lambda x: x.clamp(min=0),
    "sigmoid": lambda x: 1 / (1 + (-x).exp()),
    "tanh": torch.tanh,
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": lambda x: x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2,
    "quick_gelu": lambda x: x / (1 + (-1.702 * x).exp()),
}


def linear(x, weight, bias):
    y = torch.einsum("...k,nk->...n", x, weight)
    return y if bias is None else y + bias


def linear_geglu(x, weight, bias):
    y = linear(x, weight, bias)
    half = y.shape[-1] // 2
    return y[..., :half] * gelu(y[..., half:])


def upsample_conv(x, weight, bias):
    height, width = x.shape[2:]
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    windows = [padded[:, :, r : r + height + 1, c : c + width + 1] for r in (0, 1) for c in (0, 1)]
    phases = [torch.nn.functional.conv2d(*each) for each in zip(windows, weight.chunk(4), strict=True)]
    pairs = [torch.stack(row, -1).flatten(-2) for row in (phases[:2], phases[2:])]
    y = torch.stack(pairs, -2).flatten(-3, -2)
    return y if bias is None else y + bias[:, None, None]


def convolution(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups):
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    if transposed:
        return torch.nn.functional.conv_transpose2d(x, weight, bias, output_padding=output_padding, **options)
    return torch.nn.functional.conv2d(x, weight, bias, **options)


def attention(q, k, v, mask, scale, causal):
    scores = torch.einsum("...sd,...td->...st", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return torch.einsum("...st,...td->...sd", scores.softmax(-1), v)


def attention_tokens(q, k, v, *rest):
    return attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), *rest).transpose(1, 2)


def rotated(x, cos, sin):
    even, odd = x[..., ::2], x[..., 1::2]
    y = torch.empty_like(x.expand(torch.broadcast_shapes(x.shape, cos.shape)))
    y[..., ::2] = even * cos[..., ::2] - odd * sin[..., ::2]
    y[..., 1::2] = odd * cos[..., 1::2] + even * sin[..., 1::2]
    return y
