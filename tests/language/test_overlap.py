"""Rules that shadow others, and rules that would never end."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from rewriter.language import RuleSet

HEAD = "format: 1\npack: sample\nsummary: s\nrules:\n"


def rule(name: str, match: str, replace: str, names: str, extra: str = "") -> str:
    """A rule in YAML; `names` are its tensor operands, `|` separates statements."""
    lines = [f"  - id: {name}", "    summary: s", "    match: |"]
    lines += [f"      {line.strip()}" for line in match.split("|")]
    lines += ["    replace: |", *(f"      {line.strip()}" for line in replace.split("|")), "    inputs:"]
    lines += [f"      {operand}: {{shape: [N]}}" for operand in names.split()]
    return "\n".join([*lines, "    dims: {N: 1..3}", *(f"    {line}" for line in extra.split("|") if line), ""])


def pair(first: str, second: str) -> str:
    match, replace = "a = aten::relu(x)|y = aten::silu(a)", "y = aten::sigmoid(x)"
    renamed = "b = aten::relu(z)|w = aten::silu(b)", "w = aten::tanh(z)"
    return HEAD + rule("first", match, replace, "x", first) + rule("second", *renamed, "z", second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("", ""),
        ("", "where: {z: {dtype: f16}}"),
        ("where: {x: {dtype: [f16, f32]}}", "where: {z: {dtype: f16}}"),
        ("where: {x: {rank: [2, 3]}}", "where: {z: {rank: 3, dtype: f16}}"),
        ("where: {a: {uses: 1}}", "where: {b: {uses: 1}}"),
        ("where: {x: {min: 1}}", "where: {z: {min: 2}}"),
        ("where: {x: {value: [1, 2]}}", "where: {z: {value: 2}}"),
        ("where: {x: {shape: [N, C]}}|require: [C > 1]", "where: {z: {shape: [N, C]}}|require: [C > 1, N > 1]"),
        ("device: [cpu, cuda]", "device: cpu"),
        ("", "gpu: {sm: '>=80'}"),
    ],
)
def test_shadowed(first: str, second: str, refused: Callable[[str], str]) -> None:
    message = refused(pair(first, second))
    assert re.match(r"1\d:9: rule second: never reached: first \(5:9\) matches the same pattern first", message)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("where: {x: {dtype: f16}}", ""),
        ("where: {x: {dtype: f16}}", "where: {z: {dtype: f32}}"),
        ("where: {x: {dtype: f16}}", "where: {z: {dtype: [f16, f32]}}"),
        ("where: {x: {dtype: f16}}", "where: {b: {dtype: f16}}"),
        ("where: {x: {rank: 2}}", "where: {z: {dtype: f16}}"),
        ("where: {x: {min: 2}}", "where: {z: {min: 1}}"),
        ("where: {x: {const: true}}", "where: {z: {const: false}}"),
        ("where: {x: {shape: [N, C]}}|require: [C > 1]", "where: {z: {shape: [N, C]}}"),
        ("device: cuda", ""),
        ("gpu: {sm: '>=80'}", ""),
        ("phase: merge", ""),
        ("", "phase: canonicalise"),
        ("", "may_escape: [b]|"),
    ],
)
def test_not_shadowed(first: str, second: str, load: Callable[[str], RuleSet]) -> None:
    text = pair(first, second)
    if "may_escape" in second:
        text = text.replace("      w = aten::tanh(z)", "      b = aten::relu(z)\n      w = aten::tanh(z)")
    assert len(load(text)) == 2


def test_benefit_decides_who_shadows(refused: Callable[[str], str]) -> None:
    text = pair("where: {x: {dtype: f16}}", "benefit: 2")
    assert "rule first: never reached: second" in refused(text)


def test_an_optional_operand_shadows_a_required_one(
    refused: Callable[[str], str], load: Callable[[str], object]
) -> None:
    with_bias = "y = aten::linear(x, w, b?)", "y = aten::addmm(b, x, w)", "x w b"
    without = "y = aten::linear(x, w, b)", "y = aten::addmm(b, w, x)", "x w b"
    assert "rule narrow: never reached" in refused(HEAD + rule("wide", *with_bias) + rule("narrow", *without))
    load(HEAD + rule("narrow", *without) + rule("wide", *with_bias))


def test_two_rules_with_one_id(load: Callable[[str], RuleSet], sample: str) -> None:
    from rewriter.errors import RuleError
    from rewriter.language import load_rules

    rules = load(sample)
    with pytest.raises(RuleError, match=r"rule .*: two rules with one id \(found first at .*rules.yaml:\d+:9"):
        load_rules([rules, rules])


@pytest.mark.parametrize(
    ("match", "replace", "names", "extra"),
    [
        ("y = aten::relu(x)", "y = aten::relu(x)", "x", ""),
        ("y = aten::add(x, z)", "y = aten::add(z, x)", "x z", ""),
        ("y = aten::add(x, 1)", "y = aten::add(1, x)", "x", ""),
        ("y = aten::relu(x)", "t = aten::relu(x)|y = aten::relu(t)", "x", ""),
        ("y = aten::relu(x)", "t = aten::contiguous(x)|y = aten::relu(t)", "x", ""),
        ("y = aten::relu(x)", "t = aten::contiguous(x)|y = aten::relu(t)", "x", "where: {y: {dtype: f16}}"),
        ("a = aten::relu(x)|y = aten::silu(a)", "t = aten::relu(x)|u = aten::silu(t)|y = aten::tanh(u)", "x", ""),
        ("y = aten::{relu, silu}(x) as act", "y = aten::relu(x)", "x", "ignore: {act: either}"),
        ("a = aten::relu(x)|y = aten::silu(a)", "a = aten::relu(x)|y = aten::silu(a)", "x", "may_escape: [a]"),
        ("y = aten::relu(x)", "y = aten::relu(x)", "x", "where: {x: {dtype: f16}}"),
    ],
)
def test_endless(match: str, replace: str, names: str, extra: str, refused: Callable[[str], str]) -> None:
    message = refused(HEAD + rule("loop", match, replace, names, extra))
    assert "rule loop: the replacement contains what the pattern matches, so the rule would never come to an" in message


@pytest.mark.parametrize(
    ("match", "replace", "names", "extra"),
    [
        ("y = aten::relu(x)", "y = aten::silu(x)", "x", ""),
        ("y = aten::relu(x)", "t = aten::contiguous(x)|y = aten::relu(t)", "x", "where: {x: {uses: 1}}"),
        ("y = aten::add(x, 1)", "y = aten::add(x, 2)", "x", ""),
        ("y = aten::sub(x, z)", "n = aten::neg(z)|y = aten::add(x, n)", "x z", ""),
        ("a = aten::relu(x)|y = aten::silu(a)", "a = aten::relu(x)|y = aten::silu(x)", "x", "may_escape: [a]"),
        ("a = aten::relu(x)|y = aten::silu(a)", "t = aten::silu(x)|y = aten::relu(t)", "x", ""),
        ("y = aten::linear(x, w, b)", "t = aten::linear(x, w)|y = aten::add(t, b)", "x w b", ""),
    ],
)
def test_not_endless(match: str, replace: str, names: str, extra: str, load: Callable[[str], RuleSet]) -> None:
    assert len(load(HEAD + rule("fine", match, replace, names, extra))) == 1
