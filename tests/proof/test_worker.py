"""Proofs in a process of their own: what kills it is a finding, and the rest goes on."""

from __future__ import annotations

import dataclasses
import pathlib

import pytest

from rewriter.proof.campaign import Progress, Stop, run, run_example
from rewriter.proof.jobs import Job, Request, UnknownChoice, planned
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
    # On a busy machine the other provider's worker may need a second for an answer, too.
    request = Request(
        setup=dataclasses.replace(setup, silence=4.0), rules=("planted-gelu",), providers=("hangs", "noisy"), examples=3
    )
    hangs, noisy = run(dataclasses.replace(request, mutants=False)).proofs
    assert hangs.failure is not None
    assert hangs.failure.message == "no answer within 4 s, so it was ended"
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


def test_each_proof_can_go_to_another_process_and_what_is_compiled_goes_first(setup: Setup) -> None:
    about = [
        {"id": "a", "dtypes": ["f32", "f16"], "providers": ["torch", "triton"], "sites": [5, 90]},
        {"id": "b", "dtypes": ["f32"], "providers": ["torch"], "sites": [7]},
        {"id": "c", "dtypes": ["f32"], "providers": [], "sites": [7]},
    ]
    plan = planned(Request(setup=setup, mutants=False), about)
    names = [[str(job) for job in group] for group in plan.first()]
    assert names[:2] == [["a f32 triton"], ["a f16 triton"]]
    assert names[2:5] == [["a f32 torch"], ["a f16 torch"], ["b f32 torch"]]
    # The heaviest site of each rule, then the next ones.
    assert names[5:] == [["a compile 1"], ["b compile 0"], ["a compile 0"]]
    assert [str(job) for job in plan.timings] == ["a time 1", "b time 0", "a time 0"]
    # Mutants come after the proofs of their rule, in one process.
    together = planned(Request(setup=setup), about).proofs
    assert [str(job) for job in together[1]] == ["b f32 torch", "b mutants"]


def test_a_campaign_ends_when_it_is_told_to(setup: Setup) -> None:
    class Ending(Progress):
        def done(self, job: Job, outcome: str, seconds: float) -> None:
            assert seconds > 0
            heard.append(f"{job}: {outcome}")
            stop("told to")

    heard: list[str] = []
    stop = Stop()
    request = Request(setup=setup, rules=("silu-by-hand", "planted-gelu"), providers=("graph", "hangs"), examples=3)
    results = run(request, Ending(), stop)
    assert heard == ["silu-by-hand f32 graph: 3 examples"]
    assert [proof.dtype for proof in results.proofs] == ["f32"]
    (problem,) = results.problems
    left = "silu-by-hand f16 graph, silu-by-hand mutants, planted-gelu f32 hangs, planted-gelu mutants"
    assert problem == f"4 not done, told to: {left}"


def test_sites_are_compiled_for_and_timed_after_the_proofs() -> None:
    class Listening(Progress):
        def done(self, job: Job, outcome: str, seconds: float) -> None:  # noqa: ARG002
            heard.append(str(job))

    heard: list[str] = []
    request = Request(
        setup=Setup(sources=("default",), shapes=1), rules=("linear-quick-gelu",), dtypes=("f16",), examples=1, jobs=2
    )
    results = run(dataclasses.replace(request, mutants=False, providers=("torch",)), Listening())
    sites = len(results.timings)
    assert sites > 1
    compiled = [f"linear-quick-gelu compile {number}" for number in range(sites)]
    assert sorted(heard[: 1 + sites]) == [*compiled, "linear-quick-gelu f16 torch"]
    assert heard[1 + sites] == "the card ceilings"
    assert [timed.reason for timed in results.timings] == [None] * sites
    assert results.ceilings is not None


def test_a_proof_that_takes_too_long_says_how_far_it_came(setup: Setup) -> None:
    asked = {"kind": "prove", "rule": "silu-by-hand", "dtype": "f32", "provider": "graph", "seed": 0}
    with Worker(setup) as worker:
        found = worker.ask({**asked, "examples": 100_000, "seconds": 0.5})
        assert (found["cut"], found["failure"]) == (True, None)
        # One is enough: on a machine under load the first takes longer than all that it is given.
        assert 1 <= found["examples"] < 100_000
        assert not worker.ask({**asked, "examples": 2, "seconds": 60})["cut"]
