"""What lies between the matrix products over the tokens of SD1.5, SDXL, SVD-XT and Flux."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.cases import Case, Draw

Make = Callable[[Draw], tuple[Any, ...]]
_BF16 = torch.bfloat16

# Model, batch, tokens, channels.
_NORMS = (
    ("SD1.5 64x64", 2, 4096, 320),
    ("SD1.5 32x32", 2, 1024, 640),
    ("SD1.5 16x16", 2, 256, 1280),
    ("SD1.5 8x8", 2, 64, 1280),
    ("SDXL 64x64", 2, 4096, 640),
    ("SDXL 32x32", 2, 1024, 1280),
    ("SVD 72x128", 50, 9216, 320),
    ("SVD 36x64", 50, 2304, 640),
    ("SVD 18x32", 50, 576, 1280),
)
_FLUX = (("Flux single", 1, 4608, 3072), ("Flux image", 1, 4096, 3072), ("Flux text", 1, 512, 3072))


def _label(model: str, *extents: int) -> str:
    return f"{model}: {'x'.join(map(str, extents))}"


def _layer_norm(n: int, s: int, c: int) -> Make:
    return lambda d: (d(n, s, c), [c], d(c), d(c), 1e-5)


def _add_layer_norm(n: int, s: int, c: int, rows: int) -> Make:
    return lambda d: (d(n, s, c), d(n, rows, c), [c], d(c), d(c), 1e-5)


def _row(d: Draw, n: int, c: int, parts: int) -> list[torch.Tensor]:
    """Modulation as a block gets it: parts of one linear layer's result."""
    return [each.unsqueeze(1) for each in d(n, parts * c, dtype=_BF16).chunk(parts, dim=1)]


def _modulate(n: int, s: int, c: int) -> Make:
    return lambda d: (d(n, s, c, dtype=_BF16), [c], None, None, 1e-6, *_row(d, n, c, 6)[:2])


def _gated(n: int, s: int, c: int) -> Make:
    def make(d: Draw) -> tuple[Any, ...]:
        gate, scale, shift, *_ = _row(d, n, c, 6)
        return d(n, s, c, dtype=_BF16), gate, d(n, s, c, dtype=_BF16), [c], None, None, 1e-6, scale, shift

    return make


def _gate_add(n: int, s: int, c: int) -> Make:
    return lambda d: (d(n, s, c, dtype=_BF16), _row(d, n, c, 6)[0], d(n, s, c, dtype=_BF16))


def _heads(d: Draw, s: int) -> torch.Tensor:
    """Queries as they lie in the result of one linear layer for query, key and value: [1, S, 24, 128]."""
    return d(1, s, 3 * 3072, dtype=_BF16)[..., :3072].unflatten(-1, (-1, 128))


def _tables(d: Draw, s: int) -> tuple[torch.Tensor, torch.Tensor]:
    return d(1, s, 1, 128, dtype=torch.float32), d(1, s, 1, 128, dtype=torch.float32)


def _joint(d: Draw) -> tuple[Any, ...]:
    weights = d(128, dtype=_BF16), d(128, dtype=_BF16)
    return _heads(d, 512), weights[0], 1e-6, _heads(d, 4096), weights[1], 1e-6, *_tables(d, 4608)


def _blend_tokens(n: int, s: int, c: int) -> Make:
    return lambda d: (d(n, s, c), d(n, s, c), d(n, 1, 1))


def _blend_pixels(n: int, f: int, s: int, c: int) -> Make:
    return lambda d: (d(n * f, s, c), d(n, s, f, c).transpose(1, 2), [n * f, s, c], d(n * f, 1, 1))


def _blend_frames(n: int, f: int, c: int, h: int, w: int) -> Make:
    def frames(d: Draw) -> torch.Tensor:
        return d(n, f, h, w, c).permute(0, 4, 1, 2, 3)

    return lambda d: (frames(d), frames(d), d(n, 1, f, 1, 1))


def _values(d: Draw) -> tuple[torch.Tensor, torch.Tensor]:
    def slice_of(rows: int) -> torch.Tensor:
        return d(1, rows, 9216, dtype=_BF16)[..., 6144:].unflatten(-1, (24, 128))

    return slice_of(512), slice_of(4096)


def _flux_mlp(d: Draw) -> tuple[Any, ...]:
    x, left = d(1, 4608, 3072, dtype=_BF16), d(1, 4608, 3072, dtype=_BF16)
    return left, x, d(12288, 3072, dtype=_BF16, scale=3072**-0.5), d(12288, dtype=_BF16), "gelu_tanh"


CASES: list[Case] = [
    *(Case("layer_norm", _label(*shape), _layer_norm(*shape[1:])) for shape in _NORMS),
    *(Case("add_layer_norm", _label(*shape), _add_layer_norm(*shape[1:], shape[2])) for shape in _NORMS),
    *(
        Case("add_layer_norm", _label(*shape) + ", a row per frame", _add_layer_norm(*shape[1:], 1))
        for shape in _NORMS[6:]
    ),
    *(Case("layer_norm_modulate", _label(*shape), _modulate(*shape[1:])) for shape in _FLUX),
    *(Case("gate_add_layer_norm_modulate", _label(*shape), _gated(*shape[1:])) for shape in _FLUX),
    Case("gate_add_layer_norm_modulate", "SD3.5: 2x4096x1536", _gated(2, 4096, 1536)),
    *(Case("gate_add", _label(*shape), _gate_add(*shape[1:])) for shape in _FLUX),
    Case("rms_norm", "Flux image: 1x4096x24x128", lambda d: (_heads(d, 4096), [128], d(128, dtype=_BF16), 1e-6)),
    Case("rope", "Flux: 1x4608x24x128", lambda d: (d(1, 4608, 24, 128, dtype=_BF16), *_tables(d, 4608))),
    Case(
        "rms_norm_rope",
        "Flux single: 1x4608x24x128",
        lambda d: (_heads(d, 4608), d(128, dtype=_BF16), 1e-6, *_tables(d, 4608)),
    ),
    Case("rms_norm_rope_joint", "Flux double: 1x(512+4096)x24x128", _joint),
    Case("token_cat", "Flux double: 1x(512+4096)x24x128 of 3x24x128", _values),
    Case("linear_act_cat", "Flux single: 4608x3072 to 3072 + 12288", _flux_mlp),
    *(Case("blend", _label(*shape), _blend_tokens(*shape[1:])) for shape in _NORMS[6:]),
    Case("blend_reshaped", "SVD 72x128: 2x25x9216x320", _blend_pixels(2, 25, 9216, 320)),
    Case("blend_reshaped", "SVD 36x64: 2x25x2304x640", _blend_pixels(2, 25, 2304, 640)),
    Case("add_row", "SVD 72x128: 50x9216x320", lambda d: (d(50, 9216, 320), d(50, 1, 320))),
    Case("add_row", "SVD 72x128, frames: 18432x25x320", lambda d: (d(18432, 25, 320), d(18432, 1, 320))),
    Case("blend", "SVD 72x128, 5-D: 2x25x320", _blend_frames(2, 25, 320, 72, 128)),
    Case("blend", "SVD 36x64, 5-D: 2x25x640", _blend_frames(2, 25, 640, 36, 64)),
    Case("quick_gelu", "CLIP-L: 2x77x3072", lambda d: (d(2, 77, 3072),)),
]
