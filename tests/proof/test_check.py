"""What the proof of a rule notices, one fault at a time, on an op that halves its operand."""

from __future__ import annotations

import pathlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rewriter.language import Rule, load_rules
from rewriter.ops.registry import OPS, define, provide
from rewriter.proof import check, oracle
from rewriter.proof.check import Result, dtypes_of, prove, providers_of, run_example
from rewriter.proof.outcome import Example, Failure, Proof
from rewriter.proof.trial import trial_of

RULE = """\
format: 1
pack: test
summary: One rule.
rules:
  - id: under-test
    summary: The rule under test
    match: |
      {match}
    where:
      x: {{dtype: [f16, bf16, f32]}}
    replace: |
      {replace}
    inputs:
      x: {{shape: [N, C]{inputs}}}
    dims: {{N: 1..5, C: {extents}}}
"""
Tensor = torch.Tensor
Kernel = Callable[[Tensor], Tensor]
MakeRule = Callable[..., Rule]


@pytest.fixture(autouse=True, scope="module")
def _own_ops() -> Iterator[None]:
    """Two ops for this file; other files look at every op in the table."""
    made = [
        define("proof_halved(Tensor x) -> Tensor", lambda x: (x * 0.5).contiguous()),
        define(
            "proof_linear(Tensor x, Tensor weight, Tensor bias) -> Tensor", lambda x, weight, _: F.linear(x, weight)
        ),
    ]
    yield
    for op in made:
        del OPS[op.name]


@pytest.fixture
def make_rule(tmp_path: pathlib.Path) -> MakeRule:
    def make(
        match: str = "y = aten::mul(x, 0.5)",
        replace: str = "y = rewriter::proof_halved(x)",
        inputs: str = "",
        extents: str = "1..40",
    ) -> Rule:
        path = tmp_path / "rules.yaml"
        indented = [text.replace("; ", "\n      ") for text in (match, replace)]
        path.write_text(
            RULE.format(match=indented[0], replace=indented[1], inputs=inputs, extents=extents), encoding="utf-8"
        )
        return load_rules(path)["under-test"]

    return make


@pytest.fixture
def proved(make_rule: MakeRule) -> Iterator[Callable[..., Proof]]:
    """proved(kernel, dtype) is the proof of the halving rule with that kernel as the op's only other provider."""

    def run(kernel: Kernel, dtype: str = "f32", **options: Any) -> Proof:
        OPS["proof_halved"].providers.pop("planted", None)
        provide("proof_halved", "planted", kernel, lambda *_: None)
        return prove(make_rule(), dtype=dtype, provider="planted", **options)

    yield run
    OPS["proof_halved"].providers.pop("planted", None)


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


def storage(x: Tensor) -> Tensor:
    return x.new_empty(0).set_(x.untyped_storage())  # type: ignore[call-overload]


def right(x: Tensor) -> Tensor:
    return (x * 0.5).contiguous()


def last_column_wrong(x: Tensor) -> Tensor:
    y = right(x)
    y[:, -1:] *= 1.001
    return y


def reads_past_the_end(x: Tensor) -> Tensor:
    y = right(x)
    end = x.storage_offset() + sum((extent - 1) * stride for extent, stride in zip(x.shape, x.stride(), strict=True))
    if x.numel():
        y[-1, -1] += 0 * storage(x)[end + 1]
    return y


def reads_every_row_as_if_wide(x: Tensor) -> Tensor:
    return torch.as_strided(x, x.shape, (x.shape[1] + 5, 1), x.storage_offset()) * 0.5


def leaves_the_last_row(x: Tensor) -> Tensor:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    y[:-1] = x[:-1] * 0.5
    return y


def counts_up_what_is_there(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype).add_(right(x))


def writes_its_operand(x: Tensor) -> Tensor:
    y = right(x)
    if x.numel():
        x[(0,) * x.dim()] = 7.0
    return y


def writes_behind_its_operand(x: Tensor) -> Tensor:
    storage(x)[-1] = 7.0
    return right(x)


def raises_at_odd_widths(x: Tensor) -> Tensor:
    if x.shape[1] % 2:
        raise RuntimeError("odd widths are not for this kernel")
    return right(x)


FAULTS = {
    "wrong-value": (last_column_wrong, "wrong result", "output y"),
    "NaN": (lambda x: torch.where(x.abs() > 1, torch.nan, right(x)), "wrong NaN", "found nan"),
    "swallows-NaN": (lambda x: torch.where(x.isnan(), 0, right(x)), "wrong NaN", "expected nan"),
    "clamps-Inf": (lambda x: right(x).clamp(max=6e4), "wrong NaN", "expected inf"),
    "reads-past-the-end": (reads_past_the_end, "out of bounds", "depends on memory around the operands"),
    "wrong-stride": (reads_every_row_as_if_wide, "out of bounds", "depends on memory around the operands"),
    "row-unwritten": (leaves_the_last_row, "unwritten", "depends on what fresh memory holds"),
    "adds-to-garbage": (counts_up_what_is_there, "unwritten", "depends on what fresh memory holds"),
    "writes-operand": (writes_its_operand, "writes an input", "operand x is changed at [0, 0]"),
    "writes-behind": (writes_behind_its_operand, "out of bounds", "writes around operand x"),
    "returns-operand": (lambda x: x if x.numel() else right(x), "aliases", "output y shares memory with an operand"),
    "wrong-shape": (lambda x: right(x)[:, :1], "wrong shape", "found [1, 1] f32, expected [1, 2] f32"),
    "wrong-dtype": (lambda x: right(x).double(), "wrong shape", "found [1, 1] f64, expected [1, 1] f32"),
    "raises": (raises_at_odd_widths, "raises", "RuntimeError: odd widths are not for this kernel"),
}


def test_a_right_kernel_is_proved(proved: Callable[..., Proof]) -> None:
    for dtype in ("f32", "f16", "bf16"):
        proof = proved(right, dtype)
        assert (proof.proved, proof.examples, proof.unsupported) == (True, 50, 0)
        assert proof.worst <= 1


@pytest.mark.parametrize(("kernel", "kind", "words"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_found_and_named(proved: Callable[..., Proof], kernel: Kernel, kind: str, words: str) -> None:
    failure = proved(kernel).failure
    assert failure is not None
    assert failure.kind == kind, failure.message
    assert words in failure.message
    assert failure.operands.startswith("x [")


def test_the_failing_example_is_small_and_runs_again(proved: Callable[..., Proof], make_rule: MakeRule) -> None:
    failure = proved(lambda x: right(x) + (x.shape[1] > 5)).failure
    assert failure is not None
    assert failure.example is not None
    assert dict(failure.example.dims or ()) == {"N": 1, "C": 6}
    assert failure.operands == "x [1, 6] f32 contiguous"
    again = run_example(make_rule(), Example.parse(str(failure.example)), provider="planted")
    assert again == failure


@pytest.mark.parametrize(("dtype", "slip"), [("f32", 1e-5), ("f16", 2e-2), ("bf16", 1e-1)], ids=["f32", "f16", "bf16"])
def test_one_element_off_by_more_than_rounding(proved: Callable[..., Proof], dtype: str, slip: float) -> None:
    def kernel(x: Tensor) -> Tensor:
        y = right(x)
        y[-1:, -1:] *= 1 + slip
        return y

    failure = proved(kernel, dtype).failure
    assert failure is not None
    assert failure.kind == "wrong result"


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


def test_a_graph_of_stock_ops_is_its_own_provider(make_rule: MakeRule) -> None:
    rule = make_rule("s = aten::sigmoid(x); y = aten::mul(x, s)", "y = aten::silu(x)")
    assert providers_of(rule, "cpu") == ("graph",)
    assert dtypes_of(rule) == ("f32", "f16", "bf16")
    assert prove(rule, dtype="bf16", provider="graph").proved


def test_the_tanh_formula_is_not_the_exact_gelu(make_rule: MakeRule) -> None:
    failure = prove(make_rule("y = aten::gelu(x)", 'y = aten::gelu(x, "tanh")'), dtype="f32", provider="graph").failure
    assert failure is not None
    assert failure.kind == "wrong result"


def test_an_operand_that_the_replacement_ignores_is_named(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "rules.yaml"
    text = RULE.format(
        match="y = aten::linear(x, weight, bias)",
        replace="y = rewriter::proof_linear(x, weight, bias)",
        inputs="",
        extents="1..40",
    )
    text = text.replace("    dims:", "      weight: {shape: [M, C]}\n      bias: {shape: [M]}\n    dims:")
    path.write_text(text.replace("C: 1..40", "C: 1..40, M: 1..40"), encoding="utf-8")
    failure = prove(load_rules(path)["under-test"], dtype="f32").failure
    assert failure is not None
    assert "the result does not depend on bias, the pattern's does" in failure.message


def test_a_pattern_that_draws_random_numbers_is_not_proved(make_rule: MakeRule) -> None:
    failure = prove(make_rule("y = aten::dropout(x, 0.5, True)", "y = aten::mul(x, 1.0)"), dtype="f32").failure
    assert failure is not None
    assert "aten::dropout draws random numbers" in failure.message


def test_random_numbers_are_named_before_what_is_done_to_memory(make_rule: MakeRule) -> None:
    provide("proof_halved", "planted", writes_its_operand, lambda *_: None)
    try:
        example = Example(
            seed=0, dtype="f32", values="normal", layout="contiguous", choice=0, dims=(("N", 5), ("C", 40))
        )
        outcome = run_example(make_rule("y = aten::dropout(x, 0.5, True)"), example, provider="planted")
        assert isinstance(outcome, Failure)
        assert "aten::dropout draws random numbers" in outcome.message
    finally:
        OPS["proof_halved"].providers.pop("planted")


def without_memory(_: torch.Tensor) -> torch.Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")


def test_what_a_proof_has_no_memory_for_refutes_nothing(make_rule: MakeRule) -> None:
    """Several proofs share a GPU, and each keeps to its part of the memory."""
    provide("proof_halved", "planted", without_memory, lambda *_: None)
    try:
        rule = make_rule()
        example = Example(
            seed=0, dtype="f32", values="normal", layout="contiguous", choice=0, dims=(("N", 5), ("C", 40))
        )
        with pytest.raises(oracle.InvalidExample, match="out of memory"):
            run_example(rule, example, provider="planted")
        # But something has to run.
        proof = prove(rule, dtype="f32", provider="planted", examples=5)
        assert proof.failure is not None
        assert proof.failure.kind == "no example"
    finally:
        OPS["proof_halved"].providers.pop("planted")


def test_a_random_result_has_no_cause_among_the_operands(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "rules.yaml"
    text = RULE.format(
        match="y = aten::dropout(x, 0.5, train)", replace="y = aten::mul(x, 1.0)", inputs="", extents="1..40"
    )
    text = text.replace("    inputs:", "    ignore: {train: it decides whether numbers are random}\n    inputs:")
    path.write_text(text.replace("    dims:", "      train: [true, false]\n    dims:"), encoding="utf-8")
    rule = load_rules(path)["under-test"]
    dims = (("N", 5), ("C", 40))
    examples = [
        Example(seed=seed, dtype="f32", values="normal", layout="contiguous", choice=0, dims=dims) for seed in range(8)
    ]
    failures = [
        each for each in (run_example(rule, one, provider="graph") for one in examples) if isinstance(each, Failure)
    ]
    assert 0 < len(failures) < len(examples)
    assert all(each.message.endswith("no result is the right one to prove") for each in failures)


def test_a_rule_that_does_not_fire(make_rule: MakeRule) -> None:
    rule = make_rule(inputs=", dtype: f64")
    example = Example(seed=0, dtype="f64", values="normal", layout=None, choice=0)
    outcome = run_example(rule, example)
    assert isinstance(outcome, Failure)
    assert outcome.kind == "does not fire"
    assert "x is f64" in outcome.message


def test_an_op_that_is_not_called(make_rule: MakeRule) -> None:
    trial = trial_of(make_rule(), Example(seed=0, dtype="f32", values="normal", layout=None, choice=0), "cpu", "torch")
    assert isinstance(trial.run(), Result)
    wrong = trial.calls(Counter())
    assert wrong is not None
    assert wrong.kind == "not called"


@pytest.mark.parametrize(
    ("extents", "words"),
    [
        ("100000000..100000001", "elements where"),
        ("7..7", "RuntimeError: shape '[6, -1]' is invalid for input of size"),
    ],
    ids=["too-large", "refused"],
)
def test_no_example_can_be_drawn(make_rule: MakeRule, extents: str, words: str) -> None:
    failure = prove(make_rule(match="y = aten::reshape(x, [6, -1])", extents=extents), dtype="f32").failure
    assert failure is not None
    assert failure.kind == "no example"
    assert words in failure.message
