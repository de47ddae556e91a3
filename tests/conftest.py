"""Where there is no GPU, Triton's kernels run in its interpreter. No test finds what another one has kept on disk."""

import gc
import os
import shutil
import tempfile

import pytest
import torch

# Triton reads the variable when it is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# A test that keeps graphs does so in a folder of its own.
os.environ.setdefault("REWRITER_GRAPHS", "off")


def pytest_configure(config: pytest.Config) -> None:
    """Timings, and the verdicts of rules' proofs that decide what is used, are those of these tests, not the user's."""
    if "REWRITER_CACHE" not in os.environ:
        # The workers that share the tests are started later, and inherit it.
        os.environ["REWRITER_CACHE"] = folder = tempfile.mkdtemp(prefix="rewriter-tests-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def pytest_collection_finish() -> None:
    """All modules and tests that were collected stay: no garbage collection need look at them again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()
