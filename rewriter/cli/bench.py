"""`rewriter bench TARGET`: a denoising step, run in every way that there is."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rewriter.cli import targets
from rewriter.cli.output import (
    FINDINGS,
    OK,
    WrongUsage,
    clean_stdout,
    complain,
    made,
    print_json,
    progress,
    whole_number,
)

if TYPE_CHECKING:
    from typing import TypeAlias

    from rewriter.bench.modes import Mode
    from rewriter.bench.outcome import Outcome
    from rewriter.bench.single import Wanted
    from rewriter.bench.step import Step
    from rewriter.language import RuleSet
    from rewriter.models import Target

    Notice: TypeAlias = Callable[[Outcome], None]

NAME = "bench"
SUMMARY = "eager, CUDA graph, torch.compile and rewriter side by side"
DESCRIPTION = """\
Runs one step of a pipeline's loop in one process, with the same weights and inputs: eagerly, as a CUDA graph, with
torch.compile (weights channels-last, CUDA graphs) and rewritten. Each call gets a new sample and timestep; text and
other conditions stay the same, as in a pipeline. With a ControlNet the step is both networks.

MEDIAN is of a call among calls back to back, with the span of the middle 80 %. SPEED is relative to eager.
FIRST is the time from nothing to the first result, READY to the end of the last call that still took more than twice
the median. PEAK is the most memory allocated from the start, RESERVED what stays reserved while running, both in all
and relative to eager; ON TOP is what a process on a CPU needed in addition. Errors are relative L2 errors, against
eager and against the same weights in float32; beside the latter stands the ratio to eager's own. The exit status is 1
if a mode failed or a network fell back to eager.
"""
EXAMPLE = "rewriter bench sd15-tiny --seconds 10"
_STEPS = 30
_SIZES = ("batch", "height", "width")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    targets.add_arguments(parser)
    parser.add_argument("--component", metavar="NAME", help="one network to time (default: all that run in every step)")
    parser.add_argument(
        "--modes",
        metavar="M,M",
        help="of eager, graph, graph-nhwc, rewriter, rewriter-again, compile, compile-nchw "
        "(default: eager,graph,rewriter,compile; on a CPU eager,rewriter)",
    )
    parser.add_argument(
        "--batch", type=whole_number, metavar="N", help="rows that the denoiser sees (default: one picture's)"
    )
    parser.add_argument(
        "--height", type=whole_number, metavar="N", help="of the picture in pixels (default: the model's)"
    )
    parser.add_argument(
        "--width", type=whole_number, metavar="N", help="of the picture in pixels (default: the model's)"
    )
    targets.add_rules(parser)
    parser.add_argument("--seconds", type=_positive, default=20.0, help="about how long to time (default: 20)")
    parser.add_argument(
        "--error",
        choices=("eager", "f32"),
        help="what results are compared with; f32 is compared with in addition (default: f32 on CUDA, else eager)",
    )
    parser.add_argument("--profile", action="store_true", help="also find the kernels that rewriter's time goes to")
    parser.add_argument("--ablate", action="store_true", help="also leave out one rule at a time: what is each worth?")
    parser.add_argument(
        "--ablate-rule",
        action="append",
        default=[],
        metavar="RULE",
        help="as --ablate, but leave out this rule only; may be repeated",
    )
    parser.add_argument(
        "--shapes",
        type=_shapes,
        metavar="WxH,WxH",
        help="instead, a row for each of these sizes of the picture in pixels, such as 512x512,768x1152",
    )
    parser.add_argument(
        "--batches", type=_batches, metavar="N,N", help="instead, a row for each of these batches, at every size"
    )
    parser.add_argument(
        "--pipeline", action="store_true", help="instead, time the whole pipeline: modes eager, compile, rewriter"
    )
    parser.add_argument(
        "--steps", type=whole_number, metavar="N", help=f"of the whole pipeline, with --pipeline (default: {_STEPS})"
    )
    parser.add_argument(
        "--out", type=pathlib.Path, metavar="DIR", help="write bench.json, table.md, plot.png and profile.txt here"
    )


def run(arguments: argparse.Namespace) -> int:
    """Times the modes. Returns 0, or 1 if one failed or fell back to eager."""
    with clean_stdout():
        rules = targets.rules(arguments)
        # Before a large model is loaded, or minutes of work are lost.
        _conflicts(arguments)
        _known(arguments.ablate_rule, rules)
        if arguments.out is not None:
            made(arguments.out)
        outcome = _bench(targets.load(arguments), rules, arguments)
    if arguments.json:
        from rewriter.bench.document import plain

        print_json(plain(outcome.document))
    else:
        print(outcome.text())
    for failure in outcome.failures:
        complain(failure)
    return FINDINGS if outcome.failures else OK


def _bench(target: Target, rules: RuleSet, arguments: argparse.Namespace) -> Outcome:
    with progress("timing") as bar:

        def notice(outcome: Outcome) -> None:
            bar.update()
            if arguments.out is not None:
                _write(outcome, arguments.out)

        if arguments.pipeline:
            return _pipeline(target, rules, arguments, notice)
        if arguments.shapes or arguments.batches:
            return _by_shape(target, rules, arguments, notice)
        step = _step(target, arguments, _sizes(arguments))
        del target  # its other networks need not take memory
        return _one_step(step, rules, arguments, notice)


def _one_step(step: Step, rules: RuleSet, arguments: argparse.Namespace, notice: Notice) -> Outcome:
    from rewriter.bench.ablation import Worth, ablate, worth_rows
    from rewriter.bench.document import plain
    from rewriter.bench.single import bench_step

    outcome = bench_step(arguments.target, step, _modes(arguments, step), rules, _wanted(arguments, step), notice)
    if not arguments.ablate and not arguments.ablate_rule:
        return outcome
    tables = outcome.tables

    def update(found: list[Worth], planned: int) -> None:
        heading = f"what each rule adds to the others ({len(found)} of {planned} rules)"
        outcome.tables = [*tables, (heading, worth_rows(found))]
        outcome.document["ablation"] = [plain(worth) for worth in found]
        notice(outcome)

    ablate(step, rules, seconds=arguments.seconds, only=arguments.ablate_rule, notice=update)
    return outcome


def _by_shape(target: Target, rules: RuleSet, arguments: argparse.Namespace, notice: Notice) -> Outcome:
    from rewriter.bench.shapes import Shape, bench_shapes
    from rewriter.models.denoiser_inputs import rows_per_picture
    from rewriter.models.targets import picture_size

    height, width = picture_size(target.pipeline, target.denoiser, target.call)
    extents = arguments.shapes or [(arguments.width or width, arguments.height or height)]
    shapes = [
        Shape(width=width, height=height, batch=batch)
        for width, height in extents
        for batch in arguments.batches or [arguments.batch or rows_per_picture(target.pipeline, target.denoiser)]
    ]
    steps = [
        (shape, _step(target, arguments, {"batch": shape.batch, "height": shape.height, "width": shape.width}))
        for shape in shapes
    ]
    first = steps[0][1]
    return bench_shapes(arguments.target, steps, _modes(arguments, first), rules, _wanted(arguments, first), notice)


def _pipeline(target: Target, rules: RuleSet, arguments: argparse.Namespace, notice: Notice) -> Outcome:
    from rewriter.bench import pipelines
    from rewriter.bench.modes import EAGER, REWRITER

    keys = arguments.modes.split(",") if arguments.modes else [EAGER, REWRITER]
    if unknown := [key for key in keys if key not in pipelines.MODES]:
        raise WrongUsage(
            f"--modes: found {unknown[0]!r}, expected some of {', '.join(pipelines.MODES)} with --pipeline"
        )
    return pipelines.bench_pipeline(
        target,
        keys,
        rules,
        lambda rows: targets.whole_step_of(target, {"batch": rows}),
        steps=arguments.steps or _STEPS,
        seconds=arguments.seconds,
        notice=notice,
    )


def _conflicts(arguments: argparse.Namespace) -> None:
    """Raises WrongUsage for options that would have no effect."""
    given = arguments
    ablate = "--ablate" if given.ablate else "--ablate-rule"
    ablated = given.ablate or given.ablate_rule
    by_shape = bool(given.shapes or given.batches)
    wrong = [
        (ablate, "--pipeline", ablated and given.pipeline),
        (ablate, "--shapes or --batches", ablated and by_shape),
        ("--ablate-rule", "--ablate", given.ablate and given.ablate_rule),
        ("--profile", "--pipeline", given.profile and given.pipeline),
        ("--profile", "--shapes or --batches", given.profile and by_shape),
        ("--shapes and --batches", "--pipeline", by_shape and given.pipeline),
        ("--component", "--pipeline", given.component and given.pipeline),
        ("--batch, --height and --width", "--pipeline", given.pipeline and _sizes(given)),
        ("--height and --width", "--shapes", given.shapes and (given.height or given.width)),
        ("--batch", "--batches", given.batches and given.batch),
    ]
    for option, other, found in wrong:
        if found:
            raise WrongUsage(f"{option}: no use with {other}")
    if given.steps and not given.pipeline:
        raise WrongUsage("--steps: no use without --pipeline")


def _known(names: Sequence[str], rules: RuleSet) -> None:
    from rewriter.language.names import nearest

    for name in names:
        if name not in rules:
            close = nearest(name, [rule.id for rule in rules])
            raise WrongUsage(
                f"--ablate-rule: found {name!r}, expected a rule of the given packs"
                + (f"; did you mean {close}?" if close else "")
            )


def _step(target: Target, arguments: argparse.Namespace, sizes: dict[str, int]) -> Step:
    if arguments.component:
        return targets.step_of(target, arguments.component, sizes)
    return targets.whole_step_of(target, sizes)


def _sizes(arguments: argparse.Namespace) -> dict[str, int]:
    return {name: getattr(arguments, name) for name in _SIZES if getattr(arguments, name)}


def _wanted(arguments: argparse.Namespace, step: Step) -> Wanted:
    from rewriter.bench.single import Wanted

    kind = arguments.error or ("f32" if step.device.type == "cuda" else "eager")
    return Wanted(seconds=arguments.seconds, f32=kind == "f32", profile=arguments.profile)


def _write(outcome: Outcome, folder: pathlib.Path) -> None:
    try:
        outcome.write(folder)
    except OSError as error:
        raise WrongUsage(f"--out: cannot write to the folder {folder}: {error.strerror}") from error


def _modes(arguments: argparse.Namespace, step: Step) -> list[Mode]:
    from rewriter.bench import modes

    keys = arguments.modes.split(",") if arguments.modes else modes.usual(step.device)
    try:
        return modes.of(keys, step.device)
    except ValueError as error:
        raise WrongUsage(f"--modes: {error}") from error


def _shapes(text: str) -> list[tuple[int, int]]:
    pairs = [part.split("x") for part in text.split(",")]
    if any(len(pair) != 2 for pair in pairs):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected widths and heights such as 512x512,768x1152")
    return [(whole_number(width), whole_number(height)) for width, height in pairs]


def _batches(text: str) -> list[int]:
    return [whole_number(part) for part in text.split(",")]


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e5:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number of seconds above 0")
    return value
