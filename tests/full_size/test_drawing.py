"""Whole pipelines: optimised they draw as exactly as eagerly, and go on without another trace or recording."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from real_pipelines import Painter, expected, graphs, traces, worst

import rewriter

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.filterwarnings("error::rewriter.RewriterWarning")]

# Which networks of each a call from text leaves alone.
UNUSED = {
    "sd15": {"vae.encoder"},
    "sd15-controlnet": {"vae.encoder"},
    "sdxl": {"vae.encoder"},
    "svd-xt": set(),
    "flux-dev": {"vae.encoder"},
}


@pytest.mark.parametrize("architecture", UNUSED)
def test_a_pipeline_draws_as_exactly_as_eagerly(
    architecture: str, painter: Callable[..., Painter], note: Callable[..., None], recordings: list[None]
) -> None:
    subject = painter(architecture)
    reference = expected(subject, picture=True)
    again = subject.draw(picture=True)
    subject.optimise()
    pictures = [subject.draw(picture=True) for _ in range(2)]
    before = traces(subject.pipe), graphs(subject.pipe)[subject.denoiser_name], len(recordings)
    pictures.append(subject.draw(picture=True))
    after = traces(subject.pipe), graphs(subject.pipe)[subject.denoiser_name], len(recordings)
    parts = rewriter.report(subject.pipe).components
    note(
        **worst([reference.compare(each, subject) for each in pictures]),
        traces=sum(after[0].values()),
        recordings=after[2],
        graphs=graphs(subject.pipe),
        ready_s=pictures[0].seconds,
        eager_s=again.seconds,
        optimised_s=pictures[2].seconds,
        exact_known=reference.exact is not None,
        status={name: part.status for name, part in parts.items()},
    )
    assert {name: part.reason for name, part in parts.items() if part.status == "eager"} == {}
    assert {name for name, part in parts.items() if part.status == "pending"} == UNUSED[architecture]
    assert before[:2] == after[:2]
    # Decoders and text encoders are called once or twice a picture, and recorded at the third call.
    assert after[2] - before[2] <= len(parts) - len(UNUSED[architecture]) - 1
    _stays_half(subject)


def _stays_half(subject: Painter) -> None:
    """Autoencoders that are cast up for a picture have their own dtype again after it."""
    networks: list[Any] = [each for each in subject.pipe.components.values() if isinstance(each, torch.nn.Module)]
    assert {weight.dtype for each in networks for weight in each.parameters()} == {subject.dtype}
