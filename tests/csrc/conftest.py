import pathlib

import pytest
import torch
from emulation import KERNELS, Chip, build, missing


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    lacks = missing()
    if lacks is not None:
        pytest.skip(lacks)
    return build(tmp_path_factory.mktemp("csrc"), "rewriter_emulated", KERNELS, {})


@pytest.fixture
def chip(built: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Chip:
    """An emulated chip, which serves the providers for Hopper."""
    found = Chip(built)
    found.set()
    monkeypatch.setattr(torch.ops, "rewriter_cuda", found.ops, raising=False)
    return found
