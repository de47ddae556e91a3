"""Every change of a module that a trace could have baked in is noticed."""

# ruff: noqa: ARG001 (what is called here has a signature given from outside)

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch

from rewriter.capture.state import Snapshot


class Processor:
    def __init__(self) -> None:
        self.scale = [1.0, 0.5]
        self.options: dict[str, object] = {"rank": 4, "nested": {"alpha": 1.0}}


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 2, 3)
        self.norm = torch.nn.GroupNorm(1, 2)
        self.processor = Processor()
        self.mode = "sum"
        self.table = torch.arange(3)
        self.register_buffer("seen", torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x))


def tree() -> torch.nn.Module:
    return torch.nn.Sequential(Block(), Block()).eval()


def first(root: torch.nn.Module) -> Block:
    block = root[0]  # type: ignore[index]
    assert isinstance(block, Block)
    return block


def other_forward(self: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x


class OtherBlock(Block):
    pass


CHANGES: dict[str, Callable[[torch.nn.Module], object]] = {
    "attribute": lambda root: setattr(first(root), "mode", "mean"),
    "new attribute": lambda root: setattr(first(root), "s1", 0.9),
    "attribute of the root": lambda root: setattr(root, "gradient_checkpointing", True),
    "removed attribute": lambda root: delattr(first(root), "mode"),
    "padding mode": lambda root: setattr(first(root).conv, "padding_mode", "circular"),
    "number to bool": lambda root: setattr(first(root).norm, "num_groups", True),
    "list of a processor": lambda root: first(root).processor.scale.__setitem__(0, 0.3),
    "longer list": lambda root: first(root).processor.scale.append(0.3),
    "nested dict": lambda root: first(root).processor.options["nested"].update(alpha=2.0),  # type: ignore[attr-defined]
    "other class": lambda root: setattr(first(root), "__class__", OtherBlock),
    "patched forward": lambda root: setattr(first(root), "forward", other_forward.__get__(first(root))),
    "child": lambda root: setattr(first(root), "norm", torch.nn.Identity()),
    "removed child": lambda root: root.__delitem__(1),  # type: ignore[operator]
    "training": lambda root: first(root).train(),
    "dtype": lambda root: first(root).conv.half(),
    "shape": lambda root: setattr(first(root).conv, "weight", torch.nn.Parameter(torch.zeros(2, 2, 1, 1))),
    "no bias": lambda root: setattr(first(root).conv, "bias", None),
    "new buffer": lambda root: first(root).register_buffer("extra", torch.zeros(1)),
    "baked tensor in place": lambda root: first(root).table.add_(1),
    "other baked tensor": lambda root: setattr(first(root), "table", torch.arange(3)),
    "tied weight": lambda root: setattr(root[1].conv, "weight", first(root).conv.weight),  # type: ignore[index]
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(change: str) -> None:
    root = tree()
    before = Snapshot(root)
    assert before.unchanged(root)
    CHANGES[change](root)
    assert not before.unchanged(root)
    assert Snapshot(root).fingerprint != before.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        lambda root: setattr(first(root).conv, "weight", torch.nn.Parameter(torch.zeros(2, 2, 3, 3))),
        lambda root: setattr(first(root).conv.weight, "data", torch.zeros(2, 2, 3, 3)),
        lambda root: setattr(first(root), "processor", Processor()),
        lambda root: setattr(first(root), "mode", "".join(["s", "um"])),
        lambda root: first(root).conv.half().float(),
    ],
)
def test_what_amounts_to_the_same_has_the_same_fingerprint(change: Callable[[torch.nn.Module], object]) -> None:
    root = tree()
    before = Snapshot(root)
    change(root)
    after = Snapshot(root)
    assert after.fingerprint == before.fingerprint
    assert after.unchanged(root)
    assert after.names == before.names
    assert after.weights[after.names.index("0.conv.weight")] is first(root).conv.weight


def test_weights_written_in_place_are_no_change() -> None:
    root = tree()
    before = Snapshot(root)
    with torch.no_grad():
        first(root).conv.weight.mul_(2)
    assert before.unchanged(root)


def test_hooks_below_the_root_block_capture_and_say_where() -> None:
    root = tree()
    root.register_forward_hook(lambda *_: None)
    assert Snapshot(root).blocked is None
    before = Snapshot(root)
    handle = first(root).conv.register_forward_pre_hook(lambda *_: None)
    assert not before.unchanged(root)
    assert "submodule 0.conv has a forward hook" in str(Snapshot(root).blocked)
    handle.remove()
    assert Snapshot(root).blocked is None


def test_meta_and_inference_weights_block_capture() -> None:
    assert "meta" in str(Snapshot(tree().to("meta")).blocked)
    with torch.inference_mode():
        made = tree()
    assert "inference_mode" in str(Snapshot(made).blocked)


def test_restore_puts_attributes_and_containers_back() -> None:
    root = tree()
    before = Snapshot(root)
    block = first(root)
    block.mode, block.extra = "mean", 1  # type: ignore[assignment]
    block.processor.scale[0] = 7.0
    block.processor.options["nested"] = {}
    del block.conv.padding_mode
    root.added = True  # type: ignore[assignment]
    before.restore(root)
    assert Snapshot(root).fingerprint == before.fingerprint
    assert before.unchanged(root)


def test_a_snapshot_does_not_keep_its_root_alive() -> None:
    import gc
    import weakref

    root = tree()
    snapshot = Snapshot(root)
    gc.disable()
    try:
        gone = weakref.ref(root)
        del root
        assert gone() is None
    finally:
        gc.enable()
    assert snapshot.names


def test_the_quick_check_calls_no_more_python_for_more_modules() -> None:
    """It runs before every step: all that grows with the module tree has to happen in C, but for constant tensors."""

    def calls(blocks: int) -> int:
        root = torch.nn.Sequential(*(Block() for _ in range(blocks))).eval()
        for block in root:
            del block.table
        snapshot = Snapshot(root)
        seen = 0

        def count(_frame: object, event: str, _argument: object) -> None:
            nonlocal seen
            seen += event == "call"

        sys.setprofile(count)
        try:
            same = snapshot.unchanged(root)
        finally:
            sys.setprofile(None)
        assert same
        return seen

    assert 0 < calls(240) == calls(2)
