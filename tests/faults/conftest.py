"""Kernels with a fault, planted as providers of the ops that they get wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rewriter.ops.registry import OPS, provide

PLANTED = "planted"


@contextlib.contextmanager
def _planted(op: str, kernel: Callable[..., Any]) -> Iterator[str]:
    provide(op, PLANTED, kernel, lambda *_: None)
    try:
        yield PLANTED
    finally:
        del OPS[op].providers[PLANTED]


@pytest.fixture
def planted() -> Callable[[str, Callable[..., Any]], contextlib.AbstractContextManager[str]]:
    """planted(op, kernel) is a context in which the op has that kernel as a provider of the returned name."""
    return _planted
