"""The table of real operands fits the rules, and rules are timed at them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from rewriter.language import load_rules
from rewriter.models.catalogue import ARCHITECTURES
from rewriter.ops import OPS, dispatch, registry
from rewriter.proof.shape_tracing import trace
from rewriter.proof.site_recorder import record
from rewriter.proof.sites import Site, sites_of, table
from rewriter.proof.stopwatch import measured
from rewriter.proof.timing import measure_ceilings, time_site

RULES = load_rules("default")
# What pays in every model of a kind; without sites it would not be timed.
TIMED = {
    "group-norm-silu": {"sd15", "sdxl", "svd-xt", "flux-dev"},
    "add-group-norm-silu": {"sd15", "sdxl", "svd-xt", "flux-dev"},
    "linear-geglu": {"sd15", "sdxl", "svd-xt"},
    "attention-tokens": {"sd15", "sdxl", "svd-xt", "flux-dev"},
    "merge-projections": {"sd15", "sdxl", "svd-xt", "flux-dev"},
    "linear-add": {"sd15", "sdxl", "svd-xt"},
    "layer-norm-modulate": {"flux-dev"},
}


def tensor(*shape: int, **more: Any) -> dict[str, Any]:
    return {"shape": list(shape), "dtype": "f32", **more}


def site(rule: str, **operands: Any) -> Site:
    return Site(rule=rule, model="m", component="unet", count=3, dtype="f32", choice=0, operands=operands)


@pytest.mark.parametrize("rule", TIMED)
def test_the_table_has_the_models(rule: str) -> None:
    found = sites_of(RULES[rule], most=2)
    assert {site.model for site in found} >= TIMED[rule]
    assert all(sum(other.model == site.model for other in found) <= 2 for site in found)


def test_the_table_is_about_the_rules_as_they_are() -> None:
    for each in table():
        if each.rule in RULES:
            assert each.operands.keys() == RULES[each.rule].inputs.keys(), f"{each.rule}: record the sites anew"


def test_known_shapes() -> None:
    shapes = {site.shapes for site in table() if (site.rule, site.model) == ("linear-geglu", "sdxl")}
    assert "x 2x1024x1280, weight 10240x1280" in shapes


def test_recording_a_small_model_counts_what_fires() -> None:
    sites = record("sd15-tiny", ARCHITECTURES["sd15-tiny"], RULES)
    counts = {
        rule: sum(site.count for site in sites if site.rule == rule) for rule in ("linear-geglu", "attention-tokens")
    }
    assert counts["linear-geglu"] == 16
    assert counts["attention-tokens"] >= 32
    site = next(site for site in sites if site.rule == "group-norm-silu")
    assert site.operands["x"]["strides"] == "channels_last"
    assert site.operands["groups"] == 32


def test_tracing_without_computing_keeps_shapes() -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3, 2, padding=1), torch.nn.ReLU(inplace=True), torch.nn.Flatten())
    graph, weights = trace(net, net, [torch.zeros(2, 4, 200, 200)])
    assert weights == 2
    assert [tuple(out.type().sizes()) for out in graph.outputs()] == [(2, 8 * 100 * 100)]
    assert "aten::convolution" in str(graph)


def test_operands_as_described() -> None:
    sample = site(
        "x",
        x=tensor(2, 4, 3, 3, strides="channels_last"),
        w=[tensor(3, 2)] * 2,
        s=tensor(2, 3, strides=[0, 1]),
        n=[1, 2],
        b=None,
    ).sample("cpu")
    assert sample.operands["x"].is_contiguous(memory_format=torch.channels_last)
    assert [tuple(each.shape) for each in sample.operands["w"]] == [(3, 2), (3, 2)]
    assert sample.operands["s"].stride() == (0, 1)
    assert (sample.operands["n"], sample.operands["b"]) == ([1, 2], None)


def test_a_rule_is_timed_at_a_site() -> None:
    where = site("linear-geglu", x=tensor(2, 5, 8), weight=tensor(12, 8), bias=tensor(12))
    timed = time_site(RULES["linear-geglu"], where, "cpu")
    assert timed.reason is None
    assert timed.unfused is not None
    assert timed.unfused.low <= timed.unfused.median <= timed.unfused.high
    assert [one.provider for one in timed.fused][-1:] == ["torch"]
    assert timed.speedup is not None
    assert timed.bytes == 4 * (80 + 96 + 12 + 60)
    assert timed.flops == 2 * 10 * 8 * 12
    assert (timed.count, timed.shapes) == (3, "x 2x5x8, weight 12x8")


def test_a_provider_that_is_wrong_at_a_site_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_on_gpu", lambda _: True)
    where = site("add-group-norm-silu", x=tensor(2, 8, 3, 3), addend=tensor(2, 8, 1, 1), groups=4, eps=1e-5)
    rule = RULES["add-group-norm-silu"]
    where = dataclasses.replace(where, operands={name: where.operands.get(name) for name in rule.inputs})
    op = OPS["add_group_norm_silu"]
    registry.provide(op.name, "right", lambda *given: op.reference(*given), lambda *_: None)
    registry.provide(op.name, "wrong", lambda *given: [1.5 * each for each in op.reference(*given)], lambda *_: None)
    try:
        found = {one.provider: one for one in time_site(rule, where, "cpu").fused}
    finally:
        del op.providers["right"], op.providers["wrong"]
    assert found["right"].time is not None
    assert found["wrong"].time is None
    assert found["wrong"].reason == "ArithmeticError: its result is off by 5.0e-01 (relative L2 error)"


def test_a_rule_over_stock_ops_is_timed() -> None:
    where = site("merge-projections", x=tensor(2, 5, 8), weight=[tensor(8, 8)] * 3, bias=[None] * 3)
    timed = time_site(RULES["merge-projections"], where, "cpu")
    assert [one.provider for one in timed.fused] == ["graph"]
    assert timed.speedup is not None


def test_a_rule_whose_result_is_an_operand_is_timed() -> None:
    timed = time_site(
        RULES["tokens-to-channels-to-tokens"], site("tokens-to-channels-to-tokens", x=tensor(2, 3, 4, 5)), "cpu"
    )
    assert [one.reason for one in timed.fused] == [None]


def test_what_a_rule_asks_to_be_contiguous_is_so_at_its_sites() -> None:
    found = [each for each in table() if each.rule == "conv-channels-last"]
    assert found
    assert all("strides" not in each.operands["weight"] for each in found)


def test_what_cannot_be_timed_says_why() -> None:
    where = site("linear-geglu", x=tensor(2, 5, 8), weight=tensor(12, 9), bias=None)
    assert "RuntimeError" in (time_site(RULES["linear-geglu"], where, "cpu").reason or "")
    halves = dataclasses.replace(where, operands={**where.operands, "weight": tensor(11, 8)})
    timed = time_site(RULES["linear-geglu"], halves, "cpu")
    assert timed.reason
    assert timed.speedup is None


def test_functions_take_turns() -> None:
    calls: list[int] = []
    spread = measured([lambda: calls.append(0), lambda: calls.append(1)], "cpu")
    assert calls[:4] == [0, 1, 0, 1]
    assert 0 < spread.low <= spread.median <= spread.high


def test_ceilings() -> None:
    ceilings = measure_ceilings("cpu")
    assert ceilings.bandwidth > 0
    assert set(ceilings.tflops) == {"f16", "bf16", "f32"}
