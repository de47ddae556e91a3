"""Examples as texts, as draws, and as tensors in memory."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch

from rewriter.language import load_rules
from rewriter.language.conditions import LAYOUTS, VALUE_CLASSES
from rewriter.proof.drawing import Repeated, drawn, empty, simpler
from rewriter.proof.fences import refence, storage_of
from rewriter.proof.layouts import FENCE, placed
from rewriter.proof.outcome import Example
from rewriter.proof.sample import ImpossibleSample, Sample, draw, dtypes_of, layouts_of

RULES = load_rules("default")
SHAPES = [(), (1,), (7,), (0, 3), (3, 5), (2, 3, 5), (2, 4, 3, 5), (1, 1, 1, 1), (2, 3, 1, 4, 5)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool]


@pytest.mark.parametrize(
    "example",
    [
        Example(seed=17, dtype="f16", values="normal", layout="sliced", choice=0, dims=(("C", 3), ("H", 0))),
        Example(seed=0, dtype="bf16", values="nan_inf", layout=None, choice=2),
    ],
    ids=str,
)
def test_an_example_reads_back(example: Example) -> None:
    assert Example.parse(str(example)) == example


@pytest.mark.parametrize("text", ["", "f16", "f16,normal,sliced,seed=1,choice=0", "f16,normal,sliced,choice=0,seed=x"])
def test_other_texts_are_no_examples(text: str) -> None:
    with pytest.raises(ValueError, match="not an example"):
        Example.parse(text)


@pytest.mark.parametrize(("layout", "shape", "dtype"), list(itertools.product(LAYOUTS, SHAPES, DTYPES)), ids=str)
def test_layouts_keep_numbers_and_fence_them_in(layout: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 9).to(dtype)
    y = placed(x, layout, random.Random(0))
    if layout != "expanded":
        assert torch.equal(x, y)
    assert (y.shape, y.dtype) == (x.shape, dtype)
    storage = y.new_empty(0).set_(y.untyped_storage())  # type: ignore[call-overload]
    inside = torch.zeros(storage.shape, dtype=torch.bool)
    for index in itertools.product(*map(range, shape)):
        inside[y.storage_offset() + sum(map(int.__mul__, index, y.stride()))] = True
    outside = storage[~inside]
    assert bool((outside.isnan() if dtype.is_floating_point else outside == outside.amin()).all())
    assert not inside[:FENCE].any()
    assert not inside[-FENCE:].any()


def test_layouts_are_what_they_are_called() -> None:
    x = torch.randn(2, 4, 3, 5)
    made = {layout: placed(x, layout, random.Random(1)) for layout in LAYOUTS}
    assert made["contiguous"].is_contiguous()
    assert made["contiguous"].data_ptr() % 64 == 0
    assert made["channels_last"].is_contiguous(memory_format=torch.channels_last)
    assert made["sliced"].stride() == (120, 30, 10, 1)
    assert made["offset"].is_contiguous()
    assert made["offset"].data_ptr() % 8 == 4
    assert made["expanded"].stride().count(0) == 1
    assert sorted(made["permuted"].stride()) == sorted(x.stride()) or not made["permuted"].is_contiguous()


def test_every_class_comes_with_every_layout() -> None:
    rule = RULES["group-norm-silu"]
    chooser = random.Random(0)
    examples = [drawn(rule, "f32", chooser, number) for number in range(2 * len(LAYOUTS) * len(VALUE_CLASSES))]
    assert {(each.values, each.layout) for each in examples} == set(itertools.product(VALUE_CLASSES, (*LAYOUTS, None)))
    extents = [dict(each.dims or ()) for each in examples]
    assert {1, 40} <= {each["K"] for each in extents}
    assert {each["G"] for each in extents} == {1, 2, 32}


def test_most_elements() -> None:
    rule = RULES["group-norm-silu"]
    chooser = random.Random(0)
    for number in range(50):
        dims = dict(drawn(rule, "f32", chooser, number, most=4096).dims or ())
        assert math.prod(dims[name] for name in ("N", "G", "K", "H", "W")) <= 4096


def test_each_range_is_empty_once() -> None:
    zeros = [
        [name for name, extent in example.dims or () if extent == 0] for example in empty(RULES["conv-act"], "f32")
    ]
    assert zeros == [["N"], ["C"], ["M"], ["H"], ["W"]]


def test_simpler_examples_end_at_the_simplest() -> None:
    rule = RULES["conv-act"]
    example = drawn(rule, "f32", random.Random(3), 3)
    while simplest := [each for each in simpler(rule, example) if each != example]:
        example = simplest[-1]
    assert dict(example.dims or ()) == {"N": 1, "G": 1, "C": 1, "M": 1, "H": 1, "W": 1}
    assert (example.layout, example.values, example.choice) == ("contiguous", "normal", 0)


def test_a_draw_is_reproducible() -> None:
    for rule in RULES:
        samples = [draw(rule, seed=5, dtype=dtypes_of(rule)[0], values="normal") for _ in range(2)]
        assert str(samples[0]) == str(samples[1])
        for one, other in zip(*(sample.operands.values() for sample in samples), strict=True):
            if isinstance(one, torch.Tensor):
                assert torch.equal(one, other)
                assert one.stride() == other.stride()


def test_operands_follow_the_entry() -> None:
    rule = RULES["conv-channels-last"]
    assert layouts_of(rule, "weight") == ("contiguous",)
    assert layouts_of(rule, "x") == LAYOUTS
    sample = draw(rule, seed=0, dtype="f16", values="nan_inf", dims={"N": 1, "C": 2, "M": 3, "H": 4, "W": 5})
    assert sample.operands["x"].shape == (1, 2, 4, 5)
    assert bool(sample.operands["weight"].isfinite().all())
    assert dtypes_of(RULES["rms-norm-composed-narrow"]) == ("f16", "bf16")
    assert draw(RULES["rms-norm-composed-narrow"], seed=0, dtype="bf16").operands["dtype"] == 15


def test_a_sample_in_words() -> None:
    sample = Sample(
        {"x": torch.zeros(1, 3), "many": [torch.zeros(2), torch.zeros(2)], "none": [None, None], "eps": 1e-5},
        {},
        "f32",
        {("x", 0): "sliced", ("many", 1): "offset"},
    )
    assert str(sample) == "x [1, 3] f32 sliced, many [2] f32 and [2] f32 offset, none None, eps 1e-05"


def test_impossible_dims_are_named() -> None:
    with pytest.raises(
        ImpossibleSample, match=r"rule quick-gelu: x has 10000000000 elements where \{'N': 1, .*at most"
    ):
        draw(RULES["quick-gelu"], seed=0, dtype="f32", dims={"N": 1, "S": 100000, "C": 100000})


def test_examples_that_are_compiled_for_share_extents_and_differ_in_numbers() -> None:
    rule = RULES["group-norm-silu"]
    chooser = random.Random(0)
    repeated = Repeated(11)
    found = []
    for number in range(66):
        found.append(repeated.of(drawn(rule, "f16", chooser, number)))
        repeated.judge(ran=True)
    assert len({(each.dims, each.layout, each.seed, each.choice) for each in found}) == 11
    # Each of them with each class.
    assert len(set(found)) == 66


def test_what_is_refused_is_drawn_anew() -> None:
    rule = RULES["group-norm-silu"]
    chooser = random.Random(0)
    repeated = Repeated(5)
    first = repeated.of(drawn(rule, "f16", chooser, 0))
    repeated.judge(ran=False)
    second = repeated.of(drawn(rule, "f16", chooser, 1))
    assert second.seed != first.seed
    repeated.judge(ran=True)
    others = []
    for number in range(5):
        others.append(repeated.of(drawn(rule, "f16", chooser, 2 + number)))
        repeated.judge(ran=True)
    assert others[-1].seed == second.seed
    assert len({each.seed for each in others}) == 5


def test_plain_examples_are_what_kernels_for_vectors_take() -> None:
    usual: dict[str, dict[str, str]] = {
        "conv-act": {"x": "channels_last", "weight": "channels_last"},
        # Pixels have four dimensions as well.
        "linear-channels-add": {"x": "contiguous", "residual": "channels_last"},
        "linear-geglu": {"x": "contiguous"},
        "attention-tokens": {"q": "contiguous", "mask": "contiguous"},
        "attention": {"q": "contiguous"},
        "rope": {"x": "contiguous"},
    }
    for name, layouts in usual.items():
        rule = RULES[name]
        chooser = random.Random(0)
        found = [drawn(rule, "f16", chooser, number, most=2**12, plain=True) for number in range(60)]
        for each in found:
            sample = draw(rule, seed=each.seed, dtype="f16", layout=each.layout, dims=dict(each.dims or ()))
            for operand, layout in layouts.items():
                assert sample.layouts.get((operand, 0), layout) == layout
        assert {each.values for each in found} == set(VALUE_CLASSES)
        for symbol, given in rule.dims.items():
            extents = {dict(each.dims or ())[symbol] for each in found}
            every = given.choices or range(given.low, given.high + 1)
            vectors = [extent for extent in every if extent % 8 == 0 < extent]
            assert extents <= set(vectors if vectors and not given.choices else every)
            assert len(extents) > 1 or len(vectors) == 1


def test_operands_in_eight_bits_are_drawn_and_fenced_in() -> None:
    rule = load_rules("fp8")["fp8-quantised-linear-add"]
    for number in range(24):
        example = drawn(rule, "f16", random.Random(number), number)
        operands = draw(rule, seed=number, dtype="f16", values=example.values, dims=dict(example.dims or ())).operands
        q = operands["q"]
        assert q.dtype == torch.float8_e4m3fn
        assert not q.float().isnan().any()
        before = q.clone()
        refence([q], 0.5)
        assert torch.equal(q.view(torch.uint8), before.view(torch.uint8))
        assert storage_of(q)[0].item() == 0.5
