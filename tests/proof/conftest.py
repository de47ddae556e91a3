from __future__ import annotations

import functools
import math
import pathlib
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rewriter.language import Rule, load_rules
from rewriter.ops.registry import OPS, Op, define, provide
from rewriter.proof.check import prove
from rewriter.proof.outcome import Example, Failure, Proof
from rewriter.proof.results import Basis, Ceilings, Fused, Machine, Results, Score, Spread, Timed

EXAMPLE = Example(seed=3, dtype="f16", values="normal", layout="sliced", choice=0, dims=(("C", 63),))
RULES = """\
format: 1
pack: mine
summary: Rules for the tests of proofs.
rules:
  - id: silu-by-hand
    summary: x * sigmoid(x) is silu
    match: |
      s = aten::sigmoid(x)
      y = aten::mul(x, s)
    where:
      x: {dtype: [f16, f32]}
    replace: |
      y = aten::silu(x)
    inputs:
      x: {shape: [N, C], layouts: [contiguous, sliced]}
    dims: {N: 1..3, C: 1..40}

  - id: wrong-gelu
    summary: silu is not gelu
    match: |
      y = aten::gelu(x)
    where:
      x: {dtype: f32}
    replace: |
      y = aten::silu(x)
    inputs:
      x: {shape: [N, C]}
    dims: {N: 1..3, C: 1..40}

  - id: planted-gelu
    summary: an op whose providers break
    match: |
      a = aten::mul(x, 1.702)
      s = aten::sigmoid(a)
      y = aten::mul(x, s)
    where:
      x: {dtype: f32}
    replace: |
      y = rewriter::planted_gelu(x)
    inputs:
      x: {shape: [N, C]}
    dims: {N: 1..3, C: 1..40}
"""
HALVING = """\
format: 1
pack: test
summary: One rule.
rules:
  - id: under-test
    summary: The rule under test
    match: |
      {match}
    where:
      x: {{dtype: [f16, bf16, f32]}}
    ignore:{ignore}
    replace: |
      {replace}
    inputs:
      x: {{shape: [N, C]{inputs}}}{more}
    dims: {{N: 1..5, C: {extents}}}
"""
PLANTED = """\
import ctypes, os, signal, time
import torch
from rewriter.ops import registry

registry.define("planted_gelu(Tensor x) -> Tensor", lambda x: x * torch.sigmoid(x * 1.702))

def aborts(x):
    os.abort()

def faults(x):
    ctypes.string_at(0)

def hangs(x):
    time.sleep(1000)

def killed(x):
    os.kill(os.getpid(), signal.SIGKILL)

def late(x):
    if x.shape[1] > 3:
        os._exit(3)
    return x * torch.sigmoid(x * 1.702)

def noisy(x):
    print("noise on stdout")
    return x * torch.sigmoid(x * 1.702)

for kernel in (aborts, faults, hangs, killed, late, noisy):
    registry.provide("planted_gelu", kernel.__name__, kernel, lambda *_: None)
"""
MACHINE = Machine(device="cuda", name="A <GPU> 80GB", sm=90, versions={"rewriter": "0.1.0", "torch": "2.11.0"})


@pytest.fixture
def made() -> types.SimpleNamespace:
    """Functions that make results."""
    return types.SimpleNamespace(proof=proof, timed=timed, results=results, basis=basis)


@pytest.fixture
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """An empty folder for verdicts."""
    monkeypatch.setenv("REWRITER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def rule_file(tmp_path: pathlib.Path) -> pathlib.Path:
    """A right rule and a wrong one, over stock ops, and one whose op has providers."""
    path = tmp_path / "mine.yaml"
    path.write_text(RULES, encoding="utf-8")
    return path


@pytest.fixture
def planted(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that adds providers which abort, read at address 0, hang, end the process, and are right."""
    (tmp_path / "planted.py").write_text(PLANTED, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "planted"


def proof(rule: str = "a-rule", dtype: str = "f16", provider: str = "torch", *, failed: bool = False) -> Proof:
    """A proof; one that failed did so on an example that was shrunk."""
    failure = Failure(kind="wrong result", message="y is 1 & not 2", example=EXAMPLE, operands="x [1, 63] f16 sliced")
    return Proof(
        rule=rule,
        dtype=dtype,
        device="cuda",
        provider=provider,
        examples=50,
        unsupported=2,
        worst=math.inf if failed else 0.25,
        ratio=math.inf if failed else 1.5,
        failure=failure if failed else None,
    )


def timed(rule: str = "a-rule", *, flops: int = 0, fused: float = 10.0) -> Timed:
    """20 microseconds unfused, by two providers of which one does not run."""

    def spread(median: float) -> Spread:
        return Spread(median=median, low=median * 0.9, high=median * 1.1)

    return Timed(
        rule=rule,
        model="sd15",
        component="unet",
        count=5,
        dtype="f16",
        shapes="x 2x320x64x64",
        bytes=10_000_000,
        flops=flops,
        unfused=spread(20.0),
        fused=(
            Fused(provider="cuda", config="", time=None, reason="RuntimeError: <no>"),
            Fused(provider="torch", config="", time=spread(fused * 1.5), reason=None),
            Fused(provider="triton", config="block=64", time=spread(fused), reason=None),
        ),
        reason=None,
    )


def basis(digest: str = "d1", code: str = "c1", date: str = "2026-01-01 00:00 UTC") -> Basis:
    """Of results of that day."""
    return Basis(digest=digest, code=code, date=date)


def results(*proofs: Proof, **changes: object) -> Results:
    """Results on a GPU."""
    found: dict[str, object] = {
        "machine": MACHINE,
        "date": "2026-01-01 00:00 UTC",
        "sources": ("my rules.yaml",),
        "rules": {each.rule: basis() for each in proofs},
        "proofs": proofs,
        "scores": (Score(rule="a-rule", dtype="f32", killed=9, total=10, survivors=("a mutant\n  survives",)),),
        "timings": (timed(), timed("another", flops=4_000_000_000)),
        "ceilings": Ceilings(bandwidth=2000.0, tflops={"f16": 600.0}),
        "problems": ("a-rule f32: not tried",),
        "notes": ("the cuda providers are missing",),
    }
    return Results(**{**found, **changes})  # type: ignore[arg-type]


@functools.cache
def _halving_ops() -> list[Op]:
    """Defined once: torch keeps what it knows of them."""
    linear = "proof_linear(Tensor x, Tensor weight, Tensor bias) -> Tensor"
    return [
        define("proof_halved(Tensor x) -> Tensor", lambda x: (x * 0.5).contiguous()),
        define(linear, lambda x, weight, _: F.linear(x, weight)),
    ]


@pytest.fixture(scope="module")
def _halving() -> Iterator[None]:
    """Two ops for a file; other files look at every op in the table."""
    ops = _halving_ops()
    OPS.update({op.name: op for op in ops})
    yield
    for op in ops:
        del OPS[op.name]


@pytest.fixture
def make_rule(tmp_path: pathlib.Path, _halving: None) -> Callable[..., Rule]:
    """Makes the rule that halves its operand, or another one."""

    def make(
        match: str = "y = aten::mul(x, 0.5)",
        replace: str = "y = rewriter::proof_halved(x)",
        inputs: str = "",
        extents: str = "1..40",
        more: Mapping[str, Mapping[str, str]] = {},
    ) -> Rule:
        """inputs: what else is said of x; more: lines of the sections `ignore` and `inputs`, by name."""
        path = tmp_path / "rules.yaml"
        indented = [text.replace("; ", "\n      ") for text in (match, replace)]
        sections = {
            name: "".join(f"\n      {key}: {value}" for key, value in more.get(name, {}).items())
            for name in ("ignore", "inputs")
        }
        text = HALVING.format(
            match=indented[0],
            replace=indented[1],
            ignore=sections["ignore"] or " {}",
            inputs=inputs,
            more=sections["inputs"],
            extents=extents,
        )
        path.write_text(text, encoding="utf-8")
        return load_rules(path)["under-test"]

    return make


@pytest.fixture
def proved(make_rule: Callable[..., Rule]) -> Iterator[Callable[..., Proof]]:
    """proved(kernel, dtype) is the proof of the halving rule with that kernel as the op's only other provider."""

    def run(kernel: Callable[[torch.Tensor], torch.Tensor], dtype: str = "f32", **options: Any) -> Proof:
        OPS["proof_halved"].providers.pop("planted", None)
        provide("proof_halved", "planted", kernel, lambda *_: None)
        return prove(make_rule(), dtype=dtype, provider="planted", **options)

    yield run
    OPS["proof_halved"].providers.pop("planted", None)
