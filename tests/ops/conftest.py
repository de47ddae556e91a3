"""Kernels in Triton's interpreter take less time."""

from collections.abc import Iterator

import pytest

from rewriter.proof import interpreter


@pytest.fixture(autouse=True, scope="session")
def _quick_interpreter() -> Iterator[None]:
    with interpreter.patched_once():
        yield
