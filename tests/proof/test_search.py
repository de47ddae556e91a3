"""Which examples a proof runs: drawn anew where they are refused, larger ones, the same ones again on a GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rewriter.language import Rule
from rewriter.ops.registry import OPS, provide
from rewriter.proof import check, oracle
from rewriter.proof.check import Result, prove, providers_of, run_example
from rewriter.proof.outcome import Example, Proof

Tensor = torch.Tensor
MakeRule = Callable[..., Rule]


def takes(monkeypatch: pytest.MonkeyPatch, provider: Callable[[Example, int], bool], reasons: int = 2) -> list[Example]:
    """Examples only ask whether the provider takes them, by their number from 0 on. Returns what will be tried.

    reasons: for which it refuses some of them.
    """
    tried: list[Example] = []

    class Asked:
        def __init__(self, _rule: Rule, example: Example, *_: str) -> None:
            self.refusal = None if provider(example, len(tried)) else f"reason {len(tried) % reasons}"
            tried.append(example)

        def run(self) -> Result:
            return Result(refusal=self.refusal)

    monkeypatch.setattr(check, "trial_of", Asked)
    return tried


def extent(example: Example) -> int:
    """That of C."""
    return dict(example.dims or ())["C"]


def right(x: Tensor) -> Tensor:
    return (x * 0.5).contiguous()


def test_examples_are_the_same_each_time_unless_seeded(proved: Callable[..., Proof]) -> None:
    def texts(**options: Any) -> list[str]:
        seen: list[str] = []
        proved(right, watch=lambda example: seen.append(str(example)), **options)
        return seen

    assert texts() == texts()
    assert texts(seed=1) == texts(seed=1)
    assert texts(seed=1) != texts(seed=2)


def test_operands_are_drawn_in_every_shape_and_layout(proved: Callable[..., Proof]) -> None:
    seen: list[Tensor] = []

    def kernel(x: Tensor) -> Tensor:
        seen.append(x)
        return right(x)

    proved(kernel, examples=300)
    assert {x.shape[0] for x in seen} == {0, 1, 2, 3, 4, 5}
    assert {0, 1, 40} <= {x.shape[1] for x in seen}
    assert any(0 in x.stride() for x in seen)
    assert any(x.storage_offset() % 2 for x in seen)
    assert any(x.stride(0) < x.stride(1) for x in seen)
    assert any(bool(x.isnan().any()) for x in seen)
    assert any(x.numel() > 1 and bool((x == x.flatten()[0]).all()) for x in seen)
    assert any(x.numel() and float(x.abs().max()) < 1e-30 for x in seen)


def test_every_config_of_a_provider_runs(make_rule: MakeRule) -> None:
    seen: Counter[int] = Counter()

    def kernel(x: Tensor, block: int) -> Tensor:
        seen[block] += 1
        return right(x) if block < 4 else right(x) + 1

    provide("proof_halved", "configured", kernel, lambda *_: None, lambda *_: [{"block": n} for n in range(4)])
    try:
        assert prove(make_rule(), dtype="f32", provider="configured").proved
        assert set(seen) == {0, 1, 2, 3}
        wrong = [{"block": n} for n in (1, 4)]
        OPS["proof_halved"].providers.pop("configured")
        provide("proof_halved", "configured", kernel, lambda *_: None, lambda *_: wrong)
        assert not prove(make_rule(), dtype="f32", provider="configured").proved
    finally:
        OPS["proof_halved"].providers.pop("configured")


@pytest.mark.parametrize(("device", "taken"), [("cuda", True), ("cpu", False)])
def test_a_provider_that_takes_no_small_example_gets_larger_ones_on_a_gpu(
    make_rule: MakeRule, monkeypatch: pytest.MonkeyPatch, device: str, taken: bool
) -> None:
    """Kernels for many rows refused all examples of their rules, and were proved by none."""
    tried = takes(monkeypatch, lambda example, _: extent(example) >= 64)
    proof = prove(make_rule(extents="1..17"), dtype="f16", provider="some kernel", device=device)
    drawn = [dict(each.dims or ()) for each in tried]
    assert proof.failure is None
    assert (proof.examples == 50) is taken
    assert all(each["C"] <= 17 for each in drawn[:20])
    large = [each for each in drawn if each["C"] > 17]
    assert all(each["C"] % 8 == 0 and each["C"] <= 17 * 16 and each["N"] <= 5 for each in large)
    assert bool(large) is taken


def test_large_examples_are_drawn_each_time_until_one_is_taken(
    make_rule: MakeRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = takes(monkeypatch, lambda example, number: number >= 60 and extent(example) > 17)
    prove(make_rule(extents="1..17"), dtype="f16", provider="some kernel", device="cuda")
    large = [extent(each) % 8 == 0 and each.layout == "usual" for each in tried]
    assert not all(large[:20])
    assert all(large[20:60])
    assert not all(large[60:])


@pytest.mark.parametrize(("device", "seconds", "refused"), [("cuda", 20, 400), ("cuda", 0, 100), ("cpu", 20, 100)])
def test_a_provider_is_tried_longer_with_large_examples(
    make_rule: MakeRule, monkeypatch: pytest.MonkeyPatch, device: str, seconds: float, refused: int
) -> None:
    """Attention without a mask, for some sizes of heads and many keys, refused the first hundred."""
    monkeypatch.setattr(check, "_SEARCHING_SECONDS", seconds)
    rule = make_rule(extents="1..17")
    takes(monkeypatch, lambda *_: False)
    proof = prove(rule, dtype="f16", provider="some kernel", device=device)
    assert (proof.failure, proof.examples, proof.unsupported) == (None, 0, refused)
    takes(monkeypatch, lambda _, number: number > 300)
    assert prove(rule, dtype="f16", provider="some kernel", device=device).examples == (50 if refused > 300 else 0)


def test_a_provider_that_refuses_all_for_one_reason_is_not_tried_longer(
    make_rule: MakeRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels for narrow dtypes refused 400 examples in f32, which took most of the time of all proofs."""
    takes(monkeypatch, lambda *_: False, reasons=1)
    proof = prove(make_rule(extents="1..17"), dtype="f32", provider="some kernel", device="cuda")
    assert (proof.examples, proof.unsupported, proof.refusal) == (0, 100, "reason 0")


@pytest.mark.parametrize("first", [3, 30], ids=["small", "large"])
def test_on_a_gpu_what_a_provider_seldom_takes_comes_again(
    make_rule: MakeRule, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    """Each example was looked for anew, until the time was over."""
    known: set[tuple[object, ...]] = set()

    def kernel(example: Example, number: int) -> bool:
        place = (example.dims, example.layout, example.seed)
        if number >= first and (number - first) % 32 == 0:
            known.add(place)
        return place in known

    tried = takes(monkeypatch, kernel)
    proof = prove(make_rule(extents="1..17"), dtype="f16", provider="some kernel", device="cuda")
    assert proof.examples == 50
    assert len(tried) < 16 * 32
    # Other numbers each time.
    taken = [each for each in tried if (each.dims, each.layout, each.seed) in known]
    assert len(set(taken)) == len(taken)
    # One that takes most gets other extents each time.
    tried = takes(monkeypatch, lambda *_: True)
    assert prove(make_rule(), dtype="f16", provider="some kernel", device="cuda").examples == 50
    assert len({each.seed for each in tried[:50]}) > 40


def test_a_refused_call_is_compared_with_nothing(make_rule: MakeRule, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle takes most of the time of an example."""
    asked: list[str] = []
    for name in ("exact", "random_op"):
        monkeypatch.setattr(oracle, name, lambda *_, name=name: asked.append(name))
    provide("proof_halved", "never", right, lambda *_: "not today")
    try:
        example = Example(seed=0, dtype="f32", values="normal", layout=None, choice=0)
        assert run_example(make_rule(), example, provider="never") == Result(refusal="not today")
        assert not asked
    finally:
        OPS["proof_halved"].providers.pop("never")


def test_calls_that_a_provider_refuses_are_counted_and_drawn_again(make_rule: MakeRule) -> None:
    provide("proof_halved", "even", right, lambda x: "odd" if x.shape[1] % 2 else None)
    provide("proof_halved", "never", right, lambda *_: "not today")
    try:
        proof = prove(make_rule(), dtype="f32", provider="even")
        assert (proof.proved, proof.examples) == (True, 50)
        assert proof.unsupported > 5
        assert proof.refusal == "odd"
        proof = prove(make_rule(), dtype="f32", provider="never")
        assert (proof.proved, proof.examples, proof.refusal) == (True, 0, "not today")
        assert proof.unsupported > 5
        assert providers_of(make_rule(), "cpu") == ("torch", "even", "never")
    finally:
        for name in ("even", "never"):
            OPS["proof_halved"].providers.pop(name)


def test_what_breaks_a_proof_is_told_as_it_is(make_rule: MakeRule, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hypothesis tries again, and where that goes well it says no more than that it could not have it twice."""

    class Once:
        asked = 0

        def __init__(self, *_: Any) -> None:
            type(self).asked += 1

        def run(self) -> Result:
            if self.asked == 7:
                raise NotImplementedError("not for eight bits")
            return Result()

    monkeypatch.setattr(check, "trial_of", Once)
    with pytest.raises(NotImplementedError, match="not for eight bits"):
        prove(make_rule(), dtype="f32")
    assert Once.asked == 7
