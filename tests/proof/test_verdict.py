"""Verdict files: what is written is read again, what is wrong or foreign is ignored, what failed is left out."""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import pathlib
import types
from typing import Any

import pytest
import torch

import rewriter
from rewriter.language import load_rules
from rewriter.proof import verdict
from rewriter.proof.code import code_digest
from rewriter.proof.machine import this_machine
from rewriter.proof.results import Basis, Results, of_document, to_document

Made = types.SimpleNamespace


class Net(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(torch.nn.functional.group_norm(x, 2)) + 1


def here(results: Results, **rules: Basis) -> Results:
    """The same results on this machine, about these rules."""
    proofs = tuple(dataclasses.replace(proof, device="cpu") for proof in results.proofs)
    return dataclasses.replace(results, machine=this_machine("cpu"), rules=rules or results.rules, proofs=proofs)


def bases(*rules: str) -> dict[str, Basis]:
    pack, date = load_rules("default"), "2026-01-01 00:00 UTC"
    return {rule: Basis(digest=pack[rule].digest, code=code_digest(pack[rule]), date=date) for rule in rules}


def test_what_is_written_is_read_again(made: Made, tmp_path: pathlib.Path) -> None:
    results = made.results(made.proof(), made.proof(provider="triton", failed=True))
    verdict.write(results, tmp_path / "folder" / "one.json")
    assert verdict.read(tmp_path / "folder" / "one.json") == results
    assert of_document(json.loads(json.dumps(to_document(results), allow_nan=False))) == results
    assert list((tmp_path / "folder").iterdir()) == [tmp_path / "folder" / "one.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format=3), r"\$\.format: 2 was expected"),
        (lambda d: d["rules"]["a-rule"].pop("code"), r"\$\.rules\['a-rule'\]: 'code' is a required property"),
        (lambda d: d.pop("proofs"), "'proofs' is a required property"),
        (lambda d: d.update(extra=1), "'extra' was unexpected"),
        (lambda d: d["machine"].update(sm="90"), r"\$\.machine\.sm: '90' is not of type"),
        (lambda d: d["proofs"][1]["failure"].update(kind="bad luck"), r"failure.* is not "),
        (lambda d: d["proofs"][1]["failure"].update(example="f16"), "not an example"),
        (lambda d: d["proofs"][0].update(worst=float("nan")), "NaN, which JSON does not have"),
    ],
)
def test_a_corrupt_file_says_where(made: Made, tmp_path: pathlib.Path, change: Any, message: str) -> None:
    document = to_document(made.results(made.proof(), made.proof(provider="triton", failed=True)))
    change(document)
    file = tmp_path / "one.json"
    file.write_text(json.dumps(document))
    with pytest.raises(verdict.Unusable, match=message):
        verdict.read(file)
    file.write_text(json.dumps(document)[:100])
    with pytest.raises(verdict.Unusable, match="it is not JSON"):
        verdict.read(file)


def test_a_second_run_adds_to_the_first(made: Made, cache: pathlib.Path) -> None:
    verdict.keep(made.results(made.proof("one"), made.proof("two", failed=True), made.proof("two", "f32")))
    verdict.keep(made.results(made.proof("two"), scores=(), timings=(), ceilings=None))
    kept = verdict.read(verdict.path("A <GPU> 80GB"))
    assert verdict.path("A <GPU> 80GB") == cache / "verdicts" / "a-gpu-80gb.json"
    assert {(proof.rule, proof.dtype, proof.proved) for proof in kept.proofs} == {
        ("one", "f16", True),
        ("two", "f16", True),
        ("two", "f32", True),
    }
    assert kept.ceilings is not None
    # Another digest of a rule, or another machine: nothing of the old stays.
    verdict.keep(made.results(made.proof("two"), rules={"one": made.basis("d2"), "two": made.basis()}))
    assert {proof.rule for proof in verdict.read(verdict.path("A <GPU> 80GB")).proofs} == {"two"}
    other = dataclasses.replace(kept.machine, versions={"torch": "3", "rewriter": "1"})
    verdict.keep(made.results(made.proof("three"), machine=other))
    assert {proof.rule for proof in verdict.read(verdict.path("A <GPU> 80GB")).proofs} == {"three"}


@pytest.mark.usefixtures("cache")
def test_an_unusable_file_is_replaced(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    file = verdict.path("A <GPU> 80GB")
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    verdict.keep(made.results(made.proof()))
    assert verdict.read(file).proofs
    assert "is replaced" in caplog.text


@pytest.mark.usefixtures("cache")
def test_what_is_excluded(made: Made) -> None:
    rules = load_rules("default")
    failing = [
        made.proof("group-norm-silu", provider="torch"),
        made.proof("group-norm-silu", provider="triton", failed=True),
        made.proof("quick-gelu", provider="torch", failed=True),
        made.proof("quick-gelu", provider="triton"),
        made.proof("linear-geglu", provider="triton", failed=True),
        made.proof("silu", provider="graph", failed=True),
    ]
    names = ("group-norm-silu", "quick-gelu", "linear-geglu", "silu")
    verdict.keep(here(made.results(*failing), **bases(*names)))
    found = verdict.excluded("cpu", rules)
    assert set(found.rules) == {"quick-gelu", "linear-geglu", "silu"}
    assert set(found.providers) == {("group_norm_silu", "triton")}
    assert found.rules["silu"] == "silu failed its proof on this machine (f16, wrong result, 2026-01-01 00:00 UTC)"
    assert not found.ignored


@pytest.mark.usefixtures("cache")
def test_verdicts_on_other_rules_code_and_machines_count_for_nothing(made: Made) -> None:
    rules = load_rules("default")
    failed = here(made.results(made.proof("group-norm-silu", failed=True)), **bases("group-norm-silu"))
    own = verdict.path(this_machine("cpu").name)
    basis = failed.rules["group-norm-silu"]
    other = dataclasses.replace(basis, digest="older")
    verdict.write(dataclasses.replace(failed, rules={"group-norm-silu": other}), own)
    found = verdict.excluded("cpu", rules)
    assert not found.rules
    assert not found.ignored
    other = dataclasses.replace(basis, code="older")
    verdict.write(dataclasses.replace(failed, rules={"group-norm-silu": other}), own)
    found = verdict.excluded("cpu", rules)
    assert not found.rules
    assert found.ignored == (
        f"failures in the verdict file {own} are of other code and ignored: group-norm-silu; "
        f"`rewriter test --device cpu --since {own}` proves anew what has changed",
    )
    verdict.write(dataclasses.replace(failed, machine=dataclasses.replace(failed.machine, name="another")), own)
    found = verdict.excluded("cpu", rules)
    assert not found.rules
    assert "is ignored: it is about another, and this is" in found.ignored[0]
    verdict.write(failed, own)
    assert set(verdict.excluded("cpu", rules).rules) == {"group-norm-silu"}


@pytest.mark.usefixtures("cache")
def test_optimize_leaves_out_what_failed_and_says_so(made: Made) -> None:
    def matches() -> tuple[dict[str, Any], list[str]]:
        net = Net().eval()
        rewriter.optimize(net, measure=False)
        x = torch.randn(1, 4, 3, 3)
        assert torch.equal(net(x), Net()(x))
        (part,) = rewriter.report(net).components.values()
        assert part.status == "optimised"
        rewriter.explain(net)
        return part.matches, part.messages

    name = "group-norm-centred-silu"
    found, messages = matches()
    assert name in found
    assert not messages
    failed = here(made.results(made.proof(name, failed=True)), **bases(name))
    verdict.keep(failed)
    found, messages = matches()
    assert name not in found
    assert messages == [
        f"left out: {name} failed its proof on this machine (f16, wrong result, 2026-01-01 00:00 UTC); "
        f"`rewriter test --device cpu --rule {name}` proves it anew"
    ]
    verdict.path(this_machine("cpu").name).write_text("[]")
    found, messages = matches()
    assert name in found
    assert "is ignored" in messages[0]


def test_other_code_of_one_rule_leaves_the_other_rules_failures(made: Made, cache: pathlib.Path) -> None:
    names = ("group-norm-silu", "quick-gelu")
    failed = here(made.results(*(made.proof(name, failed=True) for name in names)), **bases(*names))
    changed = dataclasses.replace(failed.rules["quick-gelu"], code="older")
    verdict.keep(dataclasses.replace(failed, rules={**failed.rules, "quick-gelu": changed}))
    found = verdict.excluded("cpu", load_rules("default"))
    assert cache.exists()
    assert set(found.rules) == {"group-norm-silu"}
    assert "other code and ignored: quick-gelu;" in found.ignored[0]


@pytest.mark.usefixtures("cache")
def test_a_file_of_the_older_format_is_of_other_code(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    failed = here(made.results(made.proof("group-norm-silu", failed=True)), **bases("group-norm-silu"))
    document = to_document(failed)
    document["format"] = 1
    document["rules"] = {rule: basis["digest"] for rule, basis in document["rules"].items()}
    document["machine"]["ops"] = "0123456789abcdef"
    own = verdict.path(this_machine("cpu").name)
    own.parent.mkdir(parents=True)
    own.write_text(json.dumps(document))
    found = verdict.excluded("cpu", load_rules("default"))
    assert not found.rules
    assert found.ignored == (
        f"the verdict file {own} is ignored: it has format 1 and not 2, so all of it counts as of other code; "
        "`rewriter test` proves the rules anew",
    )
    with pytest.raises(verdict.Outdated):
        verdict.read(own)
    verdict.keep(failed)
    assert "is replaced: it has format 1 and not 2" in caplog.text
    assert verdict.read(own) == failed


def test_the_schema_is_one() -> None:
    import jsonschema

    text = (importlib.resources.files("rewriter.schemas") / "verdict.schema.json").read_text(encoding="utf-8")
    jsonschema.Draft7Validator.check_schema(json.loads(text))


def test_shipped_verdicts_are_usable() -> None:
    folder = pathlib.Path(str(importlib.resources.files("rewriter.proof"))) / "verdicts"
    files = sorted(folder.glob("*.json"))
    assert files
    for file in files:
        results = verdict.read(file)
        assert file.name == verdict.path(results.machine.name).name
        # The page beside it shows the same run.
        assert results.date in file.with_suffix(".html").read_text(encoding="utf-8")
