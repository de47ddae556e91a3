"""What `load_rules` takes, in which order rules come, and what a set of rules knows about itself."""

from __future__ import annotations

import copy
import os
import pathlib
import pickle
import re
from collections.abc import Callable

import pytest

from rewriter.errors import RuleError
from rewriter.language import RuleSet, load_rules
from rewriter.language.conditions import PHASES

Load = Callable[[str], RuleSet]


def test_phases_come_first_then_benefit_then_the_file(sample: str, load: Load) -> None:
    third = sample[sample.index("  - id: linear-act") : sample.index("  - id: stacked-linear")]
    text = sample + third.replace("id: linear-act", "id: linear-tanh").replace("relu, silu", "tanh, sigmoid")
    assert [rule.id for rule in load(text)] == ["stacked-linear", "linear-act", "linear-tanh"]
    text = text.replace("id: linear-tanh", "id: linear-tanh\n    benefit: 2")
    assert [rule.id for rule in load(text)] == ["stacked-linear", "linear-tanh", "linear-act"]


def test_what_a_rule_knows(sample: str, load: Load) -> None:
    rule = load(sample)["linear-act"]
    assert (rule.pack, rule.phase, rule.benefit, rule.tolerance, rule.outputs) == ("sample", "fuse", 1, 2.0, ("y",))
    assert rule.summary == "activation(linear(x))"
    assert rule.match_text.startswith("h = aten::linear(")
    assert rule.replace_text == "y = rewriter::linear_act(x, weight, bias, act)\n"
    assert rule.position.line == 5
    assert rule.inputs["bias"].optional  # type: ignore[union-attr]
    assert rule.inputs["x"].layouts == ("contiguous", "sliced")  # type: ignore[union-attr]
    assert (rule.dims["N"].low, rule.dims["N"].high) == (1, 3)
    assert rule.dims["M"].choices == (1, 2)
    stacked = load(sample)["stacked-linear"]
    assert stacked.inputs["weight"].count == (2, 4)  # type: ignore[union-attr]
    with pytest.raises(KeyError):
        load(sample)["linear"]
    assert "linear-act" in load(sample)


def test_an_omitted_operand_is_the_default_of_the_schema(sample: str, load: Load) -> None:
    from rewriter.language.syntax import Literal

    text = sample.replace("      h = aten::linear(x, weight, bias?)\n", "      h = aten::linear(x, weight)\n")
    text = text.replace("weight, bias, act)", "weight, None, act)").replace(
        "      bias: {shape: [8*M], optional: true}\n", ""
    )
    assert load(text)["linear-act"].match[0].calls[0].operands[2] == Literal(None)


def test_sources(sample: str, tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    first = sample[: sample.index("  - id: stacked-linear")]
    head = sample[: sample.index("  - id: linear-act")]
    (folder / "a.yaml").write_text(first)
    (folder / "b.yaml").write_text(head + sample[sample.index("  - id: stacked-linear") :])
    (folder / "notes.txt").write_text("not a rule file")
    assert len(load_rules(folder)) == 2
    assert len(load_rules(str(folder) + os.sep)) == 2
    assert len(load_rules(str(folder / "a.yaml"))) == 1
    both = load_rules([folder / "a.yaml", load_rules(folder / "b.yaml")])
    assert [rule.id for rule in both] == ["stacked-linear", "linear-act"]
    assert [rule.id for rule in load_rules([folder, "-linear-act"])] == ["stacked-linear"]
    assert [rule.id for rule in load_rules([folder, "-linear-*"])] == ["stacked-linear"]
    assert len(load_rules([])) == 0


def test_default_pack_loads_and_every_rule_is_of_a_known_phase() -> None:
    rules = load_rules()
    assert len(rules) > 0
    assert {rule.phase for rule in rules} <= set(PHASES)
    assert len(load_rules(["default", f"-{rules.rules[0].id}"])) == len(rules) - 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "defualt",
            r"defualt:1:1: unknown pack \(found defualt, expected one of .*default.*\); did you mean default\?",
        ),
        ("", r"'':1:1: unknown pack \(found no name"),
        ("./nowhere", r"nowhere:1:1: cannot read the rule file: No such file"),
        ("nowhere.yaml", r"nowhere.yaml:1:1: cannot read the rule file: No such file"),
        ("a\0.yaml", r"cannot read the rule file"),
        ("a" * 5000 + ".yaml", r"cannot read the rule file: File name too long"),
        ("a" * 5000, r"unknown pack"),
        (["default", "-linear-aktivation"], r"-linear-aktivation:1:1: no such rule to remove"),
        (["-dropout", "default"], r"no such rule to remove"),
        (["default", "-fp8-*"], r"no such rule to remove"),
    ],
)
def test_unknown_source(source: str | list[str], message: str) -> None:
    with pytest.raises(RuleError, match=message):
        load_rules(source)


def test_folder_without_rules(tmp_path: pathlib.Path) -> None:
    with pytest.raises(RuleError, match="a folder without rule files"):
        load_rules(tmp_path)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        (3, "found int"),
        (None, "found NoneType"),
        (b"default", "found bytes"),
        ({"default": True}, "found dict"),
        ([3], "found int in the list"),
        ([["default"]], "found list in the list"),
    ],
)
def test_wrong_type(source: object, found: str) -> None:
    with pytest.raises(TypeError, match=f'^rules: {found}, expected pack names such as "default", paths of rule files'):
        load_rules(source)  # type: ignore[arg-type]


def test_both_endings_in_a_folder(tmp_path: pathlib.Path, sample: str) -> None:
    (tmp_path / "a.yaml").write_text(sample)
    (tmp_path / "b.yml").write_text("format: 2")
    with pytest.raises(RuleError, match=r"b\.yml:1:1"):
        load_rules(tmp_path)


def test_a_set_prints_on_one_line_and_is_its_own_copy() -> None:
    rules = load_rules()
    assert re.fullmatch(r"<RuleSet [0-9a-f]+ of \d+ rules: [a-z0-9-]+, [a-z0-9-]+, [a-z0-9-]+, \.\.\.>", repr(rules))
    assert repr(rules["dropout"]).startswith("<Rule dropout (")
    assert copy.deepcopy(rules) is rules


def test_unreadable(tmp_path: pathlib.Path, sample: str) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(sample)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user reads everything")
    with pytest.raises(RuleError, match="cannot read the rule file: Permission denied"):
        load_rules(path)


def test_an_edited_file_is_read_again(tmp_path: pathlib.Path, sample: str) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(sample)
    before = load_rules(path)
    path.write_text(sample.replace("id: linear-act", "id: linear-activation"))
    assert "linear-activation" in load_rules(path)
    assert "linear-act" in before


def test_digest_follows_what_the_rules_do(sample: str, load: Load) -> None:
    rules = load(sample)
    assert rules.digest == load(sample.replace("tolerance: 2", "tolerance:  2  # the same")).digest
    assert rules.digest != load(sample.replace("tolerance: 2", "tolerance: 3")).digest
    assert rules.digest != load(sample.replace("M % 8", "M % 4")).digest


def test_an_error_survives_a_process_boundary() -> None:
    with pytest.raises(RuleError) as caught:
        load_rules("defualt")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again), vars(again)) == (RuleError, str(caught.value), vars(caught.value))
