"""Every rule of every pack is proved from its own entry, and refuses what it must."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import pytest
import torch

import rewriter.rules
from rewriter.graph.conditions import Target
from rewriter.graph.engine import Rewritten, rewrite
from rewriter.language import Rule, RuleSet, load_rules
from rewriter.language.conditions import VALUE_CLASSES
from rewriter.ops.registry import REFERENCE
from rewriter.proof.check import dtypes_of, prove, providers_of
from rewriter.proof.fused import GRAPH, target_of
from rewriter.proof.program import PatternModule, capture
from rewriter.proof.sample import draw

PACKS = sorted({path.parent.name for path in pathlib.Path(rewriter.rules.__path__[0]).glob("*/*.yaml")})
RULES = [rule for pack in PACKS for rule in load_rules(pack)]
EXAMPLES, THOROUGH = 50, 1000
# In dtypes after a rule's first, whose references are the same code: three for each class of values.
FURTHER = 3 * len(VALUE_CLASSES)
# Of a kernel in Triton's interpreter, which takes milliseconds for each block of it: one for each class of values.
INTERPRETED, THOROUGH_INTERPRETED = len(VALUE_CLASSES), 100

PROOFS = [
    pytest.param(rule, dtype, provider, id=f"{rule.id}-{dtype}-{provider}")
    for rule in RULES
    for provider in providers_of(rule, "cpu")
    for dtype in dtypes_of(rule)
]


def by_id(value: object) -> str | None:
    return value.id if isinstance(value, Rule) else None


@pytest.mark.parametrize(("rule", "dtype", "provider"), PROOFS)
def test_proof(rule: Rule, dtype: str, provider: str, request: pytest.FixtureRequest) -> None:
    thorough = request.config.getoption("--thorough", default=False)
    direct = provider in (REFERENCE, GRAPH)
    few = EXAMPLES if dtype == dtypes_of(rule)[0] else FURTHER
    wanted = (THOROUGH if thorough else few) if direct else (THOROUGH_INTERPRETED if thorough else INTERPRETED)
    proof = prove(rule, dtype=dtype, provider=provider, examples=wanted)
    assert proof.failure is None, f"{proof.failure.kind}: {proof.failure.message}\n{proof.failure.example}"
    if direct:
        assert proof.examples >= wanted


def test_every_rule_has_a_proof() -> None:
    assert {param.values[0].id for param in PROOFS} == {rule.id for rule in RULES}  # type: ignore[attr-defined]


def drawn(rule: Rule) -> PatternModule:
    return PatternModule(rule, draw(rule, seed=0, dtype=dtypes_of(rule)[0], layout="contiguous"))


def applied(rule: Rule, module: torch.nn.Module, target: Target | None = None) -> Rewritten:
    graph, weights = capture(module)  # type: ignore[arg-type]
    return rewrite(graph, RuleSet((rule,)), weights=len(weights), target=target or target_of(rule, "cpu"))


@pytest.mark.parametrize("rule", RULES, ids=by_id)
def test_fires(rule: Rule) -> None:
    assert applied(rule, drawn(rule)).rewrites


class Exposed(PatternModule):
    """The pattern with one of its interior values as a further output."""

    interior = ""

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        seen: dict[str, Any] = {}
        outputs = super().forward(*tensors, names=seen)
        value = seen[self.interior]
        # Made anew, so that the value itself stays inside the graph and has one more reader.
        return (*outputs, torch.neg(value[0] if isinstance(value, list) else value))


def interior_values(rule: Rule) -> list[str]:
    return [name for step in rule.match for name in step.targets if name not in rule.outputs]


@pytest.mark.parametrize(
    ("rule", "name"), [(rule, name) for rule in RULES for name in interior_values(rule)], ids=lambda value: by_id(value)
)
def test_refuses_where_an_interior_value_is_used_elsewhere(rule: Rule, name: str) -> None:
    module = Exposed(rule, draw(rule, seed=0, dtype=dtypes_of(rule)[0], layout="contiguous"))
    module.interior = name
    assert not applied(rule, module).rewrites


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.devices == ("cuda",)], ids=by_id)
def test_rules_for_a_gpu_refuse_a_cpu(rule: Rule) -> None:
    assert not applied(rule, drawn(rule), Target(device="cpu")).rewrites


CONDITIONED = [
    rule
    for rule in RULES
    if any(condition.dtype for condition in rule.where.values())
    # These patterns do not run in f64 themselves.
    and not any("mkldnn" in call.op for step in rule.match for call in step.calls)
]


@pytest.mark.parametrize("rule", CONDITIONED, ids=by_id)
def test_refuses_a_dtype_that_it_does_not_name(rule: Rule) -> None:
    named = {name for condition in rule.where.values() for name in condition.dtype}
    if "f64" in named:
        rule = dataclasses.replace(
            rule, where={name: dataclasses.replace(each, dtype=("bf16",)) for name, each in rule.where.items()}
        )
    sample = draw(rule, seed=0, dtype="f64", layout="contiguous")
    operands = {
        name: [_widened(item) for item in value] if isinstance(value, list) else _widened(value)
        for name, value in sample.operands.items()
    }
    module = PatternModule(rule, dataclasses.replace(sample, operands=operands))
    assert not applied(rule, module).rewrites


def _widened(value: Any) -> Any:
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
