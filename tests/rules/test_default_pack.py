"""Every rule of the default pack fires on its own pattern, gives the pattern's result, and refuses what it must."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from rewriter import torch_ir
from rewriter.graph import prepare
from rewriter.graph.conditions import Target
from rewriter.graph.engine import Rewritten, rewrite
from rewriter.language import Rule, RuleSet, load_rules
from rewriter.language.conditions import TensorInput
from rewriter.proof.program import PatternModule, capture
from rewriter.proof.sample import FLOATS, draw, dtypes_of

RULES = load_rules("default")
# Relative L2 error of the replacement against the pattern, both in one dtype: rounding in another order.
LIMITS = {"f32": 2e-6, "f16": 4e-3, "bf16": 3e-2}
SEEDS = range(5)


def applied(rule: Rule, module: torch.nn.Module) -> tuple[Rewritten, list[torch.Tensor]]:
    graph, weights = capture(module)  # type: ignore[arg-type]
    target = Target(device=(rule.devices or ("cpu",))[0], sm=90)
    result = rewrite(graph, RuleSet((rule,)), weights=len(weights), target=target)
    for recipe in result.prepared:
        weights.append(prepare.run(recipe, weights))
    return result, weights


def run(result: Rewritten, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    with torch.no_grad(), torch_ir.plain_executor():
        outputs = torch_ir.function_from_graph(result.graph)(*inputs)
    return list(outputs) if isinstance(outputs, tuple) else [outputs]


def dtypes(rule: Rule) -> tuple[str, ...]:
    """The dtypes in which the CPU can run both sides."""
    pinned = {name for given in rule.inputs.values() if isinstance(given, TensorInput) for name in given.dtype}
    return tuple(name for name in dtypes_of(rule) if not pinned & set(FLOATS) or name in pinned)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_fires_and_gives_the_result_of_the_pattern(rule: Rule) -> None:
    assert dtypes(rule)
    for dtype in dtypes(rule):
        for seed in SEEDS:
            module = PatternModule(rule, draw(rule, seed=seed, dtype=dtype), choice=seed)
            inputs = module.example()
            with torch.no_grad():
                expected = module(*inputs)
            result, weights = applied(rule, module)
            assert [done.rule for done in result.rewrites].count(rule.id) >= 1, f"{dtype}, seed {seed}: did not fire"
            actual = run(result, [*inputs, *weights])
            for got, wanted in zip(actual, expected, strict=True):
                assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
                assert torch.equal(got.isnan(), wanted.isnan())
                difference = (got.double() - wanted.double()).nan_to_num().norm()
                limit = LIMITS[dtype] * rule.tolerance * wanted.double().nan_to_num().norm() + 1e-7
                assert difference <= limit, f"{dtype}, seed {seed}: off by {difference:.2e}, allowed {limit:.2e}"


class Exposed(PatternModule):
    """The pattern with one of its interior values as a further output."""

    interior = ""

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seen: dict[str, Any] = {}
        outputs = super().forward(*tensors, names=seen)  # type: ignore[call-arg]
        value = seen[self.interior]
        # Made anew, so that the value itself stays inside the graph and has one more reader.
        return (*outputs, torch.neg(value[0] if isinstance(value, list) else value))


def interior_values(rule: Rule) -> list[str]:
    return [name for step in rule.match for name in step.targets if name not in rule.outputs]


@pytest.mark.parametrize(
    ("rule", "name"),
    [(rule, name) for rule in RULES for name in interior_values(rule)],
    ids=lambda value: value.id if isinstance(value, Rule) else value,
)
def test_refuses_where_an_interior_value_is_used_elsewhere(rule: Rule, name: str) -> None:
    module = Exposed(rule, draw(rule, seed=0, dtype=dtypes(rule)[0]))
    module.interior = name
    result, _ = applied(rule, module)
    assert not result.rewrites


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.devices == ("cuda",)], ids=lambda rule: rule.id)
def test_rules_for_a_gpu_refuse_a_cpu(rule: Rule) -> None:
    graph, weights = capture(PatternModule(rule, draw(rule, seed=0, dtype=dtypes(rule)[0])))
    assert not rewrite(graph, RuleSet((rule,)), weights=len(weights), target=Target(device="cpu")).rewrites


CONDITIONED = [rule for rule in RULES if any(condition.dtype for condition in rule.where.values())]


@pytest.mark.parametrize("rule", CONDITIONED, ids=lambda rule: rule.id)
def test_refuses_a_dtype_that_it_does_not_name(rule: Rule) -> None:
    named = {name for condition in rule.where.values() for name in condition.dtype}
    if "f64" in named:
        rule = dataclasses.replace(
            rule, where={k: dataclasses.replace(c, dtype=("bf16",)) for k, c in rule.where.items()}
        )
    sample = draw(rule, seed=0, dtype="f64")
    operands = {
        name: [item.double() if isinstance(item, torch.Tensor) else item for item in value]
        if isinstance(value, list)
        else value.double()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
        else value
        for name, value in sample.operands.items()
    }
    if any("mkldnn" in call.op for step in rule.match for call in step.calls):
        pytest.skip("the pattern itself does not run in f64")
    result, _ = applied(rule, PatternModule(rule, dataclasses.replace(sample, operands=operands)))
    assert not result.rewrites
