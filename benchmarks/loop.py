"""A model's step in a loop of half a minute: how its time, power and clock develop, and how much of it is kernels.

    python benchmarks/loop.py flux-dev
    python benchmarks/loop.py sdxl --modes rewriter,compile,rewriter-again --seconds 20

A line for every second of the loop: milliseconds of a step, watts and joules of a step by the driver's count (good to a
tenth), the clock of the multiprocessors in MHz and the temperature in degrees. Then, from a profile of more steps,
the time from the first kernel to the last, the sum of the kernels, and what passes between them; the kernels, and the
pairs of kernels, that take longest.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from rewriter.bench import modes, timing
from rewriter.bench.power import Meter
from rewriter.cli import targets
from rewriter.language import load_rules
from rewriter.models.targets import load_target

PROFILED = 4
SHOWN = 15
WIDTH = 48


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    made.add_argument("target", help="a model as `rewriter bench` takes it")
    made.add_argument("--modes", default="rewriter", help="as of `rewriter bench` (default: %(default)s)")
    made.add_argument("--rules", nargs="+", default=["default"], help="packs (default: default)")
    made.add_argument("--seconds", type=float, default=30.0, help="of each loop (default: 30)")
    return made


def loop(call: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """Prints a line a second. Returns the milliseconds of a step after the first third, by their median."""
    meter = Meter.of(device)
    begin = time.perf_counter()
    call()
    timing.synchronise(device)
    last = time.perf_counter()
    steps = max(1, round(1 / (last - begin)))
    begin, found = last, list[float]()
    print("   s       ms     W       J   MHz   C")
    while last - begin < seconds:
        before = meter.joules() if meter else 0.0
        for _ in range(steps):
            call()
        clock = torch.cuda.clock_rate(device) if meter else 0
        timing.synchronise(device)
        now = time.perf_counter()
        joules = (meter.joules() - before) if meter else 0.0
        spent, last = now - last, now
        found.append(1e3 * spent / steps)
        degrees = torch.cuda.temperature(device) if meter else 0
        print(
            f"{now - begin:4.0f} {found[-1]:8.2f} {joules / spent:5.0f} {joules / steps:7.2f} {clock:5} {degrees:3}",
            flush=True,
        )
    steady = sorted(found[len(found) // 3 :])
    return steady[len(steady) // 2]


def kernels(call: Callable[[], Any], device: torch.device) -> None:
    """Prints where the GPU's time goes: in kernels, and between them."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as seen:
        for _ in range(PROFILED):
            call()
        timing.synchronise(device)
    events = [each for each in seen.events() or () if each.device_type == DeviceType.CUDA]
    if not events:
        return
    times: dict[str, list[float]] = defaultdict(list)
    gaps: dict[str, list[float]] = defaultdict(list)
    events.sort(key=lambda each: each.time_range.start)
    first = reached = events[0].time_range.start
    before = ""
    for each in events:
        times[each.name].append((each.time_range.end - each.time_range.start) * 1e-3)
        if each.time_range.start > reached:
            gaps[f"{before[:WIDTH]} > {each.name[:WIDTH]}"].append((each.time_range.start - reached) * 1e-3)
        if each.time_range.end > reached:
            reached, before = each.time_range.end, each.name
    busy, idle = sum(map(sum, times.values())), sum(map(sum, gaps.values()))
    print(
        f"{(reached - first) * 1e-3 / PROFILED:.1f} ms a step, {busy / PROFILED:.1f} of them "
        f"{len(events) / PROFILED:.0f} kernels; between kernels {idle / PROFILED:.1f}"
    )
    for found in (times, gaps):
        for name, spent in sorted(found.items(), key=lambda item: -sum(item[1]))[:SHOWN]:
            print(f"{sum(spent) / PROFILED:9.2f} ms {len(spent) / PROFILED:6.1f} {name[: 2 * WIDTH + 3]}")
        print()


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    step = targets.whole_step_of(load_target(options.target, device=device), {})
    rules = load_rules(options.rules)
    for mode in modes.of(options.modes.split(","), device):
        with torch.no_grad(), mode.running(step, rules) as running:
            call, begun = timing.begin(lambda running=running: running.call, device)  # type: ignore[misc]
            print(f"{mode.title}: {sum(begun.calls):.1f} s for the first calls", flush=True)
            print(f"{mode.title}: {loop(call, device, options.seconds):.2f} ms a step", flush=True)
            if device.type == "cuda":
                kernels(call, device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
