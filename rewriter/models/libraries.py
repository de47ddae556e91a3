"""What diffusers and transformers do differently from release to release, or more loudly than needed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import diffusers
import torch
import transformers
from packaging.version import Version


def dtype_argument(dtype: torch.dtype) -> dict[str, Any]:
    """The keyword under which `from_pretrained` of a diffusers class takes a dtype: renamed in 0.40."""
    renamed = Version(diffusers.__version__) >= Version("0.40.0.dev0")
    return {"dtype" if renamed else "torch_dtype": dtype}


@contextlib.contextmanager
def quiet(*, bars: bool = False) -> Iterator[None]:
    """No advice from diffusers and transformers inside this block, and no progress bars unless `bars`; errors show.

    Both print notices on import and on loading (torchvision missing, a slower image processor) that no caller of ours
    can act on, and bars that flash by.
    """
    libraries = (diffusers.utils.logging, transformers.utils.logging)
    before = [(library, library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        if not bars:
            library.disable_progress_bar()
    try:
        yield
    finally:
        for library, level, shown in before:
            library.set_verbosity(level)
            if shown and not bars:
                library.enable_progress_bar()
