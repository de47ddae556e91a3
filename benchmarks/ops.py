"""Every provider and config of every op at the shapes of real models: error and time, the best of each case marked.

    python benchmarks/ops.py
    python benchmarks/ops.py --op group_norm_silu add_group_norm_silu --label 64x64 --json results.json
    python benchmarks/ops.py --op linear_act attention_tokens --label Flux --sustained 0.7

The cases are in benchmarks/shapes/. Error: relative L2 against the reference in float64, the largest of the results.
Time: median of replays of a CUDA graph that holds 20 calls, over four sets of inputs in turn. GB/s: the bytes that
cannot be avoided (arguments read once, results written once) over the time. A provider that raises shows its error.
On a CPU, times are of single calls and tell little.

A card at its power limit runs as fast as its work is cheap: with `--sustained SECONDS` whatever is close to the best of
its case then runs in a loop for that long, after a third of it to warm up, and shows microseconds and, by the driver's
count (good to a tenth), millijoules of a call.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.cases import Case, Draw  # noqa: E402
from rewriter.bench.power import Meter  # noqa: E402
from rewriter.causes import described  # noqa: E402
from rewriter.ops import OPS, dispatch, providers  # noqa: E402

DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}
# Relative L2 error above which a result counts as wrong, whatever its time.
WRONG = {torch.float16: 5e-3, torch.bfloat16: 4e-2, torch.float32: 1e-3}
CALLS = 20
SETS = 4
# How far behind the best of its case something may be to be looped, and how many replays the host is ahead then.
CLOSE = 1.2
AHEAD = 8
# Sets of inputs together take at most this much memory, in bytes.
ROOM = 8 << 30


@dataclasses.dataclass(kw_only=True)
class Row:
    """A provider and config in a case. us: microseconds of a call; rate: GB/s; failure: why these say nothing;
    looped, mj: microseconds and millijoules of a call in a long loop."""

    op: str
    label: str
    provider: str
    config: str
    us: float | None = None
    rate: float | None = None
    error: float | None = None
    failure: str = ""
    best: bool = False
    looped: float | None = None
    mj: float | None = None


def cases() -> list[Case]:
    """The cases of all modules in benchmarks/shapes."""
    names = sorted(path.stem for path in (ROOT / "benchmarks" / "shapes").glob("*.py"))
    return [case for name in names for case in importlib.import_module(f"benchmarks.shapes.{name}").CASES]


def tensors(value: Any) -> list[torch.Tensor]:
    return list(value) if isinstance(value, (tuple, list)) else [value]


def oracle(case: Case, arguments: tuple[Any, ...]) -> list[torch.Tensor]:
    """The reference's results on the same arguments in float64."""
    wide = [
        each.double() if isinstance(each, torch.Tensor) and each.is_floating_point() else each for each in arguments
    ]
    return tensors(OPS[case.op].reference(*wide))


def error_of(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """The largest relative L2 error of the results; NaN where a result holds one that the oracle's has not."""
    errors = [
        ((one.double() - other.double()).norm() / other.double().norm().clamp(min=1e-30)).item()
        for one, other in zip(found, wanted, strict=True)
        if other.numel()
    ]
    return max(errors, key=lambda error: float("inf") if error != error else error, default=0.0)


def recorded(call: Callable[[int], Any]) -> tuple[torch.cuda.CUDAGraph, int]:
    """A CUDA graph of several calls, and how many; `call(k)` uses the k-th set of inputs."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for k in range(SETS):
            call(k)
        torch.cuda.synchronize()
        begin = time.perf_counter()
        call(0)
        torch.cuda.synchronize()
        # Slow calls need no twenty to hide what starting a graph takes.
        calls = CALLS if time.perf_counter() - begin < 2e-3 else SETS
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for k in range(calls):
            call(k % SETS)
    return graph, calls


def graph_time(call: Callable[[int], Any]) -> float:
    """Median microseconds of a call on the GPU."""
    graph, calls = recorded(call)
    for _ in range(3):
        graph.replay()
    times = []
    deadline = time.perf_counter() + 0.15
    while len(times) < 5 or (len(times) < 50 and time.perf_counter() < deadline):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / calls)
    return statistics.median(times)


def looped(call: Callable[[int], Any], seconds: float, meter: Meter | None) -> tuple[float, float | None]:
    """Microseconds and, where there is a meter, millijoules of a call in a loop of so many seconds."""
    graph, calls = recorded(call)

    def loop(seconds: float) -> tuple[float, int]:
        torch.cuda.synchronize()
        begin = time.perf_counter()
        replays = 0
        events: list[torch.cuda.Event] = []
        while time.perf_counter() - begin < seconds:
            graph.replay()
            events.append(torch.cuda.Event())
            events[-1].record()
            replays += 1
            # The host is ahead of the device, but not without limit.
            if len(events) > AHEAD:
                events.pop(0).synchronize()
        torch.cuda.synchronize()
        return time.perf_counter() - begin, replays * calls

    loop(seconds / 3)
    before = meter.joules() if meter else 0.0
    spent, count = loop(seconds)
    return spent * 1e6 / count, (meter.joules() - before) * 1e3 / count if meter else None


def plain_time(call: Callable[[int], Any]) -> float:
    """Median microseconds of three single calls."""
    times = []
    for k in range(3):
        begin = time.perf_counter()
        call(k)
        times.append((time.perf_counter() - begin) * 1e6)
    return statistics.median(times)


def measure(case: Case, draw: Draw, sustained: float | None = None) -> list[Row]:
    """A row for each provider and config that takes the case's call, the reference's last, the best marked. With
    `sustained`, those close to the best run in a loop for so many seconds too."""
    first = case.make(draw)
    held = sum(each.nbytes for each in first if isinstance(each, torch.Tensor))
    sets = [first, *(case.make(draw) for _ in range(min(SETS, ROOM // max(held, 1)) - 1))]
    wanted = oracle(case, first)
    rows, calls = [], {}
    providers.load()
    for choice in dispatch.candidates(OPS[case.op], first):
        config = " ".join(f"{key}={value}" for key, value in choice.config.items())
        row = Row(op=case.op, label=case.label, provider=choice.provider, config=config)
        rows.append(row)
        fn = OPS[case.op].providers[choice.provider].fn
        try:
            found = tensors(fn(*first, **choice.config))
            row.error = error_of(found, wanted)
            moved = case.bytes(first, found)
            del found
            timer = graph_time if draw.device.type == "cuda" else plain_time
            calls[id(row)] = lambda k, fn=fn, choice=choice: fn(*sets[k % len(sets)], **choice.config)
            row.us = timer(calls[id(row)])
            row.rate = moved / row.us / 1e3
        except Exception as error:
            row.failure = described(error)
            continue
        if not row.error < WRONG[draw.dtype]:
            row.failure = "wrong"
    right = [row for row in rows if row.us is not None and not row.failure]
    if right:
        best = min(right, key=lambda row: row.us or 0.0)
        best.best = True
        if sustained is not None:
            meter = Meter.of(draw.device)
            for row in right:
                if (row.us or 0.0) <= CLOSE * (best.us or 0.0):
                    row.looped, row.mj = looped(calls[id(row)], sustained, meter)
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text."""
    lines = [("", "op", "label", "provider", "config", "us", "GB/s", "us in a loop", "mJ", "error")]
    for row in rows:
        figures = (
            "-" if row.us is None else f"{row.us:.1f}",
            "-" if row.rate is None else f"{row.rate:.0f}",
            "" if row.looped is None else f"{row.looped:.1f}",
            "" if row.mj is None else f"{row.mj:.2f}",
            row.failure if row.error is None else f"{row.error:.1e} {row.failure}".strip(),
        )
        lines.append(("*" if row.best else "", row.op, row.label, row.provider, row.config, *figures))
    kept = [column for column in range(len(lines[0])) if column < 7 or any(line[column] for line in lines[1:])]
    widths = [max(len(line[column]) for line in lines) for column in kept]
    return "\n".join(
        " ".join(line[column].ljust(width) for column, width in zip(kept, widths, strict=True)).rstrip()
        for line in lines
    )


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    made.add_argument("--op", nargs="+", help="only these ops")
    made.add_argument("--label", help="only cases whose label contains this")
    made.add_argument("--dtype", choices=sorted(DTYPES), default="f16")
    made.add_argument("--json", type=pathlib.Path, help="write all rows to this file")
    made.add_argument(
        "--sustained", type=float, metavar="SECONDS", help="on a GPU: loop what is close to the best, too"
    )
    made.add_argument("--best", action="store_true", help="print the best row and the reference's of each case only")
    return made


def chosen(options: argparse.Namespace) -> list[Case]:
    """The cases that the options name. Raises SystemExit where there is none."""
    found = [
        case
        for case in cases()
        if (not options.op or case.op in options.op) and (not options.label or options.label in case.label)
    ]
    if not found:
        raise SystemExit(f"no case: found none for op {options.op} and label {options.label!r}; see benchmarks/shapes")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.sustained is not None and device.type != "cuda":
        raise SystemExit("--sustained: expected a GPU, found none")
    torch.manual_seed(0)
    draw = Draw(device=device, dtype=DTYPES[options.dtype])
    rows: list[Row] = []
    with torch.inference_mode():
        for case in chosen(options):
            print(f"{case.op} {case.label}", file=sys.stderr, flush=True)
            try:
                rows += measure(case, draw, options.sustained)
            except Exception as error:
                rows.append(
                    Row(
                        op=case.op,
                        label=case.label,
                        provider="-",
                        config="",
                        failure=f"{type(error).__name__}: {error}",
                    )
                )
            if options.json:
                options.json.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, {options.dtype}")
    for package, reason in providers.load().items():
        print(f"providers of {package} are missing: {reason}")
    print(table([row for row in rows if not options.best or row.best or row.provider in ("torch", "-")]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
