"""Which launches of the group norms are worth timing at a shape, the best guess first."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton

from rewriter.ops.triton.device import multiprocessors

# Values that a program of whole groups holds: 64 for each thread of 16 warps.
_MOST_HELD = 32768
# Up to so many values, one launch is expected to beat two.
_SMALL = 16384
# Partial statistics that a program merges.
_MOST_ENTRIES = 4096
# Tile of places, channels, programs for each multiprocessor, warps.
_CHANNELS_INNER = ((64, 64, 4, 4),)
_PLACES_INNER = ((512, 8, 4, 4), (256, 16, 4, 4))


@dataclasses.dataclass(frozen=True)
class Shape:
    """What the choice depends on. inner: the channels lie densely in memory, not the places."""

    samples: int
    frames: int
    places: int
    channels: int
    groups: int
    inner: bool
    itemsize: int
    device: torch.device

    @property
    def size(self) -> int:
        """Channels of a group."""
        return self.channels // self.groups

    def members(self, width: int) -> int:
        """The most groups that a chunk of `width` channels touches, as a power of two."""
        if width % self.size == 0:
            return int(triton.next_power_of_2(min(width // self.size, self.groups)))
        if self.size % width == 0:
            return 1
        return int(triton.next_power_of_2(min((width + self.size - 2) // self.size + 1, self.groups)))

    def slots(self, width: int) -> int:
        """The most chunks of `width` channels that a group touches."""
        if width % self.size == 0:
            return 1
        if self.size % width == 0:
            return self.size // width
        return min((self.size + width - 2) // width + 1, int(triton.cdiv(self.channels, width)))


def configs_for(shape: Shape) -> Sequence[Mapping[str, Any]]:
    """Keywords of the two launchers, "algorithm" telling which."""
    whole, split = _whole(shape), _split(shape)
    if not whole:
        return split
    small = shape.frames * shape.places * shape.size <= _SMALL // 2
    return [whole[0], split[0]] if small else [*split[:2], whole[0]]


def _whole(shape: Shape) -> list[dict[str, Any]]:
    places = triton.next_power_of_2(shape.frames * shape.places)
    found = []
    for held in (1, 2, 4):
        elements = places * triton.next_power_of_2(held * shape.size)
        if shape.groups % held or elements > _MOST_HELD:
            continue
        # More groups at a time only where that makes accesses wider.
        before = (held // 2) * shape.size * shape.itemsize
        if held > 1 and (not shape.inner or before % 16 == 0):
            continue
        warps = min(16, max(1, triton.next_power_of_2(elements // 1024)))
        found.append({"algorithm": "whole", "held": held, "warps": warps})
        if 2 <= warps < 16 and elements >= 4096 and held == 1:
            found.append({"algorithm": "whole", "held": held, "warps": warps * 2})
    return found


def _split(shape: Shape) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for tile, width, programs, warps in _CHANNELS_INNER if shape.inner else _PLACES_INNER:
        width = min(width, triton.next_power_of_2(shape.channels))
        tile = min(tile, triton.next_power_of_2(shape.places))
        chunks = triton.cdiv(shape.channels, width)
        wanted = triton.cdiv(programs * multiprocessors(shape.device), shape.samples * shape.frames * chunks)
        merged = shape.members(width) * shape.slots(width) * shape.frames
        parts = max(1, min(wanted, triton.cdiv(shape.places, tile), _MOST_ENTRIES // merged))
        rows = triton.cdiv(triton.cdiv(shape.places, parts), tile) * tile
        config = {"tile": tile, "width": width, "parts": triton.cdiv(shape.places, rows), "warps": warps}
        config = {"algorithm": "split", **config}
        if config not in found:
            found.append(config)
    return found
