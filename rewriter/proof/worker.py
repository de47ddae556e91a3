"""The process that does the proofs for another one: `python -m rewriter.proof.worker`.

It reads a setup and then jobs as JSON lines from stdin and answers on stdout, so that a kernel that kills it, or the
CUDA context, costs one proof and not the run. Before each example it says which: the last one said is the culprit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import importlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from rewriter.causes import cause_of
from rewriter.errors import RewriterError
from rewriter.proof.outcome import Example, Failure, Proof

if TYPE_CHECKING:
    from rewriter.language import Rule, RuleSet
    from rewriter.proof.sites import Site

# The exit status of a process whose CUDA context is dead.
DEAD_CONTEXT = 70
# Bytes of a GPU: what torch may allocate for one proof, and what the process and its libraries take beside it.
SHARE, CONTEXT = 3 * 2**30, 2**30

Say = Callable[[dict[str, Any]], None]


def main() -> None:
    """Serves one parent until stdin ends."""
    # Whatever libraries print must not get between the answers.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    faulthandler.enable()

    def say(event: dict[str, Any]) -> None:
        out.write(json.dumps(event) + "\n")
        out.flush()

    setup = json.loads(sys.stdin.readline())
    try:
        worker = _Worker(setup, say)
    except RewriterError as error:
        say({"event": "refused", "message": str(error)})
        return
    say({"event": "ready", **worker.about()})
    for line in sys.stdin:
        job = json.loads(line)
        try:
            answer = {"event": "result", "value": worker.work(job)}
        except Exception as error:
            answer = {"event": "error", "message": f"{type(error).__name__}: {error}"}
        worker.check_device()
        say(answer)


class _Worker:
    """The rules that were asked for, and the jobs that can be done with them."""

    def __init__(self, setup: dict[str, Any], say: Say) -> None:
        self.say = say
        self.device: str = setup["device"]
        if self.device == "cuda":
            _require_gpu()
        for name in setup["imports"]:
            _import(name)
        from rewriter.ops import providers

        # Without a GPU nobody misses kernels that run on one only.
        self.missing = {name: why for name, why in providers.load().items() if (name, self.device) != ("cuda", "cpu")}
        self.rules = _load(setup["sources"])
        self.shapes: int = setup["shapes"]
        self.last: Example | None = None

    def about(self) -> dict[str, Any]:
        """The machine, the rules with what there is to prove of each, and the providers that are not there.

        `sites`: what each of a rule's weighs; `memory`: bytes of the GPU.
        """
        from rewriter.proof.check import dtypes_of, providers_of
        from rewriter.proof.code import code_digest
        from rewriter.proof.machine import this_machine

        rules = [
            {
                "id": rule.id,
                "file": rule.position.file,
                "digest": rule.digest,
                "code": code_digest(rule),
                "dtypes": dtypes_of(rule),
                "providers": providers_of(rule, self.device),
                "sites": [site.numbers for site in self._sites(rule)],
            }
            for rule in self.rules
        ]
        return {
            "machine": dataclasses.asdict(this_machine(self.device)),
            "memory": _memory() if self.device == "cuda" else None,
            "rules": rules,
            "missing": self.missing,
        }

    def _sites(self, rule: Rule) -> list[Site]:
        from rewriter.proof.sites import sites_of

        return sites_of(rule, most=self.shapes) if self.shapes else []

    def work(self, job: dict[str, Any]) -> Any:
        return getattr(self, f"_{job.pop('kind')}")(**job)

    def check_device(self) -> None:
        """Ends the process where the GPU no longer answers: nothing that it says from then on can be believed."""
        if self.device != "cuda":
            return
        import torch

        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            self.say({"event": "dead", "message": cause_of(error)})
            os._exit(DEAD_CONTEXT)

    def _watch(self, example: Example) -> None:
        self.check_device()
        self.say({"event": "example", "example": str(example)})

    def _prove(
        self,
        *,
        rule: str,
        dtype: str,
        provider: str,
        examples: int,
        seed: int | None,
        seconds: float | None = None,
    ) -> dict[str, Any]:
        """The proof, and whether it was `cut` short because the seconds were over."""
        from rewriter.proof.check import prove
        from rewriter.proof.results import proof_document

        start = time.monotonic()
        with _share() if self.device == "cuda" else contextlib.nullcontext():
            proof = prove(
                self.rules[rule],
                dtype=dtype,
                provider=provider,
                device=self.device,
                examples=examples,
                seed=seed,
                seconds=seconds,
                watch=self._watch,
            )
        over = seconds is not None and time.monotonic() - start > seconds
        return {**proof_document(proof), "cut": over and proof.proved and proof.examples < examples}

    def _example(self, *, rule: str, provider: str, example: str) -> dict[str, Any]:
        from rewriter.proof.check import run_example
        from rewriter.proof.results import proof_document

        parsed = Example.parse(example)
        self._watch(parsed)
        outcome = run_example(self.rules[rule], parsed, device=self.device, provider=provider)
        failure = outcome if isinstance(outcome, Failure) else None
        refusal = None if isinstance(outcome, Failure) else outcome.refusal
        proof = Proof(
            rule=rule,
            dtype=parsed.dtype,
            device=self.device,
            provider=provider,
            examples=int(refusal is None),
            unsupported=int(refusal is not None),
            worst=math.inf if isinstance(outcome, Failure) else outcome.share,
            ratio=math.inf if isinstance(outcome, Failure) else outcome.ratio,
            failure=failure,
            refusal=refusal,
        )
        return proof_document(proof)

    def _mutants(self, *, rule: str) -> dict[str, Any]:
        from rewriter.proof.check import dtypes_of
        from rewriter.proof.mutants_score import score

        found = score(self.rules[rule], dtype=dtypes_of(self.rules[rule])[0])
        return {
            "rule": rule,
            "dtype": found.dtype,
            "killed": found.killed,
            "total": found.total,
            "survivors": list(map(str, found.survivors)),
        }

    def _compile(self, *, rule: str, number: int) -> None:
        from rewriter.proof.timing import compile_site

        compile_site(self.rules[rule], self._sites(self.rules[rule])[number], self.device)

    def _time(self, *, rule: str, number: int) -> dict[str, Any]:
        from rewriter.proof.timing import time_site

        return dataclasses.asdict(time_site(self.rules[rule], self._sites(self.rules[rule])[number], self.device))

    def _ceilings(self) -> dict[str, Any]:
        from rewriter.proof.timing import measure_ceilings

        return dataclasses.asdict(measure_ceilings(self.device))


def _load(sources: list[str]) -> RuleSet:
    from rewriter.language import load_rules

    return load_rules(list(sources))


def _import(name: str) -> None:
    """Imports a user's module, found from the working directory too."""
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        importlib.import_module(name)
    except Exception as error:
        raise RewriterError(f"--import: cannot import {name}: {type(error).__name__}: {error}") from error


def _require_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        raise RewriterError("--device: found cuda, but torch sees no CUDA device here; expected cpu")


@contextlib.contextmanager
def _share() -> Iterator[None]:
    """Has torch keep to a worker's share of the GPU's memory: what it caches of one proof, another would miss."""
    import torch

    torch.cuda.set_per_process_memory_fraction(min(1.0, SHARE / _memory()))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def _memory() -> int:
    import torch

    return int(torch.cuda.get_device_properties().total_memory)


if __name__ == "__main__":
    main()
