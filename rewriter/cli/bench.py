"""`rewriter bench TARGET`: one network of a pipeline, run in every way that there is."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rewriter.cli import targets
from rewriter.cli.output import FINDINGS, OK, clean_stdout, complain, print_json, progress, table, whole_number

if TYPE_CHECKING:
    import torch

    from rewriter.cli.modes import Prepare
    from rewriter.cli.targets import Step
    from rewriter.cli.timing import Times
    from rewriter.language import RuleSet

NAME = "bench"
SUMMARY = "eager, CUDA graph, torch.compile and rewriter side by side"
DESCRIPTION = """\
Runs one network of a pipeline on the inputs that it gets there, in one process and in turn: eagerly, rewritten, on
CUDA also as a CUDA graph and with torch.compile. Shows the median time of a call with the span of the middle 80 %,
the speed relative to eager, the time until the first result, the memory needed on top of the weights, and the
relative L2 error against eager. The exit status is 1 if a mode failed or the rewritten network fell back to eager.
"""
EXAMPLE = "rewriter bench sd15-tiny --seconds 10"
EAGER = "eager"
REWRITER = "rewriter"


@dataclasses.dataclass(kw_only=True)
class Result:
    """What is known of one mode: figures, or the reason why there are none."""

    name: str
    failure: str | None = None
    ready_seconds: float | None = None
    peak_bytes: int | None = None
    error: float | None = None
    times: Times | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    targets.add_arguments(parser)
    parser.add_argument(
        "--component", metavar="NAME", help="the network to time (default: the one that runs in every step)"
    )
    parser.add_argument("--batch", type=whole_number, metavar="N", help="rows that the denoiser sees (default: 2)")
    parser.add_argument(
        "--height", type=whole_number, metavar="N", help="of the picture in pixels (default: the model's)"
    )
    parser.add_argument(
        "--width", type=whole_number, metavar="N", help="of the picture in pixels (default: the model's)"
    )
    targets.add_rules(parser)
    parser.add_argument("--seconds", type=_positive, default=20.0, help="about how long to time (default: 20)")
    parser.add_argument(
        "--compile",
        action="store_true",
        help="also time torch.compile on a CPU, which needs a C++ compiler",
    )


def run(arguments: argparse.Namespace) -> int:
    """Times the modes. Returns 0, or 1 if one failed or fell back to eager."""
    with clean_stdout():
        rules = targets.rules(arguments)
        sizes = {name: getattr(arguments, name) for name in ("batch", "height", "width") if getattr(arguments, name)}
        step = targets.step_of(targets.load(arguments), arguments.component, sizes)
        results, report = _measure(step, rules, arguments)
    failures = _failures(results, report)
    if arguments.json:
        print_json(_document(step, arguments, results, report))
    else:
        print(f"{arguments.target}: {step.component} on {step.device}, {step.description}")
        print(_table(results))
    for failure in failures:
        complain(failure)
    return FINDINGS if failures else OK


def _measure(step: Step, rules: RuleSet, arguments: argparse.Namespace) -> tuple[list[Result], dict[str, Any]]:
    """The results of all modes, and the report of the rewritten network."""
    import rewriter
    from rewriter.cli import modes, timing

    call = (step.module, step.method, step.args, step.kwargs)
    rewritten, prepare_rewritten = modes.rewritten(*call, rules=rules)
    prepares: dict[str, Prepare] = {EAGER: modes.eager(*call)}
    if step.device.type == "cuda":
        prepares["eager + CUDA graph"] = modes.graphed(*call)
        prepares["torch.compile + CUDA graph"] = modes.compiled(*call)
    elif arguments.compile:
        prepares["torch.compile"] = modes.compiled(*call)
    prepares[REWRITER] = prepare_rewritten

    results = {name: Result(name=name) for name in prepares}
    calls = _ready(prepares, results, step.device)
    if EAGER in calls:
        with progress("timing", 100) as bar:
            times = timing.compare(
                calls, step.device, seconds=arguments.seconds, advance=lambda share: bar.update(share * 100)
            )
        for name, measured in times.items():
            results[name].times = measured
    report = {} if REWRITER not in calls else rewriter.report(rewritten).to_dict()
    return list(results.values()), report


def _ready(
    prepares: dict[str, Prepare], results: dict[str, Result], device: torch.device
) -> dict[str, Callable[[], Any]]:
    """Prepares each mode and compares its first result with eager's; notes what fails. Returns those that work."""
    from rewriter.cli import modes, timing

    calls: dict[str, Callable[[], Any]] = {}
    reference = None
    with progress("preparing", len(prepares)) as bar:
        for name, prepare in prepares.items():
            bar.set_description(f"preparing {name}")
            result = results[name]
            try:
                call, readied = timing.ready(prepare, device)
                if name == EAGER:
                    reference = modes.detached(readied.output)
                # A network that was just optimised returns eager's own result from its first call.
                result.error = modes.relative_error(call(), reference)
            except Exception as error:  # a mode that fails is a result of its own, whatever the library raised
                result.failure = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
                continue
            finally:
                bar.update()
            result.ready_seconds, result.peak_bytes = readied.seconds, readied.peak_bytes
            calls[name] = call
    return calls


def _failures(results: list[Result], report: dict[str, Any]) -> list[str]:
    failures = [f"{result.name}: {result.failure}" for result in results if result.failure]
    for component in report.get("components", {}).values():
        if component["status"] == "eager":
            failures.append(f"rewriter ran {component['name']} eagerly: {component['reason']}")
    return failures


def _table(results: list[Result]) -> str:
    rows = [("MODE", "MEDIAN", "10..90 %", "SPEED", "READY", "MEMORY", "ERROR")]
    for result in results:
        times = result.times
        if result.failure or times is None:
            rows.append((result.name, "failed", "", "", "", "", ""))
            continue
        rows.append(
            (
                result.name,
                f"{times.median * 1e3:.3f} ms",
                f"{times.low * 1e3:.3f}..{times.high * 1e3:.3f}",
                f"{times.speed:.2f}x",
                f"{result.ready_seconds:.1f} s",
                "unknown" if result.peak_bytes is None else f"{result.peak_bytes / 2**20:.0f} MiB",
                f"{result.error:.1e}",
            )
        )
    return table(rows, right=frozenset(range(1, 7)))


def _document(
    step: Step, arguments: argparse.Namespace, results: list[Result], report: dict[str, Any]
) -> dict[str, Any]:
    import math
    import platform

    import torch

    modes = []
    for result in results:
        entry = dataclasses.asdict(result)
        if result.error is not None and not math.isfinite(result.error):
            entry["error"] = str(result.error)
        modes.append(entry)
    on_cuda = step.device.type == "cuda"
    return {
        "target": arguments.target,
        "component": step.component,
        "inputs": step.description,
        "device": torch.cuda.get_device_name(step.device) if on_cuda else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "modes": modes,
        "report": report,
    }


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e5:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number of seconds above 0")
    return value
