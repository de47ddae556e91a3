"""One thread, no gradients, and libraries that keep their advice to themselves."""

from __future__ import annotations

from collections.abc import Iterator

import diffusers
import pytest
import torch
import transformers


@pytest.fixture(autouse=True)
def _quiet_single_threaded_without_gradients() -> Iterator[None]:
    transformers.logging.set_verbosity_error()
    threads, before = torch.get_num_threads(), diffusers.logging.get_verbosity()
    torch.set_num_threads(1)
    diffusers.logging.set_verbosity_error()
    with torch.no_grad():
        yield
    diffusers.logging.set_verbosity(before)
    torch.set_num_threads(threads)
