"""Random graphs with shared values, views, in-place writes, blocks and several outputs, under rules that are always
right: whatever the engine rewrites, the result and what the graph does to its inputs stay the same."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from rewriter.graph.canonical import canonicalise, declare_aliases
from rewriter.graph.conditions import Target
from rewriter.graph.engine import rewrite
from rewriter.language.rule import RuleSet

# Every value is square, so that views of all kinds fit everywhere.
N = 3
HALF_PI = repr(math.pi / 2)

RULES: list[dict[str, Any]] = [
    {"id": "silu", "match": "s = aten::sigmoid(x)\ny = aten::mul(x, s)", "replace": "y = aten::silu(x)"},
    {"id": "odd", "match": "n = aten::neg(x)\ny = aten::sin(n)", "replace": "t = aten::sin(x)\ny = aten::neg(t)"},
    {
        "id": "twice-negative",
        "match": "n = aten::neg(x)\ny = aten::neg(n)",
        "may_escape": ["n"],
        "replace": "n = aten::neg(x)\ny = x",
    },
    {"id": "copy", "match": "y = aten::clone(x)", "replace": "y = x"},
    {"id": "copy-late", "match": "y = aten::clone(x)", "replace": "y = x", "phase": "lower"},
    {"id": "dropout", "match": "y = aten::dropout(x, _, False)", "replace": "y = x", "ignore": {"p": "off"}},
    {"id": "contiguous", "match": "y = aten::contiguous(x)", "replace": "y = x"},
    {
        "id": "transposed-twice",
        "match": "a = aten::t(x)\ny = aten::t(a)",
        "may_escape": ["a"],
        "replace": "a = aten::transpose(x, 0, 1)\ny = x",
    },
    {"id": "doubled", "match": "y = aten::add(x, x)", "replace": "y = aten::mul(x, 2)"},
    {
        "id": "sum-relu",
        "match": "t = aten::add(x, r)\ny = aten::relu(t)",
        "may_escape": ["t"],
        "replace": "t = aten::add(r, x)\ny = aten::clamp_min(t, 0)",
    },
    {
        "id": "sine-and-cosine",
        "match": "a = aten::sin(x)\nb = aten::cos(x)",
        "replace": f"t = aten::sub(x, {HALF_PI})\na = aten::cos(t)\nu = aten::add(x, {HALF_PI})\nb = aten::sin(u)",
    },
    {"id": "whole", "match": "a, b, c = aten::chunk(x, 3, 0)\ny = aten::cat([a, b, c], 0)", "replace": "y = x"},
    {
        "id": "turned",
        "match": "a, b, c = aten::chunk(x, 3, 0)\ny = aten::cat([b, c, a], 0)",
        "replace": "y = aten::roll(x, [2], [0])",
    },
    {"id": "times-one", "match": "y = aten::mul(x, 1)", "replace": "y = x"},
    {"id": "minus", "match": "y = aten::sub(x, r)", "replace": "n = aten::neg(r)\ny = aten::add(x, n)"},
    {
        "id": "in-place",
        "match": "y = aten::tanh(x)",
        "replace": "t = aten::clone(x)\ny = aten::tanh_(t)",
        "phase": "merge",
    },
    {
        "id": "siblings",
        "match": "y* = aten::linear(x, w*, b?*)",
        "prepare": "v = concat(w*, dim=0)\nc = concat(b?*, dim=0)\nsizes = extents(w*, 0)",
        "replace": "h = aten::linear(x, v, c)\ny* = aten::split_with_sizes(h, sizes, -1)",
    },
    {
        "id": "linear",
        "match": "y = aten::linear(x, w, b)",
        "replace": "t = aten::t(w)\ny = aten::addmm(b, x, t)",
        "phase": "lower",
    },
]

UNARY = ["sin", "cos", "tanh", "sigmoid", "relu", "neg", "abs", "t"]
WRITES = ["relu_", "neg_", "sin_"]
CONSTANTS = {
    "one": "int = prim::Constant[value=1]()",
    "two": "int = prim::Constant[value=2]()",
    "three": "int = prim::Constant[value=3]()",
    "zero": "int = prim::Constant[value=0]()",
    "unit": "float = prim::Constant[value=1.]()",
    "half": "float = prim::Constant[value=0.5]()",
    "no": "bool = prim::Constant[value=0]()",
    "yes": "bool = prim::Constant[value=1]()",
    "none": "NoneType = prim::Constant()",
}
T = f"D({N}, {N})"
STEPS = (
    ["unary"] * 7
    + ["binary"] * 6
    + ["silu", "silu", "sum"]
    + ["copy"] * 2
    + ["chunk", "chunk", "linear", "linear", "write", "block"]
)


@st.composite
def graphs(draw: st.DrawFn) -> str:
    """The IR of a graph of two activations and four weights."""
    values = ["x", "z"]
    lines = [f"%{name} : {text}" for name, text in CONSTANTS.items()]

    def pick() -> str:
        # Recent values more often: chains are what rules match.
        back = (
            draw(st.integers(0, len(values) - 1))
            if draw(st.booleans())
            else draw(st.integers(0, min(2, len(values) - 1)))
        )
        return "%" + values[-1 - back]

    def new(text: str) -> str:
        name = f"v{len(lines)}"
        lines.append(f"%{name} : {T} = {text}")
        values.append(name)
        return name

    for _ in range(draw(st.integers(3, 16))):
        step = draw(st.sampled_from(STEPS))
        if step == "unary":
            new(f"aten::{draw(st.sampled_from(UNARY))}({pick()})")
        elif step == "binary":
            op = draw(st.sampled_from(("mul", "add", "sub")))
            second = draw(st.sampled_from((pick(), pick(), "%unit", "%one")))
            scale = "" if op == "mul" else f", %{draw(st.sampled_from(('one', 'one', 'two')))}"
            new(f"aten::{op}({pick()}, {second}{scale})")
        elif step == "silu":
            x = pick()
            gate = new(f"aten::sigmoid({x})")
            new(f"aten::mul({', '.join(draw(st.permutations((x, '%' + gate))))})")
        elif step == "sum":
            new(f"aten::relu(%{new(f'aten::add({pick()}, {pick()}, %one)')})")
        elif step == "copy":
            new(
                draw(
                    st.sampled_from(
                        ("aten::clone({}, %none)", "aten::contiguous({}, %zero)", "aten::dropout({}, %half, %no)")
                    )
                ).format(pick())
            )
        elif step == "chunk":
            index = len(lines)
            lines.append(f"%l{index} : Tensor[] = aten::chunk({pick()}, %three, %zero)")
            parts = [f"%p{index}x{part}" for part in range(3)]
            lines.append(", ".join(f"{part} : D(1, {N})" for part in parts) + f" = prim::ListUnpack(%l{index})")
            order = draw(st.sampled_from((parts, [parts[1], parts[2], parts[0]], [parts[0], parts[0], parts[2]])))
            if draw(st.integers(0, 5)) == 0:
                lines.append(f"%w{index} : Tensor = aten::{draw(st.sampled_from(WRITES))}({parts[1]})")
            lines.append(f"%m{index} : Tensor[] = prim::ListConstruct({', '.join(order)})")
            new(f"aten::cat(%m{index}, %zero)")
        elif step == "linear":
            operand = pick()
            for _ in range(draw(st.integers(1, 3))):
                weight, bias = draw(st.sampled_from((("a", "p"), ("b", "q"), ("a", "none"), ("b", "none"))))
                new(f"aten::linear({operand}, %{weight}, %{bias})")
        elif step == "write":
            target = pick()
            source = draw(st.sampled_from([None, pick()]))
            new(
                f"aten::{draw(st.sampled_from(WRITES))}({target})"
                if source is None
                else f"aten::copy_({target}, {source}, %no)"
            )
        else:
            name, inner, other = f"r{len(lines)}", pick(), pick()
            op = draw(st.sampled_from(("neg", "sin", "relu_")))
            lines += [f"%{name} : Tensor = prim::If(%{draw(st.sampled_from(('yes', 'no')))})", "block0():"]
            lines += [f"%i{name} : Tensor = aten::{op}({inner})", f"-> (%i{name})", "block1():", f"-> ({other})"]
            values.append(name)
    outputs = draw(st.lists(st.sampled_from(values), min_size=1, max_size=4, unique=True)) + values[-1:]
    signature = ", ".join(f"%{name} : {T}" for name in ("x", "z", "a", "b")) + f", %p : D({N}), %q : D({N})"
    return "\n".join([f"graph({signature}):", *lines, f"return ({', '.join('%' + name for name in outputs)})"])


@pytest.fixture(scope="module")
def arguments() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(N, N)] * 4 + [(N,)] * 2
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def test_random_graphs(bench: Any, arguments: list[torch.Tensor]) -> None:
    rules = bench.rules(*RULES)
    fired: set[str] = set()

    @settings(max_examples=600, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(graphs(), st.lists(st.integers(0, len(rules) - 1), unique=True), st.randoms(use_true_random=False))
    def run(text: str, left_out: list[int], random: Any) -> None:
        chosen = [rule for index, rule in enumerate(rules) if index not in left_out or not left_out]
        random.shuffle(chosen)
        check(bench, text, RuleSet.ordered(tuple(chosen)), arguments, fired, canonical=random.random() < 0.5)

    run()
    # Which graphs are drawn depends on the modules that are loaded, so a rule or two may have had no chance.
    unused = {rule.id for rule in rules} - fired
    assert len(unused) <= len(rules) // 4, f"rules that were never put to the test: {', '.join(sorted(unused))}"


def shared(values: list[torch.Tensor], outputs: int) -> set[tuple[int, int]]:
    """Which outputs share memory with which activations."""
    storages = [value.untyped_storage().data_ptr() for value in values[: outputs + 2]]
    return {(i, j) for i in range(outputs) for j in (outputs, outputs + 1) if storages[i] == storages[j]}


def check(
    bench: Any, text: str, rules: RuleSet, arguments: list[torch.Tensor], fired: set[str], *, canonical: bool
) -> None:
    graph = bench.parse(text)
    try:
        expected = bench.run(graph, arguments)
    except RuntimeError as error:
        # A copy between overlapping views: not a graph that anyone has.
        assume("refer to a single memory location" not in str(error))
        raise
    # Canonical graphs have hardly any writes left, so half of the graphs stay as they are.
    (canonicalise if canonical else declare_aliases)(graph)
    assume(all(not torch.is_tensor(value) or value.abs().max() < 1e6 for value in expected))
    result = rewrite(graph, rules, weights=4, target=Target("cpu"))
    result.graph.lint()
    prepared = bench.prepared(result, arguments[2:])
    actual = bench.run(result.graph, [*arguments[:2], *prepared])
    outputs = len(expected) - len(arguments)
    bench.assert_same(actual[: outputs + 2], expected[: outputs + 2])
    assert shared(actual, outputs) <= shared(expected, outputs), "results share memory that did not"
    fired.update(done.rule for done in result.rewrites)
