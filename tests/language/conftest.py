from __future__ import annotations

import pathlib
from collections.abc import Callable

import pytest

from rewriter.errors import RuleError
from rewriter.language import RuleSet, load_rules

Load = Callable[[str], RuleSet]

SAMPLE = """\
format: 1
pack: sample
summary: Rules for the tests of the language.
rules:
  - id: linear-act
    summary: activation(linear(x))
    match: |
      h = aten::linear(x, weight, bias?)
      y = aten::{relu, silu}(h) as act
    where:
      x: {dtype: [f16, f32], rank: [2, 3]}
      weight: {shape: [M, K], weight: true}
    require: [M % 8 == 0]
    replace: |
      y = rewriter::linear_act(x, weight, bias, act)
    inputs:
      x: {shape: [N, K], layouts: [contiguous, sliced]}
      weight: {shape: [8*M, K]}
      bias: {shape: [8*M], optional: true}
    dims: {N: 1..3, K: 1..40, M: [1, 2]}
    tolerance: 2
  - id: stacked-linear
    summary: several linears over one input
    phase: merge
    match: |
      y* = aten::linear(x, weight*, bias?*)
    prepare: |
      w = concat(weight*, dim=0)
      b = concat(bias?*, dim=0)
      sizes = extents(weight*, 0)
    replace: |
      h = aten::linear(x, w, b)
      y* = aten::split_with_sizes(h, sizes, -1)
    inputs:
      x: {shape: [N, K]}
      weight: {shape: [M, K], count: 2..4}
      bias: {shape: [M], count: 2..4, optional: true}
    dims: {N: 1..3, K: 1..40, M: 1..40}
"""


@pytest.fixture
def sample() -> str:
    return SAMPLE


@pytest.fixture
def load(tmp_path: pathlib.Path) -> Load:
    """Loads a rule file with this text."""

    def load(text: str) -> RuleSet:
        path = tmp_path / "rules.yaml"
        path.write_text(text, encoding="utf-8")
        return load_rules(path)

    return load


@pytest.fixture
def refused(load: Load, tmp_path: pathlib.Path) -> Callable[[str], str]:
    """The message of the RuleError that a rule file with this text raises, its path left out."""

    def refused(text: str) -> str:
        with pytest.raises(RuleError) as caught:
            load(text)
        return str(caught.value).replace(f"{tmp_path / 'rules.yaml'}:", "")

    return refused
