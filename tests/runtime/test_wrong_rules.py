"""A rule whose result is wrong, or whose op raises, is left out by name; the others stay."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch

import rewriter

RULE = """
  - id: {id}
    summary: {id}
    match: |
      y = aten::{from_op}(x)
    replace: |
      y = {to}
    inputs: {{x: {{shape: [N]}}}}
    dims: {{N: 1..3}}
"""
HEAD = "format: 1\npack: mine\nsummary: Mine.\nrules:"
RIGHT = RULE.format(id="silu-by-sigmoid", from_op="silu", to="aten::mul(x, s)").replace(
    "      y = aten::mul(x, s)", "      s = aten::sigmoid(x)\n      y = aten::mul(x, s)"
)
WRONG = RULE.format(id="tanh-by-relu", from_op="tanh", to="aten::relu(x)")
ALSO_WRONG = RULE.format(id="sin-by-cos", from_op="sin", to="aten::cos(x)")
RAISING = RULE.format(
    id="tanh-by-mish", from_op="tanh", to='rewriter::conv_act(x, x, None, [1], [0], [1], False, [0], 1, "none")'
)


class Net(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(x) + x.tanh() + x.sin()


def file(tmp_path: pathlib.Path, *rules: str) -> pathlib.Path:
    path = tmp_path / "mine.yaml"
    path.write_text(HEAD + "".join(rules))
    return path


def part(module: torch.nn.Module) -> Any:
    (found,) = rewriter.report(module).components.values()
    return found


@pytest.mark.parametrize("order", [(RIGHT, WRONG), (WRONG, RIGHT)])
def test_the_wrong_rule_is_named_and_left_out(tmp_path: pathlib.Path, order: tuple[str, ...]) -> None:
    module, x = Net(), torch.randn(64)
    expected = module(x)
    rewriter.optimize(module, rules=file(tmp_path, *order), measure=False)
    for _ in range(3):
        torch.testing.assert_close(module(x), expected)
    found = part(module)
    assert found.status == "optimised"
    assert found.matches["silu-by-sigmoid"].kept == 1
    assert "tanh-by-relu" not in found.matches
    (message,) = [each for each in found.messages if "tanh-by-relu" in each]
    assert message.startswith("the rewritten graph does not reproduce eager: relative L2 error ")
    assert message.endswith("due to the rule tanh-by-relu (by bisection), which is left out from now on")


def test_several_wrong_rules_go_one_by_one(tmp_path: pathlib.Path) -> None:
    module, x = Net(), torch.randn(64)
    expected = module(x)
    rewriter.optimize(module, rules=file(tmp_path, WRONG, RIGHT, ALSO_WRONG), measure=False)
    torch.testing.assert_close(module(x), expected)
    found = part(module)
    assert (found.status, set(found.matches)) == ("optimised", {"silu-by-sigmoid"})
    assert sum("(by bisection)" in each for each in found.messages) == 2


def test_a_rule_whose_op_raises_is_named(tmp_path: pathlib.Path) -> None:
    module, x = Net(), torch.randn(64)
    expected = module(x)
    rewriter.optimize(module, rules=file(tmp_path, RIGHT, RAISING), measure=False)
    torch.testing.assert_close(module(x), expected)
    found = part(module)
    assert (found.status, set(found.matches)) == ("optimised", {"silu-by-sigmoid"})
    assert any("failed with" in each and "due to the rule tanh-by-mish" in each for each in found.messages)


def test_strict_raises_with_the_rule(tmp_path: pathlib.Path) -> None:
    module = Net()
    rewriter.optimize(module, rules=file(tmp_path, RIGHT, WRONG), measure=False, strict=True)
    with pytest.raises(rewriter.VerificationError, match="due to the rule tanh-by-relu"):
        module(torch.randn(64))


@pytest.mark.parametrize("where", ["proof.check_program", "guilt.PreparedWeights"])
def test_memory_that_runs_out_convicts_nobody(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """While the graph is checked, and while it is looked for the rule that is to blame."""

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("planted")

    module, x = Net(), torch.randn(64)
    expected = module(x)
    rewriter.optimize(module, rules=file(tmp_path, WRONG), measure=False)
    monkeypatch.setattr(f"rewriter.runtime.{where}", full)
    assert torch.equal(module(x), expected)
    assert (part(module).status, part(module).reason) == ("eager", "OutOfMemoryError: planted")
