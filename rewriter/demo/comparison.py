"""Runs a pipeline eagerly and optimised: the same seeds, times in turns, how far the pictures are apart."""

from __future__ import annotations

import copy
import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import rewriter
from rewriter.demo.drawing import Pictures
from rewriter.demo.result import Timing
from rewriter.demo.stopwatch import Lap, timed_call
from rewriter.errors import UnknownTarget
from rewriter.models import Target

_TIMING_SECONDS = 15.0
_MOST_ROUNDS = 30
_SEVERAL_PICTURES_SECONDS = 2.0
# A pipeline up to this size is kept twice, so that eager and optimised calls can take turns.
_TWIN_BYTES = 2 << 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """What both ways drew and took. `eager` and `optimised` pictures: [N, H, W, C] in 0..1."""

    eager: Pictures
    optimised: Pictures
    columns: int
    eager_timing: Timing
    optimised_timing: Timing
    speedup: float
    first_call_seconds: float
    steps: int
    rounds: int
    interleaved: bool
    report: Any

    @property
    def difference(self) -> Pictures:
        return self.optimised - self.eager

    @property
    def max_difference(self) -> float:
        return float(np.abs(self.difference).max())

    @property
    def relative_difference(self) -> float:
        size = float(np.linalg.norm(self.eager.astype(np.float64)))
        gap = float(np.linalg.norm(self.difference.astype(np.float64)))
        return gap / size if size else gap


def compare(target: Target, *, rules: Any, seed: int, steps: int | None) -> Comparison:
    """Draws with the eager pipeline, optimises it, draws the same seeds again, and times both.

    Small pipelines are kept twice: after a warm-up of each, their calls take turns, another one first in each round.
    Larger ones are timed one after the other; where a single call takes many seconds, eager has no warm-up. The
    pipeline is left optimised.
    Raises UnknownTarget where the pipeline gives no pictures, and what `rewriter.optimize` raises.
    """
    with tqdm(desc="drawing", unit="call", delay=2, leave=False) as bar:
        return _Run(target, rules, seed, steps, bar).compare()


class _Run:
    def __init__(self, target: Target, rules: Any, seed: int, steps: int | None, bar: Any) -> None:
        self.target, self.rules, self.seed, self.steps, self.bar = target, rules, seed, steps, bar
        self.device = next(getattr(target.pipeline, target.denoiser).parameters()).device

    def compare(self) -> Comparison:
        pipeline = self.target.pipeline
        interleaved = _bytes(pipeline) <= _TWIN_BYTES
        eager = _twin(pipeline) if interleaved else pipeline
        first = self.call(eager, self.seed, "eager")
        seeds = range(self.seed, self.seed + (4 if self.several(first) else 1))
        self.bar.total = 2 * len(seeds) + 1 + 2 * _rounds(2 * first.seconds)
        drawn = [_pictures(first.output), *(_pictures(self.call(eager, seed, "eager").output) for seed in seeds[1:])]
        # Of two ways timed one after the other, the first has to finish before the pipeline is optimised.
        laps = [] if interleaved else self.alone(eager, first, _rounds(2 * first.seconds))
        rewriter.optimize(pipeline, rules=self.rules)
        warm = self.call(pipeline, self.seed, "compiling")
        again = self.call(pipeline, self.seed, "optimised")
        redrawn = [
            _pictures(again.output),
            *(_pictures(self.call(pipeline, seed, "optimised").output) for seed in seeds[1:]),
        ]
        if interleaved:
            pairs = self.in_turns(eager, pipeline)
        else:
            pairs = list(zip(laps, self.alone(pipeline, again, len(laps)), strict=True))
        return Comparison(
            eager=np.concatenate([pictures for pictures, _ in drawn]),
            optimised=np.concatenate([pictures for pictures, _ in redrawn]),
            columns=drawn[0][1] or len(drawn),
            eager_timing=_timing([one for one, _ in pairs]),
            optimised_timing=_timing([other for _, other in pairs]),
            # Two calls side by side meet the same load; a ratio of medians would mix calls from different moments.
            speedup=statistics.median(_step_ms(one) / _step_ms(other) for one, other in pairs),
            first_call_seconds=warm.seconds,
            steps=first.steps,
            rounds=len(pairs),
            interleaved=interleaved,
            report=rewriter.report(pipeline),
        )

    def several(self, first: Lap) -> bool:
        pictures, _ = _pictures(first.output)
        return len(pictures) == 1 and first.seconds < _SEVERAL_PICTURES_SECONDS

    def in_turns(self, eager: Any, optimised: Any) -> list[tuple[Lap, Lap]]:
        pairs: list[tuple[Lap, Lap]] = []
        rounds = 1
        while len(pairs) < rounds:
            if len(pairs) % 2:
                second = self.call(optimised, self.seed, "timing")
                pairs.append((self.call(eager, self.seed, "timing"), second))
            else:
                one = self.call(eager, self.seed, "timing")
                pairs.append((one, self.call(optimised, self.seed, "timing")))
            rounds = _rounds(pairs[0][0].seconds + pairs[0][1].seconds)
            self.bar.total = self.bar.n + 2 * (rounds - len(pairs))
        return pairs

    def alone(self, pipeline: Any, drawn: Lap, rounds: int) -> list[Lap]:
        """Timed calls of one way. Where only one fits into the time, that of the drawn pictures is taken."""
        return [drawn] if rounds == 1 else [self.call(pipeline, self.seed, "timing") for _ in range(rounds)]

    def call(self, pipeline: Any, seed: int, what: str) -> Lap:
        arguments = self.target.example(seed)
        if self.steps is not None:
            arguments["num_inference_steps"] = self.steps
        arguments["output_type"] = "np"
        self.bar.set_description(what, refresh=False)

        def notice(step: int, steps: int) -> None:
            self.bar.set_postfix_str(f"step {step}/{steps}", refresh=False)
            self.bar.update(0)

        lap = timed_call(pipeline, arguments, self.device, notice)
        self.bar.update()
        return lap


def _rounds(seconds: float) -> int:
    """How many rounds of this length fit into the time for timing."""
    return max(1, min(_MOST_ROUNDS, int(_TIMING_SECONDS / seconds)))


def _step_ms(lap: Lap) -> float:
    return 1000 * lap.loop_seconds / lap.steps


def _timing(laps: Sequence[Lap]) -> Timing:
    steps = [_step_ms(lap) for lap in laps]
    return Timing(
        step_ms=statistics.median(steps),
        step_ms_lowest=min(steps),
        step_ms_highest=max(steps),
        call_seconds=statistics.median(lap.seconds for lap in laps),
    )


def _networks(pipeline: Any) -> dict[str, torch.nn.Module]:
    return {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}


def _bytes(pipeline: Any) -> int:
    networks = _networks(pipeline).values()
    return sum(weight.numel() * weight.element_size() for network in networks for weight in network.parameters())


def _twin(pipeline: Any) -> Any:
    """A second pipeline with its own networks and scheduler; tokenizers and processors have no state and are shared."""
    parts = pipeline.components
    own = {name: copy.deepcopy(part) for name, part in {**_networks(pipeline), "scheduler": parts["scheduler"]}.items()}
    twin = copy.copy(pipeline)
    for name, part in own.items():
        setattr(twin, name, part)
    return twin


def _pictures(output: Any) -> tuple[Pictures, int | None]:
    """[N, H, W, C] in 0..1, and how many belong side by side if that is known: the frames of a video.

    Raises UnknownTarget for an output that holds no pictures.
    """
    for field in ("images", "frames"):
        found = getattr(output, field, None)
        if found is None:
            continue
        array = np.asarray(found, dtype=np.float32)
        if array.ndim == 5:
            return array.reshape(-1, *array.shape[2:]), array.shape[1]
        if array.ndim == 4:
            return array, 10 if len(array) >= 10 else None
    raise UnknownTarget(f"the pipeline gives no pictures: found a {type(output).__name__}, expected images or frames")
