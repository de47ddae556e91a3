"""Ctrl-C while `rewriter.optimize` imports what it needs, the first time, costs no more than that attempt."""

from __future__ import annotations

import subprocess
import sys

_SCRIPT = """
import sys
import torch

original, kept = torch.library.register_fake, []
for allowed in (0, 1, 20):
    def interrupted(*args, **kwargs):
        global allowed
        allowed -= 1
        if allowed < 0:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    torch.library.register_fake = interrupted
    try:
        import rewriter.ops
    except KeyboardInterrupt as error:
        kept.append(error)  # as a notebook does, with its traceback
    torch.library.register_fake = original
assert len(kept) == 3
import rewriter.ops
from rewriter.ops.registry import OPS
assert len(OPS) > 20
x = torch.randn(3)
assert torch.allclose(torch.ops.rewriter.quick_gelu(x), x * torch.sigmoid(1.702 * x), atol=1e-3)
for name in [name for name in sys.modules if name.startswith("rewriter.ops") and not name.endswith("registry")]:
    del sys.modules[name]
import rewriter.ops
"""


def test_an_interrupted_import_can_be_made_again() -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
