"""Mutants of rules: those of the default pack are all killed, those of a rule that looks at too little are not."""

from __future__ import annotations

import pathlib
import re
import textwrap

import pytest

from rewriter.language import Rule, load_rules
from rewriter.proof.mutants import mutants
from rewriter.proof.mutants_score import Score, examine, score

RULES = load_rules("default")

# Mutated patterns that are not wrong, and why: everything else that passes is a finding.
EQUIVALENT = {
    r"\w+ and \w+ of aten::(add|mul) exchanged": "a sum or a product of two",
    r"gate and y of rewriter::gate_add exchanged": "a product of two",
    r"(residual|c) and (c|addend) of rewriter::(add|sum)_group_norm(_silu)? exchanged": "a sum of two",
    r"enable_gqa of aten::scaled_dot_product_attention is True": "no effect where q, k and v have as many heads",
    r"copy of aten::to is True": "it shares no memory, which the engine sees to",
    r"memory_format of aten::(contiguous|to) is 2": "it chooses memory, no number",
    r"dtype of aten::(to|mean) is \d+ instead of (6|None)": "an intermediate dtype; the exact result is the same",
    r"no aten::to: \w+ stands for \w+": "an intermediate dtype; the exact result is the same",
    r"aten::(pow|mul|reshape|unflatten) reads \w+ instead of \w+ as \w+": "the same tensor in another dtype",
    r"aten::permute reads c instead of d as self": "d is a copy of c",
    r"no aten::contiguous: \w+ stands for \w+": "a copy",
    r"dilation of aten::convolution is \[2, \d\] instead of \[1, 1\]": "a filter of one element has nothing to spread",
    r"dim1 of aten::transpose is 1 instead of -2": "the same dimension of a tensor of rank 3",
    r"aten::(div|mul) instead of aten::(div|mul)": "by one",
}
# The same of one rule only.
EQUIVALENT_OF = {
    "attention-one-key": {
        r"norm_weight and norm_bias of aten::layer_norm exchanged": "a single key has the weight 1",
        r"aten::layer_norm reads (another tensor|norm_bias|norm_weight) ": "a single key has the weight 1",
        r"no aten::layer_norm: x stands for n": "a single key has the weight 1",
        r"aten::linear reads x instead of n as input": "a single key has the weight 1",
        r"causal of rewriter::attention_tokens is True": "no key comes after the first",
    },
}


def read(tmp_path: pathlib.Path, entry: str) -> Rule:
    path = tmp_path / "mine.yaml"
    head = "format: 1\npack: mine\nsummary: Mine.\nrules:\n  - id: mine\n    summary: Mine\n"
    path.write_text(head + textwrap.indent(textwrap.dedent(entry).strip("\n"), "    ") + "\n")
    (rule,) = load_rules(path)
    return rule


GEGLU = """
    match: |
      h = aten::linear(x, weight, bias)
      hidden, gate = aten::chunk(h, 2, DIM)
      g = aten::gelu(gate)
      y = aten::mul(hidden, g)
    WILD
    replace: y = rewriter::linear_geglu(x, weight, bias)
    inputs:
      x: {shape: [N, S, K]}
      weight: {shape: [2*M, K]}
      bias: {shape: [2*M]}
      INPUT
    dims: {N: 2, S: 4, K: 1..17, M: 1..17}
"""


def strict(tmp_path: pathlib.Path) -> Rule:
    return read(tmp_path, GEGLU.replace("DIM", "-1").replace("    WILD\n", "").replace("      INPUT\n", ""))


def lax(tmp_path: pathlib.Path) -> Rule:
    entry = GEGLU.replace("DIM", "dim").replace("WILD", 'ignore: {dim: "always the last"}').replace("INPUT", "dim: -1")
    return read(tmp_path, entry)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_no_mutant_of_a_default_rule_survives(rule: Rule) -> None:
    found = score(rule)
    assert not found.survivors, "\n".join(map(str, found.survivors))
    assert found.killed == found.total > 10
    known = [*EQUIVALENT, *EQUIVALENT_OF.get(rule.id, ())]
    for equivalent in found.equivalent:
        description = equivalent.mutant.description
        assert any(re.match(each, description) for each in known), str(equivalent)


def test_every_family_kills_something() -> None:
    rules = [RULES[name] for name in ("merge-projections", "linear-geglu", "add-group-norm-silu", "attention-products")]
    killed = {
        (mutant.of, mutant.family)
        for rule in rules
        for mutant in mutants(rule)
        if examine(rule, mutant, dtype="f32").outcome in ("refused", "rejected")
    }
    of_program = {family for of, family in killed if of == "program"}
    assert of_program >= {
        *("constant", "dim", "op", "exchanged results", "another operand", "statement left out"),
        *("second use", "write", "dtype", "rank", "shape", "single sibling", "no weight"),
    }
    of_rule = {family for of, family in killed if of == "rule"}
    assert of_rule >= {"constant", "op", "exchanged operands", "exchanged results", "another operand"}


def test_a_strict_rule_has_no_survivors(tmp_path: pathlib.Path) -> None:
    assert not score(strict(tmp_path)).survivors


def test_a_mutant_that_never_comes_to_an_end_is_killed(tmp_path: pathlib.Path) -> None:
    entry = """
        match: |
          s = aten::silu(x)
          y = aten::mul(s, gate)
        where: {x: {dtype: [f32], rank: 2}, gate: {dtype: [f32], rank: 2}}
        replace: |
          e = aten::sigmoid(x)
          m = aten::mul(x, e)
          y = aten::mul(m, gate)
        inputs: {x: {shape: [N, C]}, gate: {shape: [N, C]}}
        dims: {N: 1..3, C: 1..7}
    """
    rule = read(tmp_path, entry)
    verdicts = [examine(rule, mutant, dtype="f32") for mutant in mutants(rule)]
    assert any("does not end: the rules do not come to an end" in verdict.reason for verdict in verdicts)
    assert not score(rule).survivors


def survivors(found: Score) -> list[str]:
    return [survivor.mutant.description for survivor in found.survivors]


def test_a_wildcarded_dim_survives_and_is_printed(tmp_path: pathlib.Path) -> None:
    found = score(lax(tmp_path))
    assert set(survivors(found)) == {"dim is -2", "dim is 0", "dim is 1"}
    assert (found.killed, str(found)) == (found.total - 3, f"{found.total - 3} of {found.total}")
    printed = str(found.survivors[0])
    assert printed.startswith("mine, free constant: dim is ")
    assert "    hidden, gate = aten::chunk(h, 2, dim)\n" in printed
    assert "the rule fires: wrong shape: output y: found [2, 4, " in printed


def test_an_ignored_constant_that_matters_survives(tmp_path: pathlib.Path) -> None:
    rule = read(
        tmp_path,
        """
        match: |
          n = aten::layer_norm(x, shape, weight, bias, eps, cudnn)
          y = aten::silu(n)
        ignore: {eps: "small", cudnn: "a hint"}
        replace: |
          m = aten::layer_norm(x, shape, weight, bias, 1e-5)
          s = aten::sigmoid(m)
          y = aten::mul(m, s)
        inputs:
          x: {shape: [N, C]}
          shape: [[C]]
          weight: {shape: [C]}
          bias: {shape: [C]}
          eps: 1e-5
          cudnn: true
        dims: {N: 1..3, C: 2..20}
        """,
    )
    assert set(survivors(score(rule))) == {"eps is 0.50001", "eps is 2e-05", "eps is 0.02001"}


def test_a_missing_condition_survives(tmp_path: pathlib.Path) -> None:
    """The sum's second term may be larger than the first."""
    rule = read(
        tmp_path,
        """
        match: y = aten::add(x, r)
        replace: |
          e = aten::expand_as(r, x)
          y = aten::sub(x, e, alpha=-1)
        inputs:
          x: {shape: [N, C]}
          r: {shape: [N, C]}
        dims: {N: 2..3, C: 2..9}
        """,
    )
    assert "dimension 0 of x is 1" in survivors(score(rule))


def test_a_proof_that_sees_nothing_of_a_constant(tmp_path: pathlib.Path) -> None:
    """A rule mutant survives where the entry draws too little to tell: no number at which the clamp acts."""
    rule = read(
        tmp_path,
        """
        match: |
          s = aten::sigmoid(x)
          y = aten::clamp(s, -7.0, 7.0)
        replace: |
          s = aten::sigmoid(x)
          y = aten::clone(s)
        inputs:
          x: {shape: [N, C]}
        dims: {N: 1..3, C: 1..9}
        """,
    )
    found = score(rule)
    assert not [each for each in found.survivors if each.mutant.of == "program"]
    assert "min of aten::clamp is -6.5 instead of -7.0" in [each.mutant.description for each in found.equivalent]


def test_mutants_are_the_same_every_time(tmp_path: pathlib.Path) -> None:
    rule = strict(tmp_path)
    assert [str(mutant) for mutant in mutants(rule)] == [str(mutant) for mutant in mutants(rule)]
    assert str(score(rule)) == str(score(rule))


def test_a_printed_pattern_can_be_pasted(tmp_path: pathlib.Path) -> None:
    """As the pattern of a rule whose replacement does not matter."""
    pasted = [mutant for mutant in mutants(strict(tmp_path)) if mutant.of == "rule"]
    assert len(pasted) > 10
    for mutant in pasted:
        pattern = textwrap.indent(mutant.pattern, "      ")
        tail = GEGLU[GEGLU.index("    replace:") :].replace("      INPUT\n", "")
        rule = read(tmp_path, f"    match: |\n{pattern}\n{tail}")
        assert [step.targets for step in rule.match] == [step.targets for step in mutant.entry.match]


def test_a_rule_that_fits_no_dtype(tmp_path: pathlib.Path) -> None:
    rule = read(
        tmp_path,
        """
        match: |
          s = aten::sigmoid(x)
          y = aten::mul(x, s)
        where:
          x: {dtype: f32}
        replace: y = aten::silu(x)
        inputs:
          x: {shape: [N, C], dtype: f16}
        dims: {N: 1..3, C: 1..9}
        """,
    )
    with pytest.raises(ValueError, match="rule mine: found no dtype"):
        score(rule)
