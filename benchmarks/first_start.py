"""Where the time until a model's first result goes: what the main thread does, looked at ten times a second.

    python benchmarks/first_start.py svd-xt
    python benchmarks/first_start.py sdxl --least 0.3

Prints the functions of this package as a tree with the seconds spent below each. Caches are used where there are some;
`REWRITER_CACHE=$(mktemp -d) TRITON_CACHE_DIR=$(mktemp -d)` before the command makes it a first start.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence

import torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from rewriter.bench import modes, timing
from rewriter.cli import targets
from rewriter.language import load_rules
from rewriter.models.targets import load_target

INTERVAL = 0.1


class Eye:
    """Looks at a thread from another one. Keeps names only: frames would keep the tensors in them alive."""

    def __init__(self) -> None:
        self.seconds: Counter[tuple[str, ...]] = Counter()
        self._watched = threading.get_ident()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Eye:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def tree(self, least: float) -> str:
        """A line for each chain of calls that took at least so many seconds in all."""
        return "\n".join(
            f"{seconds:7.1f} {'  ' * (len(names) - 1)}{names[-1]}"
            for names, seconds in sorted(self.seconds.items())
            if seconds >= least
        )

    def _run(self) -> None:
        last = time.perf_counter()
        while not self._over.wait(INTERVAL):
            names = self._names()
            now = time.perf_counter()
            for depth in range(1, len(names) + 1):
                self.seconds[names[:depth]] += now - last
            last = now

    def _names(self) -> tuple[str, ...]:
        frame = sys._current_frames().get(self._watched)
        names = []
        while frame is not None:
            path = pathlib.Path(frame.f_code.co_filename)
            if {"rewriter", "ops"} & set(path.parts[-3:-1]):
                names.append(f"{path.stem}.{frame.f_code.co_name}")
            frame = frame.f_back
        return tuple(reversed(names))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    made.add_argument("target", help="a model as `rewriter bench` takes it")
    made.add_argument("--rules", nargs="+", default=["default"], help="packs (default: default)")
    made.add_argument("--least", type=float, default=0.5, metavar="SECONDS", help="to be shown (default: 0.5)")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    step = targets.whole_step_of(load_target(options.target, device=device), {})
    rules = load_rules(options.rules)
    (mode,) = modes.of(["rewriter"], device)
    with torch.no_grad(), Eye() as eye, mode.running(step, rules) as running:
        _, begun = timing.begin(lambda: running.call, device)
    print(eye.tree(options.least))
    print(f"first calls: {' '.join(f'{seconds:.2f}' for seconds in begun.calls)} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
