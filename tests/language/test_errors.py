"""Every message of the loader: where, which rule, what was found, what was expected, the nearest valid name."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import pytest
import yaml

CASES = yaml.safe_load((pathlib.Path(__file__).parent / "errors.yaml").read_text(encoding="utf-8"))


def test_sample_loads(sample: str, load: Callable[[str], object]) -> None:
    load(sample)


@pytest.mark.parametrize("case", CASES, ids=[f"{case['new'].strip() or case['old'].strip()}"[:60] for case in CASES])
def test_message(case: dict[str, str], sample: str, refused: Callable[[str], str]) -> None:
    assert case["old"] in sample
    assert refused(sample.replace(case["old"], case["new"], 1)) == case["error"]
