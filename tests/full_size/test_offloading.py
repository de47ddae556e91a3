"""Memory modes with the hooks that they have on a device, attached before and after optimising."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import accelerate
import pytest
import torch
from real_pipelines import Painter, Place, expected, graphs, worst

import rewriter

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.filterwarnings("error::rewriter.RewriterWarning")]

Mode = Callable[[Any, Place], None]


def model_offload(pipe: Any, place: Place) -> None:
    pipe.enable_model_cpu_offload(device=place.device)


def sequential_offload(pipe: Any, place: Place) -> None:
    if place.cuda:
        pipe.enable_sequential_cpu_offload(device=place.device)
        return
    # diffusers' own takes no CPU.
    for network in pipe.components.values():
        if isinstance(network, torch.nn.Module):
            accelerate.cpu_offload(network, execution_device=place.device, offload_buffers=True)


def group_offload(pipe: Any, place: Place, *, stream: bool) -> None:
    pipe.enable_group_offload(onload_device=place.device, offload_type="leaf_level", use_stream=stream)


def slicing_and_tiling(pipe: Any, _: Place) -> None:
    pipe.vae.enable_slicing()
    pipe.vae.enable_tiling()


# What is attached, and whether networks stay optimised with it.
MODES: dict[str, tuple[Mode, bool]] = {
    "model offload": (model_offload, True),
    "sequential offload": (sequential_offload, False),
    "group offload": (functools.partial(group_offload, stream=False), False),
    "group offload with a stream": (functools.partial(group_offload, stream=True), False),
    "slicing and tiling": (slicing_and_tiling, True),
}


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("mode", MODES)
def test_a_pipeline_draws_the_same(
    mode: str, order: str, place: Place, painter: Callable[..., Painter], note: Callable[..., None]
) -> None:
    attach, stays = MODES[mode]
    if "stream" in mode and not place.cuda:
        pytest.skip("a CPU has no streams")
    changes: dict[str, Any] = {}
    if attach is slicing_and_tiling:
        # Larger than one tile.
        side = 768 if place.full else 128
        changes = {"height": side, "width": side, "num_images_per_prompt": 2}
    subject = painter("sd15", **changes)
    pipe = subject.pipe
    if attach is slicing_and_tiling:
        # Tiles overlap and are blended, so eager draws otherwise with them than without.
        attach(pipe, place)
    reference = expected(subject, picture=True)
    if attach is slicing_and_tiling and order == "after":
        pipe.vae.disable_slicing()
        pipe.vae.disable_tiling()
    found = []
    if order == "before":
        attach(pipe, place)
    subject.optimise()
    if order == "after":
        first = subject.draw(picture=True)
        if attach is not slicing_and_tiling:
            found.append(reference.compare(first, subject))
        attach(pipe, place)
    pictures = [subject.draw(picture=True) for _ in range(2)]
    found += [reference.compare(each, subject) for each in pictures]
    parts = rewriter.report(pipe).components
    used = {name: part for name, part in parts.items() if part.calls}
    note(
        **worst(found),
        graphs=graphs(pipe),
        picture_s=pictures[-1].seconds,
        status={name: part.status for name, part in used.items()},
        reasons=sorted({part.reason for part in used.values() if part.reason}),
    )
    for name in ("unet", "vae.decoder"):
        assert parts[name].status == ("optimised" if stays else "eager"), (name, parts[name].reason)
        assert stays == (parts[name].reason is None)
    rewriter.restore(pipe)
    reference.compare(subject.draw(picture=True), subject)
