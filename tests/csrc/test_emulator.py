"""The emulated chip finds what a kernel does wrong: faults that are planted in the sources."""

from __future__ import annotations

import itertools
import pathlib

import pytest
import torch
from emulation import PACES, Chip, build, missing

FAULTS = {
    "a stage is given back while products read it": (
        "products.h",
        "await_products<1>();",
        "await_products<2>();",
        "another result|no thread can go on",
    ),
    "a stage is never given back": (
        "products.h",
        "if (step > begin && reader >= 0)",
        "if (false)",
        "no thread can go on",
    ),
    "another layout than the copy engine's": ("products.h", "kSwizzle128 = 1", "kSwizzle128 = 2", "128-byte swizzle"),
    "fewer bytes expected than come": (
        "fetching.h",
        "Shape::kLeft + Shape::kRight);\n      hopper::copy",
        "Shape::kLeft);\n      hopper::copy",
        "another result|no thread can go on",
    ),
    "a block ends while others tell its barriers something": (
        "convolution.cu",
        "  hopper::await_cluster();\n}\n",
        "}\n",
        "a block that has ended",
    ),
    "a stage is overwritten by sums while it is read": (
        "convolution.cu",
        "  hopper::meet(1, 256);\n",
        "",
        "another result",
    ),
    # Slower, not wrong: rows go through shared memory in the same order both ways.
    "rows that meet in a bank": ("results.h", "(chunk ^ (row & 7))", "(chunk ^ (row & 3))", None),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(tmp_path: pathlib.Path, fault: str) -> None:
    file, old, new, finding = FAULTS[fault]
    found = findings(planted(tmp_path, str(list(FAULTS).index(fault)), "convolution", file, old, new))
    if finding is None:
        assert not found
    else:
        assert any(each in text for each in finding.split("|") for text in found), found


def planted(tmp_path: pathlib.Path, name: str, kernel: str, file: str, old: str, new: str) -> Chip:
    """A chip whose kernel has one piece of its sources exchanged."""
    lacks = missing()
    if lacks is not None:
        pytest.skip(lacks)
    return Chip(build(tmp_path, f"rewriter_planted_{name}", [kernel], {file: (old, new)}))


def findings(chip: Chip) -> set[str]:
    """What is wrong with a convolution of nine taps, whatever the pace and the way that the work is shared."""
    torch.manual_seed(0)
    x, weight = (torch.randn(shape).half() for shape in ((1, 128, 1, 12, 16), (160, 128, 1, 3, 3)))
    x, weight = (each.contiguous(memory_format=torch.channels_last_3d) for each in (x, weight))
    exact = torch.nn.functional.conv3d(x.float(), weight.float(), padding=(0, 1, 1))
    found = set()
    for pace, (across, along, splits) in itertools.product(PACES, ((1, 1, 1), (1, 2, 1), (1, 1, 4))):
        chip.set(seed=1, pace=pace)
        y = torch.zeros(exact.shape, dtype=torch.float16).contiguous(memory_format=torch.channels_last_3d)
        try:
            chip.ops.convolution(x, weight, None, None, y, 1, 0, 1, 1, 1, 128, across, along, splits)
        except RuntimeError as error:
            found.add(str(error))
        else:
            if not (y.float() - exact).norm() < 1e-3 * exact.norm():
                found.add("another result")
    return found


def test_a_turn_that_is_waited_for_in_vain_is_found(tmp_path: pathlib.Path) -> None:
    mine, other = "hopper::meet(1 + own, 256)", "hopper::meet(1 + (own + 1) % kGroups, 256)"
    chip = planted(tmp_path, "turn", "attention", "attention.cu", mine, other)
    q, k, v, y = (torch.randn(1, 260, 1, 64).half() for _ in range(4))
    chip.set(seed=1, pace="early")
    with pytest.raises(RuntimeError, match="no thread can go on"):
        chip.ops.attention(q, k, v, y, 0.125, 3)
