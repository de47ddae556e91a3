"""Runs `rewriter bench` for several models, each in a process of its own, and collects their tables in one page.

    python benchmarks/models.py --targets sd15,sdxl --out results
    python benchmarks/models.py --targets sd15,flux-dev --out results --budget 900 -- --modes eager,rewriter --profile

What stands after `--` goes to `rewriter bench`. Every model gets a folder in OUT with its bench.json, table.md,
plot.png and log.txt. OUT/RESULTS.md (or `--page FILE`) is written anew after each model, so that what was measured
before a time limit stays. In a page that has them, only the text between the lines `<!-- benchmarks -->` and
`<!-- end of benchmarks -->` is replaced.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

BEGIN, END = "<!-- benchmarks -->", "<!-- end of benchmarks -->"
TARGETS = "sd15,sd15-controlnet,sdxl,svd-xt,flux-dev"
# Less than this is not enough to load a model.
LEAST_SECONDS = 20.0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], epilog="Options after -- go to `rewriter bench`."
    )
    made.add_argument("--targets", default=TARGETS, help="names with commas between them (default: %(default)s)")
    made.add_argument("--out", type=pathlib.Path, required=True, metavar="DIR", help="where results go")
    made.add_argument("--page", type=pathlib.Path, metavar="FILE", help="the page to write (default: DIR/RESULTS.md)")
    made.add_argument("--budget", type=float, default=float("inf"), metavar="SECONDS", help="time for all of them")
    made.add_argument("options", nargs="*", help=argparse.SUPPRESS)
    return made


def bench(target: str, folder: pathlib.Path, options: Sequence[str], seconds: float) -> str | None:
    """Runs one model for at most so many seconds. Returns why there are no or not all results, or None."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("bench.json", "table.md", "plot.png", "profile.txt"):
        (folder / name).unlink(missing_ok=True)
    command = [sys.executable, "-m", "rewriter.cli.main", "bench", target, "--out", str(folder), *options]
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "TQDM_DISABLE": "1"},
                timeout=None if seconds == float("inf") else seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"stopped after {seconds:.0f} s"
    if done.returncode == 0:
        return None
    lines = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"exit status {done.returncode}: {lines[-1] if lines else 'no output'}"


def page(found: dict[str, str | None], out: pathlib.Path) -> str:
    """The part of a page about these models; `found` says of each why its results are not complete."""
    documents = {target: document for target in found if (document := _document(out / target)) is not None}
    parts: list[str] = []
    for facts in list(documents.values())[:1]:
        versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
        parts += [f"{facts['device']}, {versions}, {facts['date'][:10]}.", ""]
    rows = [row for target, document in documents.items() for row in _rows(target, document)]
    if rows:
        head = "| model | mode | ms | it/s | speed | ready | peak | error to eager's |"
        parts += [head, "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |", *rows, ""]
    for target, reason in found.items():
        parts += [f"### {target}", ""]
        if reason is not None:
            parts += [f"Not complete: {reason}", ""]
        table = out / target / "table.md"
        if table.is_file():
            parts += [table.read_text(encoding="utf-8").strip(), ""]
    return "\n".join(parts).strip()


def write(path: pathlib.Path, text: str) -> None:
    """Puts the text between the marks of the page, or makes a page of it."""
    old = path.read_text(encoding="utf-8") if path.is_file() else f"# Results\n\n{BEGIN}\n{END}\n"
    if BEGIN not in old or END not in old:
        old = f"{old.rstrip()}\n\n{BEGIN}\n{END}\n"
    before, _, rest = old.partition(BEGIN)
    after = rest.partition(END)[2]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 if a model or one of its modes failed or was not reached."""
    options = parser().parse_args(arguments)
    path = options.page or options.out / "RESULTS.md"
    start = time.monotonic()
    found: dict[str, str | None] = {}
    for target in options.targets.split(","):
        left = options.budget - (time.monotonic() - start)
        if left < LEAST_SECONDS:
            found[target] = f"not run, the {options.budget:.0f} s were spent"
        else:
            found[target] = bench(target, options.out / target, options.options, left)
        write(path, page(found, options.out))
        table = options.out / target / "table.md"
        print(f"== {target}: {found[target] or 'complete'}, {time.monotonic() - start:.0f} s", flush=True)
        if table.is_file():
            print(table.read_text(encoding="utf-8"), flush=True)
    return 0 if all(reason is None for reason in found.values()) else 1


def _document(folder: pathlib.Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / "bench.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _rows(target: str, document: dict[str, Any]) -> list[str]:
    modes = document.get("modes", [])
    eager = next((mode for mode in modes if mode["mode"] == "eager"), {})
    rows = []
    for mode in modes:
        times, memory = mode["times"], mode["memory"] or {}
        if mode["failure"] or not times:
            rows.append(f"| {target} | {mode['title']} | {mode['failure'] or 'not reached'} | | | | | |")
            continue
        figures = (
            f"{times['median'] * 1e3:.2f}",
            f"{1 / times['median']:.2f}",
            f"{times['speed']:.2f}x",
            f"{mode['ready_seconds']:.1f} s",
            _ratio(memory.get("peak"), (eager.get("memory") or {}).get("peak")),
            _ratio(mode["error_f32"], eager.get("error_f32")),
        )
        rows.append(f"| {target} | {mode['title']} | {' | '.join(figures)} |")
    return rows


def _ratio(value: Any, base: Any) -> str:
    return f"{value / base:.2f}x" if isinstance(value, int | float) and isinstance(base, int | float) and base else ""


if __name__ == "__main__":
    sys.exit(main())
