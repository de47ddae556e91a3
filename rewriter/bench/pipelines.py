"""Whole pipelines: seconds per picture, the first picture, and how much of the denoiser's own rate the loop reaches."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_map_only

from rewriter.bench import timing
from rewriter.bench.accuracy import relative_error
from rewriter.bench.document import machine
from rewriter.bench.modes import COMPILE, EAGER, REWRITER, channels_last, plain_call
from rewriter.bench.outcome import Outcome
from rewriter.bench.plot import Bar
from rewriter.bench.runs import release
from rewriter.bench.step import Arguments, Step
from rewriter.bench.tables import Rows
from rewriter.causes import described
from rewriter.demo.stopwatch import Lap, timed_call

if TYPE_CHECKING:
    from rewriter.language import RuleSet
    from rewriter.models import Target

MODES = (EAGER, COMPILE, REWRITER)
_LEAST_CALLS, _MOST_CALLS = 2, 20
_FIELDS = ("images", "frames")


@dataclasses.dataclass(kw_only=True)
class Drawn:
    """One way of running a pipeline, or why it failed. Times are in seconds, medians but for `first_picture`.

    first_picture: from optimising or compiling to the end of the first call. picture: of a call. loop_rate and
    denoiser_rate: steps per second in the loop, and of the denoiser called alone. outside: of a call, what is not its
    loop: text, scheduler set-up, VAE. error: of the pictures, a relative L2 error against eager's.
    """

    mode: str
    failure: str | None = None
    first_picture: float | None = None
    picture: float | None = None
    loop_rate: float | None = None
    denoiser_rate: float | None = None
    outside: float | None = None
    error: float | None = None
    report: dict[str, Any] | None = None

    @property
    def share(self) -> float | None:
        """How much of the denoiser's own rate the loop reaches."""
        return self.loop_rate / self.denoiser_rate if self.loop_rate and self.denoiser_rate else None


def bench_pipeline(
    target: Target,
    modes: Sequence[str],
    rules: RuleSet,
    step_with: Callable[[int], Step],
    *,
    steps: int,
    seconds: float,
    notice: Callable[[Outcome], None] = lambda _: None,
) -> Outcome:
    """Draws with the whole pipeline in each of the modes, which are some of MODES.

    `step_with` gives the loop's step for so many rows; its networks are the pipeline's own. The pictures of eager are
    drawn first in any case.
    """
    run = _Run(target, rules, step_with, steps, seconds / max(len(modes), 1))
    title = f"{target.name}: whole pipeline, {steps} steps on {run.device}"
    outcome = Outcome(title=title, document={})
    facts = {"target": target.name, "steps": steps, **machine(run.device)}
    run.look()
    found: list[Drawn] = []
    for mode in modes:
        found.append(run.draw(mode))
        release(run.device)
        outcome.document = {**facts, "pipeline": [{**dataclasses.asdict(one), "share": one.share} for one in found]}
        outcome.tables = [("", _rows(found))]
        outcome.bars = [_bar(one) for one in found]
        outcome.failures = [f"{one.mode}: {one.failure}" for one in found if one.failure]
        for one in found:
            parts = one.report["components"].values() if one.report else ()
            outcome.failures += [f"{p['name']} ran eagerly: {p['reason']}" for p in parts if p["status"] == "eager"]
        notice(outcome)
    return outcome


class _Run:
    def __init__(
        self, target: Target, rules: RuleSet, step_with: Callable[[int], Step], steps: int, seconds: float
    ) -> None:
        self.target, self.rules, self.step_with, self.steps, self.seconds = target, rules, step_with, steps, seconds
        self.pipeline = target.pipeline
        self.denoiser: torch.nn.Module = getattr(target.pipeline, target.denoiser)
        self.device = next(self.denoiser.parameters()).device
        self.arguments: Arguments = ((), {})
        self.pictures: Any = None
        self.first_eager = 0.0

    def look(self) -> None:
        """Draws eagerly, to have pictures to compare with and to see how the denoiser is called."""

        def hook(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.arguments = tree_map_only(torch.Tensor, torch.clone, (args, kwargs))

        handle = self.denoiser.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            lap = self.call()
        finally:
            handle.remove()
        self.first_eager, self.pictures = lap.seconds, _pictures(lap.output)

    def draw(self, mode: str) -> Drawn:
        found = Drawn(mode=mode)
        try:
            start = time.perf_counter()
            with _WAYS[mode](self.target, self.rules):
                first = self.call()
                found.first_picture = self.first_eager if mode == EAGER else time.perf_counter() - start
                found.error = relative_error(_pictures(first.output), self.pictures)
                laps: list[Lap] = [self.call()]
                while len(laps) < _LEAST_CALLS or (
                    sum(lap.seconds for lap in laps) < self.seconds and len(laps) < _MOST_CALLS
                ):
                    laps.append(self.call())
                self._sum_up(found, laps)
                if mode == REWRITER:
                    import rewriter

                    found.report = rewriter.report(self.pipeline).to_dict()
        except Exception as error:  # a mode that fails is a result of its own, whatever the library raised
            found.failure = described(error)
        return found

    def _sum_up(self, found: Drawn, laps: Sequence[Lap]) -> None:
        timesteps = getattr(self.pipeline.scheduler, "timesteps", None)
        # A scheduler may need more calls of the denoiser than it was asked for steps.
        calls = laps[0].steps if timesteps is None else len(timesteps)
        found.picture = statistics.median(lap.seconds for lap in laps)
        found.loop_rate = calls / statistics.median(lap.loop_seconds for lap in laps)
        found.outside = statistics.median(lap.seconds - lap.loop_seconds for lap in laps)
        call = plain_call(self._step())
        timing.begin(lambda: call, self.device)
        found.denoiser_rate = 1 / timing.compare({"": call}, self.device, seconds=self.seconds / 2)[""].median

    def _step(self) -> Step:
        """The denoiser as the pipeline itself calls it: called in another way it would be traced once more. One with a
        ControlNet is called with what that gives."""
        args, kwargs = self.arguments
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor) and value.dim()]
        step = self.step_with(tensors[0].shape[0])
        return dataclasses.replace(step, args=args, kwargs=kwargs) if step.module is self.denoiser else step

    def call(self) -> Lap:
        arguments = {**self.target.example(), "num_inference_steps": self.steps, "output_type": "np"}
        return timed_call(self.pipeline, arguments, self.device)


@contextlib.contextmanager
def _eager(_: Target, __: RuleSet) -> Iterator[None]:
    yield


@contextlib.contextmanager
def _rewritten(target: Target, rules: RuleSet) -> Iterator[None]:
    import rewriter

    rewriter.optimize(target.pipeline, rules=rules)
    try:
        yield
    finally:
        rewriter.restore(target.pipeline)


@contextlib.contextmanager
def _compiled(target: Target, _: RuleSet) -> Iterator[None]:
    """The networks of the loop and the VAE's decoder, each compiled in place as diffusers' guide advises."""
    pipeline = target.pipeline
    denoiser = getattr(pipeline, target.denoiser)
    controlnet = getattr(pipeline, "controlnet", None)
    networks = [controlnet, denoiser, getattr(getattr(pipeline, "vae", None), "decoder", None)]
    chosen = [network for network in networks if isinstance(network, torch.nn.Module)]
    on_cuda = next(denoiser.parameters()).is_cuda
    mode = "reduce-overhead" if on_cuda else "default"
    with contextlib.ExitStack() as stack:
        for network in chosen:
            if on_cuda:
                stack.enter_context(channels_last(network))
            function = torch.compile(network.forward, mode=mode, dynamic=False)
            network.forward = _stepping(
                function, begins=on_cuda and network is chosen[0], ends=on_cuda and network is denoiser
            )
            stack.callback(delattr, network, "forward")
        stack.callback(torch.compiler.reset)
        yield


def _stepping(function: Callable[..., Any], *, begins: bool, ends: bool) -> Callable[..., Any]:
    """Tells torch where a step begins, and copies what ends it out of the memory that the next step overwrites."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        if begins:
            torch.compiler.cudagraph_mark_step_begin()
        result = function(*args, **kwargs)
        return tuple(part.clone() for part in result) if ends and isinstance(result, tuple) else result

    return forward


_WAYS = {EAGER: _eager, COMPILE: _compiled, REWRITER: _rewritten}


def _pictures(output: Any) -> list[torch.Tensor]:
    found = next((getattr(output, field) for field in _FIELDS if getattr(output, field, None) is not None), None)
    return [] if found is None else [torch.as_tensor(found)]


def _rows(found: Sequence[Drawn]) -> Rows:
    rows: Rows = [
        ("MODE", "PICTURE", "FIRST PICTURE", "STEPS/S", "DENOISER ALONE", "SHARE", "OUTSIDE LOOP", "VS EAGER")
    ]
    for one in found:
        if one.failure or one.picture is None or one.share is None:
            rows.append((one.mode, "failed", *("" for _ in rows[0][2:])))
            continue
        rows.append(
            (
                one.mode,
                f"{one.picture:.3f} s",
                f"{one.first_picture:.1f} s",
                f"{one.loop_rate:.2f}",
                f"{one.denoiser_rate:.2f}",
                f"{one.share:.0%}",
                f"{one.outside:.3f} s",
                f"{one.error:.1e}",
            )
        )
    return rows


def _bar(one: Drawn) -> Bar:
    if one.failure or one.picture is None:
        return Bar(label=one.mode, value=None, note=one.failure or "")
    return Bar(label=one.mode, value=one.picture, low=one.picture, high=one.picture, note=f"{one.picture:.2f} s")
