"""Adapters of SDXL: switched, mixed, scaled and taken away between calls, without another trace or recording."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from real_pipelines import MERGED, Painter, adapter, expected, free, graphs, synchronise, traces, worst

import rewriter

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.filterwarnings("error::rewriter.RewriterWarning")]

RANK = 16
SWITCHES: dict[str, Callable[[Any], Any]] = {
    "A": lambda pipe: pipe.set_adapters("A"),
    "B": lambda pipe: pipe.set_adapters("B"),
    "A and B": lambda pipe: pipe.set_adapters(["A", "B"], [0.3, 0.7]),
    "half of A": lambda pipe: pipe.set_adapters("A", 0.5),
}


def load(subject: Painter) -> None:
    for seed, name in enumerate("AB"):
        subject.pipe.load_lora_weights(adapter(subject, rank=RANK, seed=seed), adapter_name=name)


def held(subject: Painter) -> int:
    """Bytes on the device, or where nobody counts these, bytes that the rewriter holds."""
    free(subject.place)
    if subject.place.cuda:
        return torch.cuda.memory_allocated(subject.place.device)
    return sum(part.memory for part in rewriter.report(subject.pipe).components.values())


def test_switching_adapters(painter: Callable[..., Painter], note: Callable[..., None], recordings: list[None]) -> None:
    subject = painter("sdxl")
    pipe = subject.pipe
    bare = expected(subject)
    load(subject)
    references = {}
    for name, switch in SWITCHES.items():
        switch(pipe)
        references[name] = expected(subject)
    pipe.unload_lora_weights()
    free(subject.place)

    subject.optimise()
    found = [bare.compare(subject.draw(), subject) for _ in range(3)]
    before_loading = held(subject)
    load(subject)
    SWITCHES["A"](pipe)
    for _ in range(3):
        subject.draw()
    before = traces(pipe), len(recordings)
    with_adapters = held(subject)
    for name in (*SWITCHES, "A"):
        SWITCHES[name](pipe)
        found.append(references[name].compare(subject.draw(), subject, MERGED))
    assert (traces(pipe), len(recordings)) == before
    seconds = _switching_seconds(subject)
    pipe.disable_lora()
    found.append(bare.compare(subject.draw(), subject))
    pipe.enable_lora()
    SWITCHES["B"](pipe)
    found.append(references["B"].compare(subject.draw(), subject, MERGED))
    pipe.unload_lora_weights()
    found += [bare.compare(subject.draw(), subject) for _ in range(2)]
    after = held(subject)
    parts = rewriter.report(pipe).components
    note(
        **worst(found),
        **seconds,
        traces=sum(traces(pipe).values()),
        recordings=len(recordings),
        graphs=graphs(pipe),
        gib_before=before_loading / 2**30,
        gib_with_adapters=with_adapters / 2**30,
        gib_after=after / 2**30,
        status={name: part.status for name, part in parts.items()},
    )
    assert parts["unet"].status == "optimised"
    assert traces(pipe) == before[0]
    assert after <= 1.01 * before_loading


def _switching_seconds(subject: Painter) -> dict[str, float]:
    """What a switch costs: it and the step after it, less a step without; and each by itself."""
    plain = min(subject.draw(num_inference_steps=1).seconds for _ in range(3))
    switches, steps = [], []
    for name in ("A", "B", "A and B"):
        gc.collect()
        synchronise(subject.place)
        start = time.perf_counter()
        SWITCHES[name](subject.pipe)
        synchronise(subject.place)
        switches.append(time.perf_counter() - start)
        steps.append(subject.draw(num_inference_steps=1).seconds)
    cost = max(switch + step - plain for switch, step in zip(switches, steps, strict=True))
    return {"switch_s": cost, "set_adapters_s": max(switches), "step_after_s": max(steps), "plain_step_s": plain}
