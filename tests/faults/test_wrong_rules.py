"""Wrong rules: rejected by the loader where their words tell, by the proof where only their numbers do."""

from __future__ import annotations

import pathlib
import textwrap
from typing import NamedTuple

import pytest

from rewriter.errors import RuleError
from rewriter.language import Rule, load_rules
from rewriter.proof.check import prove
from rewriter.proof.mutants_score import score


class Fault(NamedTuple):
    """A rule's entry without its head. `kinds`: what the proof may call it; `words`: what its message has to say."""

    name: str
    kinds: tuple[str, ...]
    words: tuple[str, ...]
    entry: str


LINEAR = """
    inputs:
      x: {shape: [N, S, K]}
      weight: {shape: [2*M, K]}
      bias: {shape: [2*M]}
    dims: {N: 1..3, S: 1..9, K: 1..17, M: 1..17}
"""
PAIR = """
    inputs:
      x: {shape: [N, S, K]}
      wq: {shape: [M, K]}
      wk: {shape: [M, K]}
    dims: {N: 1..3, S: 1..9, K: 1..17, M: 1..17}
"""
ADDED = """
    inputs:
      x: {shape: [N, S, K]}
      weight: {shape: [M, K]}
      bias: {shape: [M]}
      r: {shape: [N, S, M]}
      alpha: [1, 2, 0.5]
    dims: {N: 1..3, S: 1..9, K: 1..17, M: 1..17}
"""

WRONG = [
    Fault(
        "alpha ignored",
        ("wrong result", "wrong NaN"),
        ("y",),
        f"""
    match: |
      h = aten::linear(x, weight, bias)
      y = aten::add(h, r, alpha=alpha)
    ignore: {{alpha: "it is 1 anyway"}}
    replace: y = rewriter::linear_add(x, weight, bias, r)
    {ADDED}""",
    ),
    Fault(
        "eps ignored by the entry",
        ("wrong result", "wrong NaN"),
        ("y",),
        """
    match: |
      n = aten::group_norm(x, groups, weight, bias, eps, cudnn)
      y = aten::silu(n)
    ignore: {eps: "small", cudnn: "a hint"}
    replace: y = rewriter::group_norm_silu(x, groups, weight, bias, 1e-5)
    inputs:
      x: {shape: [N, G*K, H, W]}
      weight: {shape: [G*K]}
      bias: {shape: [G*K]}
      groups: G
      eps: [1e-5, 1e-3]
      cudnn: true
    dims: {N: 1..3, G: [1, 2], K: 1..9, H: 1..9, W: 1..9}
    """,
    ),
    Fault(
        "dim wildcarded",
        ("wrong result", "wrong NaN", "wrong shape", "raises"),
        ("y",),
        f"""
    match: |
      h = aten::linear(x, weight, bias)
      hidden, gate = aten::chunk(h, 2, dim)
      g = aten::gelu(gate)
      y = aten::mul(hidden, g)
    ignore: {{dim: "always the last one"}}
    replace: y = rewriter::linear_geglu(x, weight, bias)
    {LINEAR.replace("[N, S, K]", "[2*N, 2*S, K]").replace("inputs:", "inputs:" + chr(10) + "      dim: [-1, 0, 1]")}""",
    ),
    Fault(
        "another number of chunks",
        ("raises", "wrong shape"),
        ("xpected", "found"),
        f"""
    match: |
      h = aten::linear(x, weight, bias)
      hidden, gate = aten::chunk(h, 2, -1)
      g = aten::gelu(gate)
      y = aten::mul(hidden, g)
    replace: |
      h = aten::linear(x, weight, bias)
      hidden, gate, rest = aten::chunk(h, 3, -1)
      g = aten::gelu(gate)
      y = aten::mul(hidden, g)
    {LINEAR}""",
    ),
    Fault(
        "a concatenation in the wrong order",
        ("wrong result", "wrong NaN"),
        ("q",),
        f"""
    match: |
      q = aten::linear(x, wq, None)
      k = aten::linear(x, wk, None)
    prepare: w = concat(wk, wq)
    replace: |
      h = aten::linear(x, w, None)
      q, k = aten::chunk(h, 2, -1)
    {PAIR}""",
    ),
    Fault(
        "siblings exchanged",
        ("wrong result", "wrong NaN"),
        ("q",),
        f"""
    match: |
      q = aten::linear(x, wq, None)
      k = aten::linear(x, wk, None)
    prepare: w = concat(wq, wk)
    replace: |
      h = aten::linear(x, w, None)
      k, q = aten::chunk(h, 2, -1)
    {PAIR}""",
    ),
    Fault(
        "a concatenation along the wrong dim",
        ("does not fire", "raises", "wrong shape"),
        (),
        f"""
    match: |
      q = aten::linear(x, wq, None)
      k = aten::linear(x, wk, None)
    prepare: w = concat(wq, wk, dim=1)
    replace: |
      h = aten::linear(x, w, None)
      q, k = aten::chunk(h, 2, -1)
    {PAIR}""",
    ),
    Fault(
        "a weight not transposed",
        ("wrong result", "wrong NaN"),
        ("y",),
        """
    match: |
      t = aten::t(weight)
      y = aten::matmul(x, t)
    replace: y = aten::matmul(x, weight)
    inputs:
      x: {shape: [N, K]}
      weight: {shape: [K, K]}
    dims: {N: 1..4, K: 1..17}
    """,
    ),
    Fault(
        "tanh for the exact GELU",
        ("wrong result",),
        ("y",),
        f"""
    match: |
      h = aten::linear(x, weight, bias)
      y = aten::gelu(h)
    replace: y = rewriter::linear_act(x, weight, bias, "gelu_tanh")
    {LINEAR}""",
    ),
    Fault(
        "approximate ignored",
        ("wrong result", "wrong NaN"),
        ("y",),
        f"""
    match: |
      h = aten::linear(x, weight, bias)
      y = aten::gelu(h, approximate)
    ignore: {{approximate: "the same to 1e-3"}}
    replace: y = rewriter::linear_act(x, weight, bias, "gelu")
    {LINEAR.replace("inputs:", "inputs:" + chr(10) + "      approximate: [none, tanh]")}""",
    ),
    Fault(
        "causal ignored",
        ("wrong result", "wrong NaN"),
        ("y",),
        """
    match: y = aten::scaled_dot_product_attention(q, k, v, None, 0.0, causal)
    ignore: {causal: "no model of ours is"}
    replace: y = rewriter::attention(q, k, v, None, None, False)
    inputs:
      q: {shape: [B, H, S, D]}
      k: {shape: [B, H, S, D]}
      v: {shape: [B, H, S, D]}
      causal: [false, true]
    dims: {B: 1..2, H: 1..3, S: 1..9, D: [8, 16]}
    """,
    ),
    Fault(
        "a sum in place of a mean",
        ("wrong result", "wrong NaN"),
        ("y",),
        """
    match: y = aten::mean(x, [-1], True)
    replace: y = aten::sum(x, [-1], True)
    inputs:
      x: {shape: [N, C]}
    dims: {N: 1..4, C: 1..40}
    """,
    ),
    Fault(
        "a dimension kept that was not",
        ("wrong shape", "raises"),
        ("y",),
        """
    match: y = aten::mean(x, [-1])
    replace: y = aten::mean(x, [-1], True)
    inputs:
      x: {shape: [N, C]}
    dims: {N: 1..4, C: 1..40}
    """,
    ),
    Fault(
        "a result in another dtype",
        ("wrong shape",),
        ("y", "f64", "f32"),
        """
    match: |
      s = aten::sigmoid(x)
      y = aten::mul(x, s)
    replace: |
      w = aten::to(x, 7)
      y = aten::silu(w)
    inputs:
      x: {shape: [N, C]}
    dims: {N: 1..4, C: 1..40}
    """,
    ),
    Fault(
        "no number is not a number",
        ("wrong NaN",),
        ("y",),
        """
    match: y = aten::silu(x)
    replace: |
      c = aten::nan_to_num(x)
      s = aten::sigmoid(c)
      y = aten::mul(c, s)
    inputs:
      x: {shape: [N, C]}
    dims: {N: 1..4, C: 1..40}
    """,
    ),
]

REFUSED = [
    Fault(
        "an operand dropped",
        (),
        ("drops an operand", "eps"),
        """
    match: y = aten::group_norm(x, groups, weight, bias, eps, cudnn)
    ignore: {cudnn: "a hint"}
    replace: y = rewriter::group_norm(x, groups, weight, bias, 1e-5)
    inputs: {x: {shape: [N, C, H]}, groups: 1, weight: {shape: [C]}, bias: {shape: [C]}, eps: 1e-5, cudnn: true}
    dims: {N: 1..3, C: 1..9, H: 1..9}
    """,
    ),
    Fault(
        "an operand that is not there",
        (),
        ("bais", "bias"),
        f"""
    match: |
      h = aten::linear(x, weight, bias)
      y = aten::relu(h)
    replace: y = rewriter::linear_act(x, weight, bais, "relu")
    {LINEAR}""",
    ),
    Fault(
        "a result that is not made",
        (),
        ("does not define", "k"),
        f"""
    match: |
      q = aten::linear(x, wq, None)
      k = aten::linear(x, wk, None)
    prepare: w = concat(wq, wk)
    replace: q = aten::linear(x, w, None)
    {PAIR}""",
    ),
    Fault(
        "a replacement for ever",
        (),
        ("come to an end",),
        """
    match: z = aten::add(x, y, alpha=alpha)
    replace: z = aten::add(x, y, alpha=alpha)
    inputs: {x: {shape: [N, C]}, y: {shape: [N, C]}, alpha: 1}
    dims: {N: 1..3, C: 1..9}
    """,
    ),
    Fault(
        "a write to an operand",
        (),
        ("in-place", "x"),
        """
    match: z = aten::add(x, y, alpha=alpha)
    replace: z = aten::add_(x, y, alpha=alpha)
    inputs: {x: {shape: [N, C]}, y: {shape: [N, C]}, alpha: 1}
    dims: {N: 1..3, C: 1..9}
    """,
    ),
    Fault(
        "a wildcard without a reason",
        (),
        ("_",),
        """
    match: y = aten::softmax(x, _)
    replace: y = aten::softmax(x, -1)
    inputs: {x: {shape: [N, C]}}
    dims: {N: 1..3, C: 1..9}
    """,
    ),
    Fault(
        "an operand without examples",
        (),
        ("inputs lacks", "y"),
        """
    match: z = aten::mul(x, y)
    replace: |
      s = aten::square(x)
      z = aten::sub(s, y)
    inputs: {x: {shape: [N, C]}}
    dims: {N: 1..3, C: 1..9}
    """,
    ),
]


def read(tmp_path: pathlib.Path, entry: str) -> Rule:
    path = tmp_path / "wrong.yaml"
    head = "format: 1\npack: wrong\nsummary: Wrong.\nrules:\n  - id: wrong\n    summary: Wrong\n"
    path.write_text(head + textwrap.indent(textwrap.dedent(entry).strip("\n"), "    ") + "\n")
    (rule,) = load_rules(path)
    return rule


@pytest.mark.parametrize("fault", WRONG, ids=lambda fault: fault.name)
def test_is_rejected_by_the_proof(fault: Fault, tmp_path: pathlib.Path) -> None:
    failure = prove(read(tmp_path, fault.entry), dtype="f32").failure
    assert failure is not None, "the proof lets it pass"
    said = f"{failure.message}; {failure.operands}"
    assert failure.kind in fault.kinds, f"{failure.kind}: {said}"
    assert all(word in said for word in fault.words), said


@pytest.mark.parametrize("fault", REFUSED, ids=lambda fault: fault.name)
def test_is_refused_by_the_loader(fault: Fault, tmp_path: pathlib.Path) -> None:
    with pytest.raises(RuleError) as error:
        read(tmp_path, fault.entry)
    assert "wrong.yaml" in str(error.value)
    assert all(word in str(error.value) for word in fault.words), str(error.value)


def test_what_the_entry_never_draws_is_found_by_a_mutant(tmp_path: pathlib.Path) -> None:
    wildcard = next(fault for fault in WRONG if fault.name == "dim wildcarded")
    rule = read(tmp_path, wildcard.entry.replace("dim: [-1, 0, 1]", "dim: -1"))
    assert prove(rule, dtype="f32", examples=20).proved
    survivors = score(rule).survivors
    assert any("dim is" in survivor.mutant.description for survivor in survivors)
