"""What changes between calls takes effect where kernels are replayed: scales, guidance, texts, in place and anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from real_pipelines import APART, FLOORS, MERGED, Painter, adapter, expected, graphs, noise, traces, worst

import rewriter
from rewriter.capture.compare import relative_error
from rewriter.models.denoiser_inputs import denoiser_inputs

pytestmark = [
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("error::rewriter.RewriterWarning"),
]

CHANGES: tuple[dict[str, Any], ...] = (
    {},
    {"controlnet_conditioning_scale": 0.3},
    {"guidance_scale": 2.5},
    {"controlnet_conditioning_scale": 0.0, "guidance_scale": 2.5},
    {"guidance_scale": 1.0},
    {"prompt": "a harbour in the rain"},
    {"cross_attention_kwargs": {"scale": 0.3}},
    {},
)


def test_numbers_of_a_pipeline_take_effect(
    painter: Callable[..., Painter], note: Callable[..., None], recordings: list[None]
) -> None:
    subject = painter("sd15-controlnet")
    subject.pipe.load_lora_weights(adapter(subject, rank=4, seed=0), adapter_name="one")
    references = [expected(subject, **change) for change in CHANGES]
    subject.optimise()
    for _ in range(2):
        subject.draw()
        subject.draw(guidance_scale=1.0)
    before = len(recordings)
    drawn = [subject.draw(**change) for change in CHANGES]
    found = [reference.compare(each, subject, MERGED) for reference, each in zip(references, drawn, strict=True)]
    note(
        **worst(found),
        traces=sum(traces(subject.pipe).values()),
        recordings=len(recordings),
        graphs=graphs(subject.pipe),
    )
    for one, other, change in zip(drawn, drawn[1:], CHANGES[1:], strict=False):
        assert relative_error(one.latents, other.latents) > 1e-3, f"without effect: {change}"
    assert relative_error(drawn[0].latents, drawn[-1].latents) <= FLOORS[subject.dtype]
    # One for a call with one row and one for a call with two, but for what scales turn into constants.
    assert traces(subject.pipe)["unet"] <= 2
    # A kernel is launched with the ControlNet's scale, so each value has a recording, for one row and for two.
    scales = {change.get("controlnet_conditioning_scale") for change in CHANGES}
    assert len(recordings) - before <= 2 * len(scales)


def test_inputs_that_change_in_place_take_effect(
    place: Any, painter: Callable[..., Painter], note: Callable[..., None], recordings: list[None]
) -> None:
    subject = painter("sd15")
    network, inputs = subject.denoiser, _inputs(subject)
    text, sample = inputs["encoder_hidden_states"].clone(), inputs["sample"].clone()
    other = subject.cast(noise(*text.shape, seed=7))

    def call(given: Mapping[str, Any]) -> torch.Tensor:
        result: torch.Tensor = network(**given)[0].detach().to("cpu", torch.float32)
        return result

    cases = {
        "plain": inputs,
        "text": {**inputs, "encoder_hidden_states": other},
        "sample": {**inputs, "sample": -sample},
    }
    eager = {name: call(given) for name, given in cases.items()}
    with subject.widened():
        wide = {name: {key: _cast(value, subject) for key, value in given.items()} for name, given in cases.items()}
        own = max(relative_error(eager[name], call(given)) for name, given in wide.items())
    limit = APART * own + 1e-4
    place.optimise(network)
    errors = [relative_error(call(inputs), eager["plain"]) for _ in range(6)]
    before = len(recordings)
    for _ in range(2):
        inputs["encoder_hidden_states"].copy_(other)
        errors.append(relative_error(call(inputs), eager["text"]))
        inputs["encoder_hidden_states"].copy_(text)
        errors.append(relative_error(call(inputs), eager["plain"]))
        errors.append(relative_error(call({**inputs, "encoder_hidden_states": other}), eager["text"]))
        errors.append(relative_error(call({**inputs, "encoder_hidden_states": text.clone()}), eager["plain"]))
        inputs["sample"].neg_()
        errors.append(relative_error(call(inputs), eager["sample"]))
        inputs["sample"].neg_()
        errors.append(relative_error(call(inputs), eager["plain"]))
    note(
        error=max(errors),
        eagers_error=own,
        ratio=max(errors) / max(own, 1e-12),
        recordings=len(recordings),
        graphs=graphs(network),
    )
    assert max(errors) <= limit
    assert relative_error(eager["text"], eager["plain"]) > 4 * limit, "the text has no effect that would be seen"
    assert len(recordings) == before
    (part,) = rewriter.report(network).components.values()
    assert (part.status, part.captures) == ("optimised", 1)


def _inputs(subject: Painter) -> dict[str, Any]:
    """One call of the denoiser for a picture with and without the text."""
    height, width = subject.call["height"], subject.call["width"]
    return denoiser_inputs(
        subject.pipe, subject.denoiser_name, batch=2, height=height, width=width, seed=0, text_length=None
    )


def _cast(value: Any, subject: Painter) -> Any:
    floating = isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim()
    return subject.cast(value) if floating else value
