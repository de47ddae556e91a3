"""The convolutions of SD1.5 and SDXL that have few pixels for their filters, and some that have many."""

from __future__ import annotations

from typing import Any

from benchmarks.cases import Case, Draw

# Model, images, channels, height and width, filters, kernel, stride.
_PLAIN = (
    ("SD1.5", 2, 1280, 8, 1280, 3, 1),
    ("SD1.5", 2, 2560, 8, 1280, 3, 1),
    ("SD1.5", 2, 1280, 16, 1280, 3, 2),
    ("SD1.5, batch 1", 1, 1280, 8, 1280, 3, 1),
    ("SD1.5, batch 8", 8, 1280, 8, 1280, 3, 1),
    ("SD1.5", 2, 1280, 16, 1280, 3, 1),
    ("SD1.5", 2, 2560, 8, 1280, 1, 1),
)
_ADDED = (
    ("SD1.5", 2, 1280, 8, 1280, 3, 1),
    ("SD1.5", 2, 1280, 16, 1280, 3, 1),
)
# Model, images, channels, height and width before, filters.
_UPSAMPLED = (
    ("SD1.5", 2, 1280, 16, 1280),
    ("SD1.5", 2, 640, 32, 640),
    ("SDXL", 2, 1280, 32, 1280),
    ("SDXL", 2, 640, 64, 640),
    ("VAE of SD1.5", 1, 512, 128, 512),
    ("VAE of SD1.5", 1, 256, 256, 256),
)
_REST = ([1, 1], False, [0, 0], 1, "none")


def _operands(draw: Draw, images: int, channels: int, size: int, filters: int, kernel: int) -> tuple[Any, Any, Any]:
    x = draw(images, channels, size, size, channels_last=True)
    deviation = (channels * kernel * kernel) ** -0.5
    return x, draw(filters, channels, kernel, kernel, channels_last=True, scale=deviation), draw(filters)


def _plain(images: int, channels: int, size: int, filters: int, kernel: int, stride: int) -> Any:
    def make(draw: Draw) -> tuple[Any, ...]:
        x, weight, _ = _operands(draw, images, channels, size, filters, kernel)
        return x, weight, None, [stride] * 2, [kernel // 2] * 2, *_REST

    return make


def _added(images: int, channels: int, size: int, filters: int, kernel: int, stride: int) -> Any:
    def make(draw: Draw) -> tuple[Any, ...]:
        addend = draw(images, filters, size // stride, size // stride, channels_last=True)
        operands = _operands(draw, images, channels, size, filters, kernel)
        return *operands, addend, [stride] * 2, [kernel // 2] * 2, *_REST

    return make


def _upsampled(images: int, channels: int, size: int, filters: int) -> Any:
    def make(draw: Draw) -> tuple[Any, ...]:
        x = draw(images, channels, size, size, channels_last=True)
        weight = draw(4 * filters, channels, 2, 2, channels_last=True, scale=(4 * channels) ** -0.5)
        return x, weight, draw(filters)

    return make


def _label(model: str, images: int, channels: int, size: int, filters: int, kernel: int, stride: int) -> str:
    step = "" if stride == 1 else f", stride {stride}"
    return f"{model}: {images}x{channels}x{size}x{size} to {filters}, {kernel}x{kernel}{step}"


CASES: list[Case] = [
    *(Case("conv_act", _label(model, *sizes), _plain(*sizes)) for model, *sizes in _PLAIN),
    *(Case("conv_add", _label(model, *sizes), _added(*sizes)) for model, *sizes in _ADDED),
    *(
        Case("upsample_conv", f"{model}: {sizes[0]}x{sizes[1]}x{sizes[2]}x{sizes[2]} to {sizes[3]}", _upsampled(*sizes))
        for model, *sizes in _UPSAMPLED
    ),
]
