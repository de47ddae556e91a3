"""What a run of proofs found on one machine: proofs, mutation scores, timings, and what could not be done."""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Mapping
from typing import Any

from rewriter.proof.outcome import Example, Failure, Proof

# Providers that every call falls back to: the references of the ops, and a replacement without such ops.
FALLBACKS = ("torch", "graph")
# Of a verdict file.
FORMAT = 2
Document = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the results hold for. `name`: of the GPU, or of the CPU where `device` is "cpu"; `sm`: such as 90."""

    device: str
    name: str
    sm: int | None
    versions: Mapping[str, str]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """What the results about a rule are of: hashes of the rule itself and of the code that its ops depend on.

    They say nothing about another rule or other code. `date`: of the oldest of the results.
    """

    digest: str
    code: str
    date: str

    def same(self, other: Basis) -> bool:
        """Whether results of both are about the same."""
        return (self.digest, self.code) == (other.digest, other.code)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How many mutants of a rule were killed, of all that run; the survivors in words."""

    rule: str
    dtype: str
    killed: int
    total: int
    survivors: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Microseconds per call: the median, and the quartiles on both sides of it."""

    median: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fused:
    """The replacement by one provider, with its fastest config. `reason`: why there is no time, or None."""

    provider: str
    config: str
    time: Spread | None
    reason: str | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """A rule at a shape that a model has. `count`: so many times per call of the component.

    `bytes`: of every input read once and every output written once; `flops`: of the products inside.
    `unfused`: the pattern's own ops, None with the `reason`.
    """

    rule: str
    model: str
    component: str
    count: int
    dtype: str
    shapes: str
    bytes: int
    flops: int
    unfused: Spread | None
    fused: tuple[Fused, ...]
    reason: str | None

    @property
    def best(self) -> Fused | None:
        """The fastest provider."""
        timed = [one for one in self.fused if one.time is not None]
        return min(timed, key=lambda one: one.time.median if one.time else math.inf, default=None)

    @property
    def speedup(self) -> float | None:
        """Of the fastest provider over the pattern's own ops."""
        best = self.best
        return self.unfused.median / best.time.median if self.unfused and best and best.time else None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """What the card reaches at its best, measured: GB/s of a large copy, TFLOP/s of a large product by dtype."""

    bandwidth: float
    tflops: Mapping[str, float]

    def attainable(self, timed: Timed) -> float:
        """The least microseconds that the bytes and the products of `timed` need."""
        peak = self.tflops.get(timed.dtype, math.inf)
        return max(timed.bytes / self.bandwidth / 1e3, timed.flops / peak / 1e6)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """`rules`: by id. `date`: of the newest result. `sources`: the files or packs as they were named.

    `problems`: what was not done, and why; `notes`: what is not there to be tried, such as providers that need a
    compiler, and what was kept of earlier results.
    """

    machine: Machine
    date: str
    sources: tuple[str, ...]
    rules: Mapping[str, Basis]
    proofs: tuple[Proof, ...]
    scores: tuple[Score, ...] = ()
    timings: tuple[Timed, ...] = ()
    ceilings: Ceilings | None = None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def failed(self) -> tuple[Proof, ...]:
        return tuple(proof for proof in self.proofs if not proof.proved)

    @property
    def survivors(self) -> tuple[str, ...]:
        return tuple(text for score in self.scores for text in score.survivors)

    def command(self, proof: Proof) -> str:
        """The command that runs the example on which `proof` failed."""
        words = ["rewriter", "test", *self.sources, "--rule", proof.rule, "--provider", proof.provider]
        words += ["--device", proof.device]
        example = proof.failure.example if proof.failure else None
        words += ["--example", str(example)] if example else ["--dtype", proof.dtype]
        return shlex.join(words)


def proof_document(proof: Proof) -> Document:
    """A proof as JSON has it: an error that is no finite number is null."""
    document = dataclasses.asdict(proof)
    document["worst"], document["ratio"] = _finite(proof.worst), _finite(proof.ratio)
    if proof.failure is not None:
        document["failure"]["example"] = str(proof.failure.example) if proof.failure.example else None
    return document


def proof_of(document: Mapping[str, Any]) -> Proof:
    """What `proof_document` wrote. Raises KeyError, TypeError or ValueError for anything else."""
    failure = document["failure"]
    return Proof(
        rule=document["rule"],
        dtype=document["dtype"],
        device=document["device"],
        provider=document["provider"],
        examples=document["examples"],
        unsupported=document["unsupported"],
        worst=_number(document["worst"]),
        ratio=_number(document["ratio"]),
        failure=None if failure is None else failure_of(failure),
        # Verdicts were written without it.
        refusal=document.get("refusal"),
    )


def failure_of(document: Mapping[str, Any]) -> Failure:
    """A failure out of a proof's document."""
    example = document["example"]
    return Failure(
        kind=document["kind"],
        message=document["message"],
        example=None if example is None else Example.parse(example),
        operands=document["operands"],
    )


def timed_of(document: Mapping[str, Any]) -> Timed:
    """What `dataclasses.asdict` made of a Timed."""
    fused = tuple(Fused(**{**one, "time": _spread(one["time"])}) for one in document["fused"])
    return Timed(**{**document, "unfused": _spread(document["unfused"]), "fused": fused})


def to_document(results: Results) -> Document:
    """Plain dicts, lists, strings and finite numbers."""
    return {
        "format": FORMAT,
        "machine": dataclasses.asdict(results.machine),
        "date": results.date,
        "sources": list(results.sources),
        "rules": {rule: dataclasses.asdict(basis) for rule, basis in results.rules.items()},
        "proofs": [proof_document(proof) for proof in results.proofs],
        "scores": [dataclasses.asdict(score) for score in results.scores],
        "timings": [dataclasses.asdict(timed) for timed in results.timings],
        "ceilings": None if results.ceilings is None else dataclasses.asdict(results.ceilings),
        "problems": list(results.problems),
        "notes": list(results.notes),
    }


def of_document(document: Mapping[str, Any]) -> Results:
    """What `to_document` wrote. Raises KeyError, TypeError or ValueError for anything else."""
    ceilings = document["ceilings"]
    return Results(
        machine=Machine(**document["machine"]),
        date=document["date"],
        sources=tuple(document["sources"]),
        rules={rule: Basis(**basis) for rule, basis in document["rules"].items()},
        proofs=tuple(proof_of(proof) for proof in document["proofs"]),
        scores=tuple(Score(**{**score, "survivors": tuple(score["survivors"])}) for score in document["scores"]),
        timings=tuple(timed_of(timed) for timed in document["timings"]),
        ceilings=None if ceilings is None else Ceilings(**ceilings),
        problems=tuple(document["problems"]),
        notes=tuple(document["notes"]),
    )


def _spread(document: Mapping[str, float] | None) -> Spread | None:
    return None if document is None else Spread(**document)


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _number(value: float | None) -> float:
    return math.inf if value is None else float(value)
