"""When a match may be replaced, and where the replacement goes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

X = torch.randn(2, 4)
Y = torch.randn(2, 4)
# Right whatever the inputs: x * sigmoid(x) is silu(x).
SILU = ("s = aten::sigmoid(x)\ny = aten::mul(x, s)", "y = aten::silu(x)")


def test_an_interior_value_that_is_used_twice(bench: Any) -> None:
    found = bench.check(
        """graph(%x : F(2, 4)):
          %s : F(2, 4) = aten::sigmoid(%x)
          %y : F(2, 4) = aten::mul(%x, %s)
          %z : F(2, 4) = aten::neg(%s)
          return (%y, %z)""",
        SILU,
        X,
    )
    assert found.fired == []
    (refusal,) = found.result.refusals
    assert refusal.reason.endswith("is also used by aten::neg")
    assert (refusal.depth, refusal.total) == (2, 2)
    assert "aten::mul" in refusal.node


def test_an_interior_value_that_is_an_output(bench: Any) -> None:
    found = bench.check(
        """graph(%x : F(2, 4)):
          %s : F(2, 4) = aten::sigmoid(%x)
          %y : F(2, 4) = aten::mul(%x, %s)
          return (%y, %s)""",
        SILU,
        X,
    )
    assert found.reasons[0].endswith("is also used by prim::Return")


@pytest.mark.parametrize("user", ["return (%y, %t)", "%z : F(2, 4) = aten::neg(%t)\n return (%y, %z)", "return (%y)"])
def test_may_escape(bench: Any, user: str) -> None:
    rule = {
        "match": "t = aten::add(x, r)\ny = aten::relu(t)",
        "may_escape": ["t"],
        "replace": "t = aten::sub(x, r, alpha=-1)\ny = aten::clamp_min(t, 0)",
    }
    found = bench.check(
        f"""graph(%x : F(2, 4), %r : F(2, 4)):
          %one : int = prim::Constant[value=1]()
          %t : F(2, 4) = aten::add(%x, %r, %one)
          %y : F(2, 4) = aten::relu(%t)
          {user}""",
        rule,
        X,
        Y,
    )
    assert found.fired == ["rule-0"]
    assert found.ops[:2] == ["aten::sub", "aten::clamp_min"]


def test_an_escaping_value_that_is_read_between(bench: Any) -> None:
    rule = {
        "match": "t = aten::add(x, r)\ny = aten::relu(t)",
        "may_escape": ["t"],
        "replace": "t = aten::sub(x, r, alpha=-1)\ny = aten::clamp_min(t, 0)",
    }
    found = bench.check(
        """graph(%x : F(2, 4), %r : F(2, 4)):
          %one : int = prim::Constant[value=1]()
          %t : F(2, 4) = aten::add(%x, %r, %one)
          %z : F(2, 4) = aten::neg(%t)
          %y : F(2, 4) = aten::relu(%t)
          return (%y, %z)""",
        rule,
        X,
        Y,
    )
    assert found.ops == ["aten::sub", "aten::clamp_min", "aten::neg"]


def test_an_operand_that_is_made_after_the_first_consumer(bench: Any) -> None:
    rule = {
        "match": "t = aten::relu(x)\ny = aten::mul(t, w)",
        "may_escape": ["t"],
        "replace": "t = aten::clamp_min(x, 0)\ny = aten::mul(w, t)",
        "where": {"w": {"weight": False}},
    }
    text = """graph(%x : F(2, 4)):
      %t : F(2, 4) = aten::relu(%x)
      {}
      %y : F(2, 4) = aten::mul(%t, %w)
      return (%y, %z)"""
    late = text.format("%z : F(2, 4) = aten::neg(%t)\n %w : F(2, 4) = aten::exp(%z)")
    found = bench.check(late, rule, X)
    assert found.fired == []
    assert "is made after aten::neg needs the result" in found.reasons[0]
    early = text.format("%w : F(2, 4) = aten::exp(%x)\n %z : F(2, 4) = aten::neg(%t)")
    assert bench.check(early, rule, X).fired == ["rule-0"]


def test_a_look_that_stands_after_the_first_consumer_is_moved(bench: Any) -> None:
    rule = {
        "match": "t = aten::relu(x)\ny = aten::mul(t, w)",
        "may_escape": ["t"],
        "replace": "t = aten::clamp_min(x, 0)\ny = aten::mul(w, t)",
        "where": {"w": {"weight": False}},
    }
    found = bench.check(
        """graph(%x : F(2, 4), %m : F(2, 8)):
          %one : int = prim::Constant[value=1]()
          %two : int = prim::Constant[value=2]()
          %t : F(2, 4) = aten::relu(%x)
          %z : F(2, 4) = aten::neg(%t)
          %both : Tensor[] = aten::chunk(%m, %two, %one)
          %v : F(2, 4), %w : F(2, 4) = prim::ListUnpack(%both)
          %y : F(2, 4) = aten::mul(%t, %w)
          return (%y, %z, %v)""",
        rule,
        X,
        torch.randn(2, 8),
    )
    assert found.fired == ["rule-0"]
    assert found.ops == ["aten::clamp_min", "aten::chunk", "aten::mul", "aten::neg"]


def test_a_look_at_what_the_match_makes_stays(bench: Any) -> None:
    """Moved before the replacement it would read its own result."""
    rule = {
        "match": "t = aten::relu(x)\ny = aten::mul(t, w)",
        "may_escape": ["t"],
        "replace": "t = aten::clamp_min(x, 0)\ny = aten::mul(w, t)",
        "where": {"w": {"weight": False}},
    }
    found = bench.check(
        """graph(%x : F(2, 4)):
          %zero : int = prim::Constant[value=0]()
          %t : F(2, 4) = aten::relu(%x)
          %z : F(2, 4) = aten::neg(%t)
          %w : F(4) = aten::select(%t, %zero, %zero)
          %y : F(2, 4) = aten::mul(%t, %w)
          return (%y, %z)""",
        rule,
        X,
    )
    assert found.fired == []
    assert "is made after aten::neg needs the result" in found.reasons[0]


def test_a_constant_that_stands_after_the_first_consumer_is_moved(bench: Any) -> None:
    rule = {
        "match": "t = aten::relu(x)\ny = aten::mul(t, c)",
        "may_escape": ["t"],
        "replace": "t = aten::clamp_min(x, 0)\ny = aten::div(t, c)\n",
        "where": {"c": {"const": True}},
    }
    found = bench.check(
        """graph(%x : F(2, 4)):
          %t : F(2, 4) = aten::relu(%x)
          %z : F(2, 4) = aten::neg(%t)
          %c : float = prim::Constant[value=1.]()
          %y : F(2, 4) = aten::mul(%t, %c)
          return (%y, %z)""",
        rule,
        X,
    )
    assert found.fired == ["rule-0"]


TEXT = """graph(%x0 : F(2, 4), %o : F(2, 4)):
  %one : int = prim::Constant[value=1]()
  %x : F(2, 4) = aten::mul(%x0, %x0)
  {before}
  %s : F(2, 4) = aten::sigmoid(%x)
  {between}
  %y : F(2, 4) = aten::mul(%x, %s)
  {after}
  return (%y, %x, %o)"""


@pytest.mark.parametrize(
    ("where", "target"),
    [
        *(("before", target) for target in ("x", "o", "view")),
        *(("between", target) for target in ("x", "o", "view", "s")),
        *(("after", target) for target in ("x", "o", "view", "s", "y")),
    ],
)
def test_writes(bench: Any, where: str, target: str) -> None:
    """Wherever a write stands and whatever it changes: the result is the same, or the rule does not fire."""
    write = f"%w : F(2, 4) = aten::add_(%{target}, %o, %one)"
    if target == "view":
        write = "%v : F(4, 2) = aten::t(%x)\n  %w : Tensor = aten::relu_(%v)"
    places = {name: write if name == where else "" for name in ("before", "between", "after")}
    found = bench.check(TEXT.format(**places), SILU, X, Y)
    harmless = target == "o" or where == "before" or (where == "after" and target in ("x", "view"))
    assert found.fired == (["rule-0"] if harmless else [])
    if not harmless:
        assert any("may write to" in reason or "also used by" in reason for reason in found.reasons)


def test_a_source_of_a_write_is_only_read(bench: Any) -> None:
    write = "%w : F(2, 4) = aten::add_(%o, %x, %one)"
    found = bench.check(TEXT.format(before="", between=write, after=""), SILU, X, Y)
    assert found.fired == ["rule-0"]


@pytest.mark.parametrize("where", ["between", "after"])
def test_a_copy_into_an_operand(bench: Any, where: str) -> None:
    write = "%no : bool = prim::Constant[value=0]()\n  %w : F(2, 4) = aten::copy_(%x, %o, %no)"
    places = {name: write if name == where else "" for name in ("before", "between", "after")}
    found = bench.check(TEXT.format(**places), SILU, X, Y)
    assert bool(found.fired) == (where == "after")


@pytest.mark.parametrize("where", ["before", "between", "after"])
def test_writes_inside_blocks(bench: Any, where: str) -> None:
    write = """%yes : bool = prim::Constant[value=1]()
      %r : Tensor = prim::If(%yes)
        block0():
          %w : Tensor = aten::add_(%x, %o, %one)
          -> (%w)
        block1():
          -> (%x)"""
    places = {name: write if name == where else "" for name in ("before", "between", "after")}
    found = bench.check(TEXT.format(**places), SILU, X, Y)
    assert bool(found.fired) == (where != "between")


def test_a_write_after_several_results(bench: Any) -> None:
    """The replacement stands before the first consumer, where the second statement has not read yet."""
    rule = {
        "match": "a = aten::sin(x)\nb = aten::cos(x)",
        "replace": "t = aten::neg(x)\nb = aten::cos(t)\nu = aten::rsub(x, 0)\nv = aten::sin(u)\na = aten::rsub(v, 0)",
    }
    text = """graph(%x0 : F(2, 4)):
      %one : int = prim::Constant[value=1]()
      %x : F(2, 4) = aten::mul(%x0, %x0)
      %a : F(2, 4) = aten::sin(%x)
      %u : F(2, 4) = aten::abs(%a)
      {}
      %b : F(2, 4) = aten::cos(%x)
      return (%u, %b)"""
    assert bench.check(text.format(""), rule, X).fired == ["rule-0"]
    found = bench.check(text.format("%w : F(2, 4) = aten::add_(%x, %u, %one)"), rule, X)
    assert found.fired == []
    assert "aten::add_ may write to what it reads or makes" in found.reasons


@pytest.mark.parametrize("replacement", ["y = x", "y = aten::contiguous(x)", "y = aten::view_as(x, x)"])
@pytest.mark.parametrize("target", ["x", "y", "o"])
def test_a_result_that_shares_memory(bench: Any, replacement: str, target: str) -> None:
    """A copy may become another name for its source only where nobody writes to either later."""
    found = bench.check(
        f"""graph(%x0 : F(2, 4), %o : F(2, 4)):
          %one : int = prim::Constant[value=1]()
          %none : NoneType = prim::Constant()
          %x : F(2, 4) = aten::mul(%x0, %x0)
          %y : F(2, 4) = aten::clone(%x, %none)
          %w : F(2, 4) = aten::add_(%{target}, %x0, %one)
          %z : F(2, 4) = aten::neg(%y)
          return (%z, %x, %o)""",
        ("y = aten::clone(x)", replacement),
        X,
        Y,
    )
    assert bool(found.fired) == (target == "o")


@pytest.mark.parametrize(
    ("end", "fires"),
    [
        ("return (%y)", False),
        ("%v : F(4, 2) = aten::t(%y)\n return (%v)", False),
        ("%l : Tensor[] = prim::ListConstruct(%y)\n return (%l)", False),
        ("%v : F(2, 4) = aten::neg(%y)\n return (%v)", True),
    ],
)
def test_new_results_of_the_graph_stay_new(bench: Any, end: str, fires: bool) -> None:
    """The caller may write to what it gets, and must not hit its own input or a weight."""
    found = bench.check(
        f"""graph(%x : F(2, 4)):
          %one : int = prim::Constant[value=1]()
          %y : F(2, 4) = aten::mul(%x, %one)
          {end}""",
        ("y = aten::mul(x, 1)", "y = x"),
    )
    assert bool(found.fired) == fires


@pytest.mark.parametrize("where", ["between", "after"])
def test_a_result_that_is_an_operand_although_its_schema_denies_it(bench: Any, where: str) -> None:
    write = "%v : F(2, 4) = aten::type_as(%x, %o)\n  %w : F(2, 4) = aten::add_(%v, %o, %one)"
    places = {name: write if name == where else "" for name in ("before", "between", "after")}
    found = bench.check(TEXT.format(**places), SILU, X, Y)
    assert bool(found.fired) == (where == "after")


def test_a_view_that_a_rule_made_is_followed_to_its_source(bench: Any) -> None:
    """The second rule moves the reading of a value that the original graph did not have."""
    rules = bench.rules(
        {"match": "y = aten::exp(x)", "replace": "t = aten::t(x)\nu = aten::exp2(t)\ny = aten::t(u)"},
        {
            "match": "u = aten::exp2(t)\ny = aten::t(u)\nz = aten::neg(y)",
            "replace": "z = aten::rsub(t, 1)",
            "phase": "lower",
        },
    )
    found = bench.check(
        """graph(%x0 : F(4, 4)):
          %one : int = prim::Constant[value=1]()
          %x : F(4, 4) = aten::mul(%x0, %x0)
          %y : F(4, 4) = aten::exp(%x)
          %w : F(4, 4) = aten::add_(%x, %x0, %one)
          %z : F(4, 4) = aten::neg(%y)
          return (%z, %x)""",
        rules,
    )
    assert found.fired == ["rule-0"]
    assert any("aten::add_ may write to what it reads" in reason for reason in found.reasons)


def test_uses_inside_blocks_count(bench: Any) -> None:
    found = bench.check(
        """graph(%x : F(2, 4), %flag : bool):
          %s : F(2, 4) = aten::sigmoid(%x)
          %y : F(2, 4) = aten::mul(%x, %s)
          %z : Tensor = prim::If(%flag)
            block0():
              %n : F(2, 4) = aten::neg(%s)
              -> (%n)
            block1():
              -> (%y)
          return (%y, %z)""",
        SILU,
        X,
        True,
    )
    assert found.fired == []
    assert found.reasons[0].endswith("is also used by prim::If")


def test_a_result_that_a_block_reads_is_redirected_there(bench: Any) -> None:
    text = """graph(%x : F(2, 4), %flag : bool):
      %s : F(2, 4) = aten::sigmoid(%x)
      %y : F(2, 4) = aten::mul(%x, %s)
      %z : Tensor = prim::If(%flag)
        block0():
          %n : F(2, 4) = aten::neg(%y)
          -> (%n)
        block1():
          -> (%y)
      return (%z)"""
    assert bench.check(text, SILU, X, True).fired == ["rule-0"]
    assert bench.check(text, SILU, X, False).fired == ["rule-0"]


def test_nothing_matches_inside_or_across_blocks(bench: Any) -> None:
    found = bench.check(
        """graph(%x : F(2, 4), %flag : bool):
          %s : F(2, 4) = aten::sigmoid(%x)
          %z : Tensor = prim::If(%flag)
            block0():
              %y : F(2, 4) = aten::mul(%x, %s)
              -> (%y)
            block1():
              -> (%x)
          return (%z)""",
        SILU,
        X,
        True,
    )
    assert found.fired == []


def test_in_place_ops_of_a_replacement_stay_private(bench: Any) -> None:
    """What an in-place op of a replacement changes may not become another name for something else."""
    rules = bench.rules(
        {"match": "y = aten::exp(x)", "replace": "t = aten::clone(x)\ny = aten::exp_(t)"},
        {"match": "y = aten::clone(x)", "replace": "y = x", "phase": "lower"},
    )
    found = bench.check(
        """graph(%x : F(2, 4)):
          %y : F(2, 4) = aten::exp(%x)
          return (%y, %x)""",
        rules,
        X,
    )
    assert found.fired == ["rule-0"]
    assert any(reason.endswith("is changed in place") for reason in found.reasons)
