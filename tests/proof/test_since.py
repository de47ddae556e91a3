"""What has not changed since an earlier verdict is kept, and only the rest is proved anew."""

from __future__ import annotations

import dataclasses
import pathlib
import types

import pytest

from rewriter.cli.main import main
from rewriter.proof import verdict
from rewriter.proof.campaign import Progress, run
from rewriter.proof.jobs import Job, Plan, Request
from rewriter.proof.pool import Setup
from rewriter.proof.results import Basis, Results
from rewriter.proof.since import changes, merged, remaining, still_true

Made = types.SimpleNamespace


class Listening(Progress):
    def __init__(self) -> None:
        self.jobs: list[str] = []
        self.text = ""

    def since(self, text: str) -> None:
        self.text = text

    def done(self, job: Job, outcome: str, seconds: float) -> None:  # noqa: ARG002
        self.jobs.append(str(job))


def again(request: Request, since: Results) -> tuple[Results, Listening]:
    heard = Listening()
    return run(dataclasses.replace(request, since=since), heard), heard


def plan(*rules: str) -> Plan:
    timings = [Job(kind="time", rule=rule) for rule in rules]
    return Plan(
        proofs=[[Job(kind="prove", rule=rule, dtype="f16", provider="torch")] for rule in rules],
        compilations=[dataclasses.replace(job, kind="compile") for job in timings],
        timings=timings,
    )


@pytest.mark.parametrize("change", [{"digest": "d2"}, {"code": "c2"}])
def test_a_rule_or_code_that_changed_is_all_that_is_left(made: Made, change: dict[str, str]) -> None:
    old = made.results(made.proof("a"), made.proof("b"), timings=(made.timed("a"), made.timed("b")))
    rules = {**old.rules, "b": dataclasses.replace(old.rules["b"], **change)}
    kept = still_true(old, old.machine, rules)
    assert {each.rule for each in (*kept.proofs, *kept.timings)} == {"a"}
    left = remaining(plan("a", "b"), kept, 50)
    assert left == plan("b")
    reason = "another rule" if "digest" in change else "of other code"
    text = changes(old, old.machine, rules, left)
    assert text == f"proved anew since 2026-01-01 00:00 UTC, the rest is kept: {reason}: b"


@pytest.mark.parametrize("change", [{"versions": {"rewriter": "0.1.0", "torch": "3"}}, {"name": "Another"}, {"sm": 80}])
def test_nothing_of_another_machine_is_kept(made: Made, change: dict[str, object]) -> None:
    old = made.results(made.proof("a"))
    machine = dataclasses.replace(old.machine, **change)
    kept = still_true(old, machine, old.rules)
    assert not kept.proofs
    assert remaining(plan("a"), kept, 50) == plan("a")
    text = changes(old, machine, old.rules, plan("a"))
    assert text.startswith("all is proved anew, because the verdict of 2026-01-01 00:00 UTC is of another machine: ")
    assert "found " in text


def test_what_was_not_done_or_cut_is_left(made: Made) -> None:
    proofs = (made.proof("a"), made.proof("b"), made.proof("c", failed=True))
    old = made.results(*proofs, timings=(made.timed("a"),), problems=("b f16 torch: only 3 of 50 examples in 1 s",))
    left = remaining(plan("a", "b", "c", "d"), old, 50)
    assert [str(job) for group in left.proofs for job in group] == ["b f16 torch", "d f16 torch"]
    assert [job.rule for job in left.timings] == ["b", "c", "d"]
    assert [job.rule for job in left.compilations] == ["b", "c", "d"]
    assert changes(old, old.machine, {**old.rules, "d": made.basis()}, left).endswith(
        "not all done: b, c; not in it: d"
    )
    # Of a rule that failed no mutants are tried; more examples than there were are another question.
    mutants = [[Job(kind="mutants", rule=rule)] for rule in ("a-rule", "b", "c")]
    assert remaining(Plan(mutants, [], []), old, 50).proofs == [mutants[1]]
    assert len(remaining(plan("a", "b", "c"), old, 1000).proofs) == 2


def test_the_references_come_first_whatever_was_tried_again(made: Made) -> None:
    old = made.results(*(made.proof("a", provider=provider) for provider in ("torch", "cuda", "triton")))
    both = merged(old, made.results(made.proof("a", provider="cuda")))
    assert [proof.provider for proof in both.proofs] == ["torch", "cuda", "triton"]


def test_both_together_are_whole_and_say_since_when(made: Made) -> None:
    old = made.results(made.proof("a"), made.proof("b"), made.proof("c"), timings=(made.timed("a"), made.timed("b")))
    day = "2026-02-02 00:00 UTC"
    rules: dict[str, Basis] = {
        "a": made.basis(date=day),
        "b": made.basis(code="c2", date=day),
        "c": made.basis(date=day),
    }
    new = made.results(
        *(made.proof("b"), made.proof("c", "f32")),
        date=day,
        rules=rules,
        timings=(made.timed("b", fused=5.0),),
        scores=(),
    )
    both = merged(dataclasses.replace(old, scores=()), new)
    assert [(proof.rule, proof.dtype) for proof in both.proofs] == [
        ("a", "f16"),
        ("b", "f16"),
        ("c", "f32"),
        ("c", "f16"),
    ]
    assert [timed.rule for timed in both.timings] == ["a", "b"]
    assert both.timings[1].best.time.median == 5.0
    # A rule is as old as the oldest of its results.
    dates = {rule: basis.date for rule, basis in both.rules.items()}
    assert dates == {"a": old.date, "b": day, "c": old.date}
    assert both.date == day
    assert merged(old, dataclasses.replace(new, proofs=(), timings=())).date == old.date


def test_a_campaign_proves_only_what_changed(rule_file: pathlib.Path, planted: str) -> None:
    setup = Setup(sources=(str(rule_file),), imports=(planted,))
    request = Request(setup=setup, rules=("silu-by-hand", "wrong-gelu"), examples=3, mutants=False)
    first = run(request)
    whole, heard = again(request, first)
    assert heard.jobs == []
    assert heard.text == f"nothing has changed since {first.date}, so nothing is proved anew"
    assert whole == dataclasses.replace(first, notes=(*first.notes, heard.text), rules=whole.rules)
    text = rule_file.read_text().replace("dims: {N: 1..3, C: 1..40}", "dims: {N: 1..2, C: 1..40}", 1)
    rule_file.write_text(text)
    whole, heard = again(request, first)
    assert heard.jobs == ["silu-by-hand f32 graph", "silu-by-hand f16 graph"]
    assert heard.text.endswith("another rule: silu-by-hand")
    assert [(p.rule, p.dtype) for p in whole.proofs] == [(p.rule, p.dtype) for p in first.proofs]
    assert whole.failed == first.failed
    older = {**first.rules, "wrong-gelu": dataclasses.replace(first.rules["wrong-gelu"], code="other")}
    _, heard = again(request, dataclasses.replace(whole, rules={**whole.rules, "wrong-gelu": older["wrong-gelu"]}))
    assert heard.jobs == ["wrong-gelu f32 graph"]
    assert heard.text.endswith("of other code: wrong-gelu")


@pytest.mark.usefixtures("cache")
def test_the_command(rule_file: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    rule_file.write_text(rule_file.read_text().partition("  - id: wrong-gelu")[0])
    arguments = ["test", str(rule_file), "--examples", "2", "--no-mutants", "--jobs", "1"]
    out = tmp_path / "out"
    assert main([*arguments, "--out", str(out)]) == 0
    first = verdict.read(out / "verdict.json")
    assert main([*arguments, "--since", str(out), "--out", str(tmp_path / "again")]) == 0
    captured = capsys.readouterr()
    assert f"nothing has changed since {first.date}, so nothing is proved anew" in captured.err
    assert f"nothing has changed since {first.date}" in (tmp_path / "again" / "verdict.html").read_text()
    assert verdict.read(tmp_path / "again" / "verdict.json").proofs == first.proofs
    older = out / "older.json"
    older.write_text((out / "verdict.json").read_text().replace('"format": 2', '"format": 1'))
    assert main([*arguments, "--since", str(older)]) == 0
    captured = capsys.readouterr()
    assert f"nothing of {older} is kept: it has format 1 and not 2" in captured.err
    assert "2/2 silu-by-hand f16 graph: 2 examples" in captured.err


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "--since: cannot read"), ("[]", "--since: "), ("{", "it is not JSON")],
)
def test_what_is_no_verdict(
    text: str | None, message: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "verdict.json"
    if text is not None:
        file.write_text(text)
    assert main(["test", "--since", str(file)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(file) in error
    assert main(["test", "--since", str(file), "--example", "f32", "--rule", "a", "--provider", "b"]) == 2
    assert "--since: expected no --example beside it" in capsys.readouterr().err
