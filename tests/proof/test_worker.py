"""Proofs in a process of their own: what kills it is a finding, and the rest goes on."""

from __future__ import annotations

import dataclasses
import pathlib

import pytest

from rewriter.proof.campaign import Request, UnknownChoice, run, run_example
from rewriter.proof.outcome import Example, Proof
from rewriter.proof.pool import JobError, Refused, Setup, Stopped, Worker


@pytest.fixture
def setup(rule_file: pathlib.Path, planted: str) -> Setup:
    return Setup(sources=(str(rule_file),), imports=(planted,), silence=20)


def test_a_provider_that_breaks_the_process_costs_one_proof(setup: Setup) -> None:
    providers = ("aborts", "faults", "killed", "late", "noisy")
    request = Request(setup=setup, rules=("planted-gelu",), providers=("torch", *providers), examples=5)
    results = run(request)
    found: dict[str, Proof] = {proof.provider: proof for proof in results.proofs}
    assert list(found) == ["torch", "aborts", "faults", "late", "noisy"]
    assert found["torch"].proved
    assert found["noisy"].proved
    for provider, message in (("aborts", "SIGABRT"), ("faults", "SIGSEGV"), ("late", "status 3")):
        failure = found[provider].failure
        assert failure is not None
        assert failure.kind == "crashes"
        assert message in failure.message
        assert failure.example is not None
    # Ended from outside: no fault of the rule's, but not proved either.
    (problem,) = results.problems
    assert problem.startswith("planted-gelu f32 killed: the process ended with SIGKILL")
    assert not results.scores


def test_the_example_that_broke_the_process_is_the_one_named(setup: Setup) -> None:
    (proof,) = run(Request(setup=setup, rules=("planted-gelu",), providers=("late",), mutants=False)).proofs
    assert proof.failure is not None
    example = proof.failure.example
    assert example is not None
    assert dict(example.dims or ())["C"] > 3
    (again,) = run_example(setup, "planted-gelu", "late", example).proofs
    assert again.failure is not None
    assert "status 3" in again.failure.message
    smaller = dataclasses.replace(example, dims=(("N", 1), ("C", 2)))
    (right,) = run_example(setup, "planted-gelu", "late", smaller).proofs
    assert right.proved


def test_a_provider_that_hangs_is_ended(setup: Setup) -> None:
    request = Request(
        setup=dataclasses.replace(setup, silence=1.0), rules=("planted-gelu",), providers=("hangs", "noisy"), examples=3
    )
    hangs, noisy = run(dataclasses.replace(request, mutants=False)).proofs
    assert hangs.failure is not None
    assert hangs.failure.message == "no answer within 1 s, so it was ended"
    assert noisy.proved


def test_one_process_does_many_jobs_and_lives_through_errors(setup: Setup) -> None:
    with Worker(setup) as worker:
        asked = {"kind": "prove", "rule": "silu-by-hand", "dtype": "f32", "provider": "graph", "examples": 3, "seed": 0}
        heard: list[object] = []
        assert worker.ask(asked, heard.append)["failure"] is None
        assert len(heard) >= 3
        with pytest.raises(JobError, match="no-such-rule"):
            worker.ask({**asked, "rule": "no-such-rule"})
        assert worker.ask(asked)["failure"] is None
        assert worker.starts == 1
        with pytest.raises(Stopped):
            worker.ask({**asked, "rule": "planted-gelu", "provider": "aborts"})
        assert worker.ask(asked)["failure"] is None
        assert worker.starts == 2


def test_a_wrong_rule_has_an_example_that_reproduces(setup: Setup) -> None:
    results = run(Request(setup=setup, rules=("wrong-gelu", "silu-by-hand"), examples=10, jobs=2))
    wrong = next(proof for proof in results.proofs if proof.rule == "wrong-gelu")
    assert wrong.failure is not None
    assert wrong.failure.kind == "wrong result"
    assert wrong.failure.example is not None
    assert all(proof.proved for proof in results.proofs if proof.rule != "wrong-gelu")
    # Of a wrong rule every mutant is wrong, so that only the other one is scored.
    assert [score.rule for score in results.scores] == ["silu-by-hand"]
    assert results.scores[0].killed == results.scores[0].total
    again = run_example(setup, "wrong-gelu", "graph", Example.parse(str(wrong.failure.example)))
    assert again.failed


def test_what_cannot_start_says_why(rule_file: pathlib.Path, tmp_path: pathlib.Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(rule_file.read_text().replace("aten::silu", "aten::sillu"))
    with pytest.raises(Refused, match=r"bad\.yaml:13:7: rule silu-by-hand"):
        run(Request(setup=Setup(sources=(str(bad),))))
    with pytest.raises(Refused, match="--import: cannot import nowhere: ModuleNotFoundError"):
        run(Request(setup=Setup(sources=("default",), imports=("nowhere",))))


def test_unknown_choices_name_the_nearest(setup: Setup) -> None:
    with pytest.raises(UnknownChoice, match=r"--rule: found 'wrong-gellu', .* did you mean wrong-gelu\?"):
        run(Request(setup=setup, rules=("wrong-gellu",)))
    with pytest.raises(UnknownChoice, match=r"--dtype: found 'bf16', .* expected one of f32"):
        run(Request(setup=setup, rules=("wrong-gelu",), dtypes=("bf16",)))
