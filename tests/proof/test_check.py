"""What the proof of a rule notices, one fault at a time, on an op that halves its operand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch

from rewriter.language import Rule
from rewriter.ops.registry import OPS, provide
from rewriter.proof import oracle
from rewriter.proof.check import Result, dtypes_of, prove, providers_of, run_example
from rewriter.proof.outcome import Example, Failure, Proof
from rewriter.proof.trial import trial_of

Tensor = torch.Tensor
Kernel = Callable[[Tensor], Tensor]
MakeRule = Callable[..., Rule]


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


def test_a_graph_of_stock_ops_is_its_own_provider(make_rule: MakeRule) -> None:
    rule = make_rule("s = aten::sigmoid(x); y = aten::mul(x, s)", "y = aten::silu(x)")
    assert providers_of(rule, "cpu") == ("graph",)
    assert dtypes_of(rule) == ("f32", "f16", "bf16")
    assert prove(rule, dtype="bf16", provider="graph").proved


def test_the_tanh_formula_is_not_the_exact_gelu(make_rule: MakeRule) -> None:
    failure = prove(make_rule("y = aten::gelu(x)", 'y = aten::gelu(x, "tanh")'), dtype="f32", provider="graph").failure
    assert failure is not None
    assert failure.kind == "wrong result"


def test_an_operand_that_the_replacement_ignores_is_named(make_rule: MakeRule) -> None:
    rule = make_rule(
        "y = aten::linear(x, weight, bias)",
        "y = rewriter::proof_linear(x, weight, bias)",
        more={"inputs": {"weight": "{shape: [M, C]}", "bias": "{shape: [M]}"}},
        extents="1..40, M: 1..40",
    )
    failure = prove(rule, dtype="f32").failure
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


def test_a_random_result_has_no_cause_among_the_operands(make_rule: MakeRule) -> None:
    more = {"ignore": {"train": "it decides whether numbers are random"}, "inputs": {"train": "[true, false]"}}
    rule = make_rule("y = aten::dropout(x, 0.5, train)", "y = aten::mul(x, 1.0)", more=more)
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
