from __future__ import annotations

import pathlib
from collections.abc import Callable

import pytest

GOOD = """\
format: 1
pack: cleanup
summary: Rules for the tests of the command line.
rules:
  - id: dropout-off
    summary: dropout outside training passes its input on
    doc: |
      Inference has no use for it.
    match: |
      y = aten::dropout(x, p, False)
    ignore: {p: no effect outside training}
    replace: |
      y = x
    inputs:
      x: {shape: [N, C]}
      p: [0.1, 0.5]
    dims: {N: 1..3, C: 1..40}

  # The next rule.
  - id: double-relu
    summary: the second relu changes nothing
    match: |
      a = aten::relu(x)
      y = aten::relu(a)
    replace: |
      y = aten::relu(x)
    inputs:
      x: {shape: [N]}
    dims: {N: [1, 63]}
"""


@pytest.fixture
def rule_file(tmp_path: pathlib.Path) -> Callable[..., pathlib.Path]:
    """Writes a rule file with two good rules; `old` and `new` change its text."""

    def write(name: str = "good.yaml", old: str = "", new: str = "") -> pathlib.Path:
        assert old in GOOD
        path = tmp_path / name
        path.write_text(GOOD.replace(old, new) if old else GOOD, encoding="utf-8")
        return path

    return write
