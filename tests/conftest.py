"""Where there is no GPU, Triton's kernels run in its interpreter. No test finds what another one has kept on disk."""

import gc
import os

import torch

# Triton reads the variable when it is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# A test that keeps graphs does so in a folder of its own.
os.environ.setdefault("REWRITER_GRAPHS", "off")


def pytest_collection_finish() -> None:
    """All modules and tests that were collected stay: no garbage collection need look at them again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()
