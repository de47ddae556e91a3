"""Many sizes of one pipeline: one trace, a bounded number of recordings, memory that stays, and sizes made ahead."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from real_pipelines import APART, FLOORS, Painter, Place, expected, free, graphs, traces

import rewriter
from rewriter.capture.compare import relative_error

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.filterwarnings("error::rewriter.RewriterWarning")]

MOST_GRAPHS = 8


def sizes(place: Place) -> list[dict[str, int]]:
    """The largest first, so that the memory that all need is known early."""
    choice, unit, count = random.Random(0), *((64, 20) if place.full else (16, 10))
    made = [{"height": 10 * unit, "width": 10 * unit, "num_images_per_prompt": 2}]
    while len(made) < count:
        size = {
            "height": choice.randint(5, 10) * unit,
            "width": choice.randint(5, 10) * unit,
            "num_images_per_prompt": choice.randint(1, 2),
        }
        if size not in made:
            made.append(size)
    return made


def reserved(place: Place) -> int:
    free(place)
    return torch.cuda.memory_reserved(place.device) if place.cuda else 0


def test_many_sizes_of_one_pipeline(
    place: Place, painter: Callable[..., Painter], note: Callable[..., None], recordings: list[None]
) -> None:
    # Enough steps for the third call of a size, which records.
    subject = painter("sd15", num_inference_steps=5 if place.cuda else 2)
    wanted = sizes(place)
    eager = [subject.draw(**size).latents for size in wanted]
    some = expected(subject, **wanted[1])
    assert some.exact is not None
    own = relative_error(some.eager.latents, some.exact.latents)
    subject.optimise()
    errors, memory, most = [], [], 0
    for size, latents in zip(wanted, eager, strict=True):
        errors.append(relative_error(subject.draw(**size).latents, latents))
        most = max(most, *graphs(subject.pipe).values())
        memory.append(reserved(place))
    made, half = traces(subject.pipe), len(wanted) // 2 - 1

    ahead = {"height": wanted[-1]["width"] + 8, "width": wanted[-1]["height"], "num_images_per_prompt": 1}
    rewriter.warmup(subject.pipe, shapes=[(1, ahead["height"], ahead["width"])])
    before = len(recordings), traces(subject.pipe), eager_calls(subject)
    drawn = subject.draw(**ahead)
    after = len(recordings), traces(subject.pipe), eager_calls(subject)
    note(
        error=max(errors),
        eagers_error=own,
        ratio=max(errors) / max(own, 1e-12),
        traces=sum(made.values()),
        recordings=len(recordings),
        graphs=graphs(subject.pipe),
        most_graphs=most,
        reserved_gib=[round(each / 2**30, 2) for each in memory],
        first_s=drawn.seconds,
    )
    rewriter.restore(subject.pipe)
    errors.append(relative_error(drawn.latents, subject.draw(**ahead).latents))
    assert max(errors) <= APART * (own if place.full else 4 * own) + 4 * FLOORS[subject.dtype]
    assert made["unet"] == 1
    assert most <= MOST_GRAPHS
    assert before == after
    assert memory[-1] <= 1.05 * memory[half]


def eager_calls(subject: Painter) -> dict[str, int]:
    return {name: part.eager_calls for name, part in rewriter.report(subject.pipe).components.items()}
